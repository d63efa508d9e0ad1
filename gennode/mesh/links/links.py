"""Messages to and from peers over links: `send` never waits, messages arrive by callback."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any

from gennode.errors import LocalError, NetworkError, RemoteError, UsageError
from gennode.mesh import handles
from gennode.mesh.links.conduct import MAX_OFFENDERS, Conduct
from gennode.mesh.links.incoming import Incoming
from gennode.mesh.links.limits import Gauges, Use
from gennode.mesh.links.outgoing import PROTOCOL, RESUME_TIMEOUT_S, Outgoing
from gennode.mesh.links.protocol import LINK_ID_BYTES
from gennode.mesh.transport import Transport
from gennode.wire.frames import Buffer
from gennode.wire.ids import PeerId
from gennode.wire.messages import Message

log = logging.getLogger(__name__)

END_TIMEOUT_S = 3.0  # for peers to confirm that all has arrived
SWEEP_S = 1.0
MAX_ADDRESSES_PER_PEER = 16  # as many as an announcement may carry
MAX_KNOWN_PEERS = 8192  # twice the directory's digest
MAX_CALLS = 64  # back to peers at a time
MAX_OUTGOING = 1024  # links; each costs a file handle here and three in the daemon
MAX_HELD_BYTES = 512 * 1024 * 1024  # not acknowledged, over all peers: four that are too slow
FAIR_HELD_BYTES = 32 * 1024 * 1024  # of one: whoever holds less is never given up for others


class Links:
    """One long-lived link to each peer that we send to; use it as `async with Links(…)`.

    `on_message(peer, message, payload)` is called in the event loop, straight from the reader;
    it may raise RemoteError for a message that can't be right, which counts as a breach.
    `on_down(peer, reason, breach)` is called once when a peer is given up: all that was queued
    for it is dropped. A later `send` to it starts anew. `on_trouble(peer, reason)` is called
    before that, when a peer that worked refuses us and may be back in a moment, `on_alive(peer)`
    each time that a peer confirms some of what we sent it, while more is on its way. After a breach
    the peer is banned for a while: nothing is read from it, and nothing goes to it.
    """

    def __init__(
        self,
        transport: Transport,
        on_message: Callable[[PeerId, Message, bytes], None],
        on_down: Callable[[PeerId, str, bool], None],
        *,
        on_trouble: Callable[[PeerId, str], None] = lambda _peer, _reason: None,
        on_alive: Callable[[PeerId], None] = lambda _peer: None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._transport = transport
        self._on_message = on_message
        self._on_down = on_down
        self._on_trouble = on_trouble
        self._on_alive = on_alive
        self._random_bytes = random_bytes
        self._loop = asyncio.get_running_loop()
        self._tasks = asyncio.TaskGroup()
        self._addresses: dict[PeerId, tuple[str, ...]] = {}
        self._outgoing: dict[PeerId, Outgoing] = {}
        self._ending: set[Outgoing] = set()
        self._calls: dict[PeerId, asyncio.Task[None]] = {}
        self._conduct = Conduct(self._loop.time())
        self._incoming = Incoming(on_message, self._give_up, self._call_back, self.is_banned)
        self._gauges = Gauges(
            {
                "outbound links": MAX_OUTGOING,
                "unacknowledged (bytes)": MAX_HELD_BYTES,
                "offenders": MAX_OFFENDERS,
                "known addresses": MAX_KNOWN_PEERS,
                "open files": handles.most(),
            }
        )
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
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
            if self.is_banned(peer):
                return 0
            outgoing = self._outgoing[peer] = self._open(peer)
            self._bound_links()
        sent_bytes = outgoing.send(message, payload)
        if outgoing.held_bytes > FAIR_HELD_BYTES:
            self._bound_held()
        return sent_bytes

    def _open(self, peer: PeerId) -> Outgoing:
        return Outgoing(
            peer,
            self._random_bytes(LINK_ID_BYTES),
            self._transport,
            lambda: self._addresses.get(peer, ()),
            self._spawn,
            self._on_trouble,
            self._on_alive,
            self._over,
            self._done,
        )

    def uses(self) -> tuple[Use, ...]:
        """The limits between us and our peers, and what is used of them."""
        return (*self._incoming.uses(), *self._gauges.uses())

    def is_banned(self, peer: PeerId) -> bool:
        """Whether a peer broke a protocol, and is not to be listened to for now."""
        return self._conduct.is_banned(peer, self._loop.time())

    def _bound_links(self) -> None:
        """Where there are too many links, end the one that was opened first."""
        if len(self._outgoing) > MAX_OUTGOING:
            self.close_peer(next(iter(self._outgoing)))

    def _bound_held(self) -> None:
        """Give up the slowest readers until what is kept for all of them fits."""
        links = sorted([*self._outgoing.values(), *self._ending], key=lambda one: one.held_bytes)
        held_bytes = sum(one.held_bytes for one in links)
        self._gauges.set("unacknowledged (bytes)", held_bytes)
        while held_bytes > MAX_HELD_BYTES and links[-1].held_bytes > FAIR_HELD_BYTES:
            slowest = links.pop()
            held_bytes -= slowest.held_bytes
            slowest.refuse("too much waits for it, and for others")

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
            for outgoing in self._ending:
                outgoing.hurry()
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
        for call in self._calls.values():
            call.cancel()
        self._outgoing.clear()
        self._ending.clear()
        self._incoming.close()

    async def _look_for_direct(self) -> None:
        """Move links off their relays where a direct connection has come about."""
        try:
            direct = await self._transport.direct_peers()
        except NetworkError:
            return  # next time, then
        for peer in direct & self._outgoing.keys():
            self._outgoing[peer].move()

    def _spawn(self, dial: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        try:
            return self._tasks.create_task(dial)
        except RuntimeError as error:  # a task has failed, and all end: what it raised goes on
            dial.close()
            raise NetworkError("the links of this node are ending") from error

    def _call_back(self, peer: PeerId) -> None:
        """See to it that a peer whose link to us broke can open it again.

        If our own daemon died, theirs was refused, and holds back from dialling us for longer
        than a session can wait. Over a connection of ours it needs no dialling.
        """
        addresses = self._addresses.get(peer)
        free = peer not in self._calls and len(self._calls) < MAX_CALLS
        if addresses and self._is_open and free:
            self._calls[peer] = self._spawn(self._call(peer, addresses))
            self._calls[peer].add_done_callback(lambda _done: self._calls.pop(peer, None))

    async def _call(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        try:
            async with asyncio.timeout(RESUME_TIMEOUT_S):
                await self._transport.connect(*addresses, timeout_s=RESUME_TIMEOUT_S)
        except (NetworkError, RemoteError, UsageError, TimeoutError) as error:
            log.debug("%s is not there: %s", peer, error)  # then its links tell that it is down

    def _sweep(self) -> None:
        now_s = self._loop.time()
        for outgoing in [*self._outgoing.values(), *self._ending]:
            outgoing.sweep(now_s)
        self._incoming.sweep(now_s)
        is_looking = self._looking is not None and not self._looking.done()
        if not is_looking and any(link.is_relayed for link in self._outgoing.values()):
            self._looking = self._spawn(self._look_for_direct())
        self._bound_held()
        self._gauges.set("outbound links", len(self._outgoing))
        self._gauges.set("offenders", len(self._conduct))
        self._gauges.set("known addresses", len(self._addresses))
        self._gauges.set("open files", handles.used())
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

    def report(self, peer: PeerId, reason: str) -> None:
        """A peer broke another protocol than ours: ban it here as well."""
        self._give_up(peer, reason, True)

    def _give_up(self, peer: PeerId, reason: str, breach: bool) -> None:
        outgoing = self._outgoing.pop(peer, None)
        if breach:
            address = self._incoming.address_of(peer) or (outgoing.address if outgoing else "")
            line = self._conduct.breached(peer, address, reason, self._loop.time())
            if line:
                log.warning("%s", line)
        if outgoing is not None:
            outgoing.abort()
        if self._incoming.drop(peer) or outgoing is not None or breach:
            self._loop.call_soon(self._on_down, peer, reason, breach)
