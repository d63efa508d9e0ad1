"""A simulated peer that asks prompts: sessions whose results are promises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from gennode.engine.seam import OwnerEngine, States
from gennode.errors import GennodeError, LocalError
from gennode.node.actions import Action, Arrived, Lost, Opened
from gennode.node.sessions.owning import OwnerMachine
from gennode.wire.activations import codec
from gennode.wire.fields import CodecName
from gennode.wire.ids import Hop, PeerId, SessionId

NOTHING: States = codec("raw").decode(b"", 1)
"""What a promise gives that has nothing to tell but that it is kept."""


class Promise:
    """A result that a simulated coroutine waits for."""

    def __init__(self) -> None:
        self._outcome: States | GennodeError | None = None
        self._waiter: Callable[[], None] | None = None

    @property
    def is_kept(self) -> bool:
        """Whether the result is there."""
        return self._outcome is not None

    def resolve(self, outcome: States | GennodeError) -> None:
        """Give the result and wake whoever waits."""
        self._outcome = outcome
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            waiter()

    def on_resolved(self, waiter: Callable[[], None]) -> None:
        """Call once when the result is there."""
        if self._outcome is not None:
            waiter()
        else:
            self._waiter = waiter

    def __await__(self) -> Generator[Promise, None, States]:
        if self._outcome is None:
            yield self
        if isinstance(self._outcome, GennodeError):
            raise self._outcome
        if self._outcome is None:
            raise LocalError("a promise was resumed before it was kept")
        return self._outcome


@dataclass
class Awaited:
    """What one owner waits for; every step is answered once, every session ends once."""

    opened: dict[SessionId, Promise] = field(default_factory=dict)
    steps: dict[tuple[SessionId, int], Promise] = field(default_factory=dict)
    lost: set[SessionId] = field(default_factory=set)

    def hear(self, event: Arrived | Opened | Lost) -> None:
        """Something came of a session; LocalError if it comes twice, or of none that is open."""
        session = event.session
        if session not in self.opened or session in self.lost:
            raise LocalError(f"a {type(event).__name__} came of a session that is over")
        match event:
            case Arrived():
                promise = self.steps.pop((session, event.number), None)
                if promise is None:
                    raise LocalError(f"step {event.number} was answered twice, or never sent")
                promise.resolve(event.states)
            case Opened():
                if self.opened[session].is_kept:
                    raise LocalError("a session was opened twice")
                self.opened[session].resolve(NOTHING)
            case Lost():
                self.lost.add(session)
                if not self.opened[session].is_kept:
                    self.opened[session].resolve(event.error)
                for promise in self._take_steps(session):
                    promise.resolve(event.error)

    def forget(self, session: SessionId) -> None:
        """The session is closed."""
        del self.opened[session]
        self.lost.discard(session)
        self._take_steps(session)

    def _take_steps(self, session: SessionId) -> list[Promise]:
        return [self.steps.pop(key) for key in list(self.steps) if key[0] == session]


class Shell(Protocol):
    """The swarm, as the owner's side sees it."""

    def act(self, peer: PeerId, actions: Sequence[Action]) -> None:
        """Carry out what a peer's machine asked for."""

    def clock_s(self, peer: PeerId) -> float:
        """A peer's own clock."""


@dataclass(frozen=True)
class SimulatedOwner:
    """A peer that asks prompts; satisfies `prompt.Swarm`."""

    shell: Shell
    peer: PeerId
    machine: OwnerMachine
    awaited: Awaited
    codec: CodecName
    replicate: bool

    @asynccontextmanager
    async def open(
        self, owner: OwnerEngine, *, max_positions: int
    ) -> AsyncIterator[SimulatedPipeline]:
        """A session on the best route of the moment."""
        session, actions = self.machine.open_session(
            model=owner.model,
            layers=owner.layers,
            dim=owner.dim,
            codec=self.codec,
            max_positions=max_positions,
            now_s=self.shell.clock_s(self.peer),
            replicate=self.replicate,
        )
        opened = self.awaited.opened[session] = Promise()
        self.shell.act(self.peer, actions)
        try:
            await opened
            yield SimulatedPipeline(self, session)
        finally:
            self.shell.act(self.peer, self.machine.close_session(session))
            self.awaited.forget(session)


@dataclass(frozen=True)
class SimulatedPipeline:
    """An open session; satisfies `prompt.Pipeline`."""

    owner: SimulatedOwner
    session: SessionId

    def step(self, position: int, states: States, *, reply_rows: int) -> Promise:
        """Send states down the route."""
        owner = self.owner
        payload = codec(owner.codec).encode(states)
        now_s = owner.shell.clock_s(owner.peer)
        number, actions = owner.machine.submit(
            self.session, position, len(states), reply_rows, payload, now_s
        )
        promise = owner.awaited.steps[self.session, number] = Promise()
        owner.shell.act(owner.peer, actions)
        return promise

    @property
    def route(self) -> tuple[Hop, ...]:
        """The hops of the moment."""
        return self.owner.machine.path(self.session)
