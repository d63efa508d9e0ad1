"""Messages to and from peers over links: `send` never waits, messages arrive by callback."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any

from gennode.errors import LocalError
from gennode.mesh.incoming import Incoming
from gennode.mesh.link import LINK_ID_BYTES
from gennode.mesh.outgoing import PROTOCOL, Outgoing
from gennode.mesh.transport import Transport
from gennode.wire.frames import Buffer
from gennode.wire.ids import PeerId
from gennode.wire.messages import Message

END_TIMEOUT_S = 3.0  # for peers to confirm that all has arrived
SWEEP_S = 1.0
MAX_ADDRESSES_PER_PEER = 16  # as many as an announcement may carry
MAX_KNOWN_PEERS = 8192  # twice the directory's digest


class Links:
    """One long-lived link to each peer that we send to; use it as `async with Links(…)`.

    `on_message(peer, message, payload)` is called in the event loop, straight from the reader;
    it may raise RemoteError for a message that can't be right, which counts as a breach.
    `on_down(peer, reason, breach)` is called once when a peer is given up: all that was queued
    for it is dropped. A later `send` to it starts anew.
    """

    def __init__(
        self,
        transport: Transport,
        on_message: Callable[[PeerId, Message, bytes], None],
        on_down: Callable[[PeerId, str, bool], None],
        *,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._transport = transport
        self._on_message = on_message
        self._on_down = on_down
        self._random_bytes = random_bytes
        self._loop = asyncio.get_running_loop()
        self._tasks = asyncio.TaskGroup()
        self._addresses: dict[PeerId, tuple[str, ...]] = {}
        self._outgoing: dict[PeerId, Outgoing] = {}
        self._ending: set[Outgoing] = set()
        self._incoming = Incoming(on_message, self._give_up)
        self._timer: asyncio.TimerHandle | None = None
        self._all_ended = asyncio.Event()
        self._is_open = False

    async def __aenter__(self) -> Links:
        await self._tasks.__aenter__()
        self._is_open = True
        await self._transport.accept(PROTOCOL, self._incoming.accept)
        self._sweep()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                await self.close()
        finally:
            self._abort()
            if isinstance(error, asyncio.CancelledError):  # the group may be who cancelled us
                await self._tasks.__aexit__(kind, error, traceback)
            else:  # what the body raised goes on as it is, not inside an exception group
                await self._tasks.__aexit__(None, None, None)

    def learn(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Remember where a peer can be dialled; it is found by its id alone otherwise."""
        self._addresses.pop(peer, None)
        while len(self._addresses) >= MAX_KNOWN_PEERS:
            del self._addresses[next(iter(self._addresses))]
        self._addresses[peer] = tuple(addresses)[:MAX_ADDRESSES_PER_PEER]

    def send(self, peer: PeerId, message: Message, payload: Buffer = b"") -> int:
        """Send a message, without waiting. `payload` must not change afterwards.

        Returns the bytes that it takes on the link. To ourselves it goes through the event
        loop, so that it never arrives within this call.
        """
        if not self._is_open:
            raise LocalError("a message is sent before links are open or after they closed")
        if peer == self._transport.peer:
            self._loop.call_soon(self._on_message, peer, message, bytes(payload))
            return 0
        outgoing = self._outgoing.get(peer)
        if outgoing is None:
            outgoing = self._outgoing[peer] = Outgoing(
                peer,
                self._random_bytes(LINK_ID_BYTES),
                self._transport,
                lambda: self._addresses.get(peer, ()),
                self._spawn,
                self._over,
                self._done,
            )
        return outgoing.send(message, payload)

    def close_peer(self, peer: PeerId) -> None:
        """End our link to a peer once all has arrived; nothing is reported if that fails.

        A later `send` opens another link, which does not wait for this one.
        """
        outgoing = self._outgoing.pop(peer, None)
        if outgoing is not None:
            self._ending.add(outgoing)
            outgoing.end()

    async def close(self) -> None:
        """End all links, and wait up to END_TIMEOUT_S for peers to confirm. Idempotent."""
        self._is_open = False
        for peer in list(self._outgoing):
            self.close_peer(peer)
        if self._ending:
            self._all_ended.clear()
            try:
                async with asyncio.timeout(END_TIMEOUT_S):
                    await self._all_ended.wait()
            except TimeoutError:
                pass  # whoever does not confirm by now is cut off below
        self._abort()

    def _abort(self) -> None:
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
        for outgoing in [*self._outgoing.values(), *self._ending]:
            outgoing.abort()
        self._outgoing.clear()
        self._ending.clear()
        self._incoming.close()

    def _spawn(self, dial: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._tasks.create_task(dial)

    def _sweep(self) -> None:
        now_s = self._loop.time()
        for outgoing in [*self._outgoing.values(), *self._ending]:
            outgoing.sweep(now_s)
        self._incoming.sweep(now_s)
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)

    def _done(self, outgoing: Outgoing) -> None:
        self._ending.discard(outgoing)
        if not self._ending:
            self._all_ended.set()

    def _over(self, outgoing: Outgoing, reason: str, breach: bool) -> None:
        if outgoing in self._ending:
            self._done(outgoing)
            if not breach:
                return
        self._give_up(outgoing.peer, reason, breach)

    def _give_up(self, peer: PeerId, reason: str, breach: bool) -> None:
        outgoing = self._outgoing.pop(peer, None)
        if outgoing is not None:
            outgoing.abort()
        if self._incoming.drop(peer) or outgoing is not None or breach:
            self._loop.call_soon(self._on_down, peer, reason, breach)
