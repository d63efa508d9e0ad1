"""A live node's own sessions: what its machine tells of them, as futures to await."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from gennode.engine.seam import OwnerEngine, States
from gennode.errors import GennodeError
from gennode.node.actions import Action, Arrived, Event, Lost, Opened, Rerouted
from gennode.node.sessions.owning import OwnerMachine
from gennode.wire.activations import codec
from gennode.wire.fields import CodecName
from gennode.wire.ids import SessionId


class LiveSessions:
    """Opens sessions and hands results to whoever awaits them. `act` does what machines decide."""

    def __init__(
        self,
        machine: OwnerMachine,
        codec_name: CodecName,
        act: Callable[[list[Action]], None],
        on_event: Callable[[Opened | Rerouted], None],
    ) -> None:
        self._machine = machine
        self._codec = codec_name
        self._act = act
        self._on_event = on_event
        self._opened: dict[SessionId, asyncio.Future[None]] = {}
        self._awaited: dict[SessionId, dict[int, asyncio.Future[States]]] = {}

    @asynccontextmanager
    async def open(
        self, owner: OwnerEngine, *, max_positions: int, replicate: bool
    ) -> AsyncIterator[LivePipeline]:
        """A session on the best route of the moment.

        `replicate`: have stand-ins keep copies of the hops' caches.
        """
        loop = asyncio.get_running_loop()
        session, actions = self._machine.open_session(
            model=owner.model,
            layers=owner.layers,
            dim=owner.dim,
            codec=self._codec,
            max_positions=max_positions,
            now_s=time.monotonic(),
            replicate=replicate,
        )
        self._opened[session] = loop.create_future()
        self._awaited[session] = {}
        try:
            self._act(actions)
            await self._opened[session]
            yield LivePipeline(self, session, self._codec)
        finally:
            self._act(self._machine.close_session(session))
            del self._opened[session], self._awaited[session]

    def submit(
        self, session: SessionId, position: int, rows: int, reply_rows: int, payload: bytes
    ) -> asyncio.Future[States]:
        """Send a step of a session; the future holds its result."""
        number, actions = self._machine.submit(
            session, position, rows, reply_rows, payload, time.monotonic()
        )
        future: asyncio.Future[States] = asyncio.get_running_loop().create_future()
        self._awaited[session][number] = future
        self._act(actions)
        return future

    def tell(self, event: Event) -> None:
        """Something has come of a session."""
        match event:
            case Arrived():
                waiting = self._awaited.get(event.session, {}).pop(event.number, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(event.states)
            case Opened():
                opened = self._opened[event.session]
                if not opened.done():
                    opened.set_result(None)
                self._on_event(event)
            case Rerouted():
                self._on_event(event)
            case Lost():
                _fail(self._opened[event.session], event.error)
                for future in self._awaited[event.session].values():
                    _fail(future, event.error)


def _fail(future: asyncio.Future[Any], error: GennodeError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # marks it as seen; whoever awaits it hears it all the same


class LivePipeline:
    """An open session; satisfies `prompt.Pipeline`."""

    def __init__(self, sessions: LiveSessions, session: SessionId, codec_name: CodecName) -> None:
        self._sessions = sessions
        self._session = session
        self._codec = codec(codec_name)

    def step(self, position: int, states: States, *, reply_rows: int) -> asyncio.Future[States]:
        """Send states down the route now; the future holds the result."""
        payload = self._codec.encode(states)
        return self._sessions.submit(self._session, position, len(states), reply_rows, payload)
