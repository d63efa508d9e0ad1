"""The acceptor's ends of links: reads frames, acknowledges, remembers links whose stream broke."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from gennode.errors import RemoteError
from gennode.mesh import handles
from gennode.mesh.links.limits import Allowances, Gauges, Use, cost
from gennode.mesh.links.outgoing import RESUME_TIMEOUT_S
from gennode.mesh.links.protocol import HELLO_BYTES, Receiver, Reply, read_hello, reply
from gennode.mesh.transport import Stream
from gennode.wire.ids import PeerId
from gennode.wire.messages import Message

MAX_STREAMS = 512  # one per peer that sends to us, and routes cross few peers
MAX_STREAMS_PER_PEER = 4  # one, its successor while we have not seen the reset, and one ending
MAX_LINKS_PER_PEER = 8  # remembered; one that broke is kept for LINK_MEMORY_S
MAX_LINKS = 1024  # remembered, over all peers: some 1 KB each
MAX_BUFFERED_BYTES = 48 * 1024 * 1024  # of unfinished frames, over all: three of the largest
MAX_PEER_BUFFERED_BYTES = 20 * 1024 * 1024  # of one peer: one of the largest, and a small one
MAX_REPLY_BYTES = 64 * 1024  # acknowledgements that a peer does not read
HELLO_TIMEOUT_S = 5.0
FRAME_TIMEOUT_S = 60.0  # 16 MiB at 2.2 Mbit/s: slower is no use as a hop, or is a slow loris
CROWDED_FRAME_S = 5.0  # the same while memory is short: most are whole within milliseconds
ACKNOWLEDGE_DELAY_S = 0.2  # a token's frames are kept that long: 10 KB each
CLOCK_SLACK_S = 0.001  # the event loop's timers may come that much too early
LINK_MEMORY_S = 2 * RESUME_TIMEOUT_S  # by then the opener has given up


@dataclass(eq=False)
class _Link:
    """What outlives a stream."""

    peer: PeerId
    receiver: Receiver = field(default_factory=Receiver)
    arrival: _Arrival | None = None
    is_ended: bool = False
    lost_s: float = 0.0  # when its stream broke
    reason: str = ""  # why


@dataclass(eq=False)
class _Arrival:
    """One inbound stream."""

    stream: Stream
    since_s: float  # when it opened, or when the frame began that is not complete yet
    hello: bytearray = field(default_factory=bytearray)
    link: _Link | None = None
    timer: asyncio.TimerHandle | None = None  # of the acknowledgement that is due
    buffered_bytes: int = 0
    is_paused: bool = False  # until there is memory
    resume_s: float = 0.0  # when its peer may ask for more work


class Incoming:
    """All inbound links of a node."""

    def __init__(
        self,
        on_message: Callable[[PeerId, Message, bytes], None],
        on_over: Callable[[PeerId, str, bool], None],
        on_broken: Callable[[PeerId], None],
        is_banned: Callable[[PeerId], bool],
    ) -> None:
        """`on_message` may raise RemoteError for a message that can't be right.

        `on_over(peer, reason, breach)`: a link of `peer` broke the protocol, or was lost.
        `on_broken(peer)`: the stream of a link broke that may go on over another.
        """
        self._on_message = on_message
        self._on_broken = on_broken
        self._on_over = on_over
        self._is_banned = is_banned
        self._arrivals: dict[_Arrival, None] = {}
        self._streams: Counter[PeerId] = Counter()  # arrivals of each
        self._links: dict[tuple[PeerId, bytes], _Link] = {}
        self._buffered_bytes = 0
        self._is_open = True
        self._loop = asyncio.get_running_loop()
        self._allowances = Allowances(self._loop.time())
        # Of the handles that there are, half are for streams that we open ourselves.
        self._most_streams = min(MAX_STREAMS, handles.for_streams(2 * MAX_STREAMS) // 2)
        self._gauges = Gauges(
            {
                "inbound streams": self._most_streams,
                "inbound links": MAX_LINKS,
                "unfinished frames (bytes)": MAX_BUFFERED_BYTES,
            }
        )

    def accept(self, stream: Stream) -> None:
        """Serve a new inbound stream, or refuse it where there are too many."""
        peer, now_s = stream.peer, self._loop.time()
        arrival = _Arrival(stream, now_s)
        welcome = self._is_open and not self._is_banned(peer)
        flooding = welcome and not self._allowances.may_open(peer, now_s)
        welcome = welcome and not flooding and self._has_room(peer)
        if welcome:
            self._arrivals[arrival] = None
            self._streams[peer] += 1
            self._gauges.set("inbound streams", len(self._arrivals))
        stream.start(
            lambda data: self._take(arrival, data), lambda reason: self._lost(arrival, reason)
        )
        if not welcome:
            stream.abort()
        if flooding:
            self._on_over(peer, "it opens streams without end", True)

    def _has_room(self, peer: PeerId) -> bool:
        """Whether one more stream of a peer is taken; if all places are, one that has more of
        them than it has makes way."""
        own = self._streams[peer]
        if own >= MAX_STREAMS_PER_PEER:
            return False
        if len(self._arrivals) < self._most_streams:
            return True
        [(greedy, most)] = self._streams.most_common(1)
        if most <= own + 1:
            return False
        newest = next(one for one in reversed(self._arrivals) if one.stream.peer == greedy)
        self._cut(newest, "others need its place")
        return True

    def address_of(self, peer: PeerId) -> str:
        """Where the newest stream of a peer comes from; empty if it has none."""
        found = (one.stream.remote for one in reversed(self._arrivals) if one.stream.peer == peer)
        return next(found, "")

    def uses(self) -> tuple[Use, ...]:
        """What peers use of us."""
        return tuple(self._gauges.uses())

    def drop(self, peer: PeerId) -> bool:
        """Abort and forget all of a peer's links; whether there were any."""
        arrivals = [arrival for arrival in self._arrivals if arrival.stream.peer == peer]
        for arrival in arrivals:
            self._remove(arrival)
            arrival.stream.abort()
        links = [key for key, link in self._links.items() if link.peer == peer]
        for key in links:
            del self._links[key]
        return bool(arrivals or links)

    def close(self) -> None:
        """Abort and forget everything. Idempotent."""
        for arrival in list(self._arrivals):
            self._remove(arrival)
            arrival.stream.abort()
        self._links.clear()
        self._is_open = False

    def sweep(self, now_s: float) -> None:
        """Act on what took too long."""
        for arrival in list(self._arrivals):
            waited_s = now_s - arrival.since_s
            late = arrival.link is None and waited_s > HELLO_TIMEOUT_S
            limit_s = CROWDED_FRAME_S if self._is_crowded else FRAME_TIMEOUT_S
            if late:
                self._cut(arrival, "it did not greet")
            elif arrival.buffered_bytes and waited_s > limit_s:
                self._cut(arrival, f"a frame took more than {limit_s:g} s")
        for key, link in list(self._links.items()):
            if link.arrival is None and now_s - link.lost_s > LINK_MEMORY_S:
                if not link.is_ended:
                    self._on_over(link.peer, f"its link broke: {link.reason}", False)
                self._links.pop(key, None)
        self._gauges.set("inbound links", len(self._links))
        self._unpause()

    @property
    def _is_crowded(self) -> bool:
        return self._buffered_bytes > MAX_BUFFERED_BYTES

    def _take(self, arrival: _Arrival, data: bytes) -> None:
        if arrival not in self._arrivals:
            return
        try:
            if arrival.link is None:
                data = self._greet(arrival, data)
            if arrival.link is not None:
                self._feed(arrival, arrival.link, data)
        except RemoteError as error:
            self._on_over(arrival.stream.peer, str(error), True)

    def _greet(self, arrival: _Arrival, data: bytes) -> bytes:
        """Read the greeting; returns the bytes after it."""
        arrival.hello += data
        if len(arrival.hello) < HELLO_BYTES:
            return b""
        hello, stream = read_hello(arrival.hello), arrival.stream
        rest = bytes(arrival.hello[HELLO_BYTES:])
        key = (stream.peer, hello.link)
        link = self._links.get(key)
        if link is None and hello.acknowledged:
            stream.write(reply(Reply.UNKNOWN))
            stream.close()
            return b""
        if link is None:
            self._make_room(stream.peer)
            self._links[key] = link = _Link(stream.peer)
        if link.arrival is not None:  # its stream broke, and the opener knew first
            old = link.arrival
            self._remove(old)
            old.stream.abort()
        arrival.link, link.arrival = link, arrival
        stream.write(link.receiver.welcome())
        return rest

    def _make_room(self, peer: PeerId) -> None:
        """Forget the oldest broken link, of this peer or of anybody, where there are too many."""
        own = [key for key in self._links if key[0] == peer]
        if len(own) >= MAX_LINKS_PER_PEER:
            keys = own
        elif len(self._links) >= MAX_LINKS:
            keys = list(self._links)
        else:
            return
        for key in keys:
            if self._links[key].arrival is None:
                del self._links[key]
                return
        raise RemoteError(f"it has opened {len(own)} links")

    def _feed(self, arrival: _Arrival, link: _Link, data: bytes) -> None:
        receiver = link.receiver
        peer = arrival.stream.peer
        before, work = receiver.received, 0.0
        for message, payload in receiver.feed(data):
            work += cost(message)
            self._on_message(peer, message, payload)
            if arrival not in self._arrivals:
                return
        partial_bytes = receiver.partial_bytes
        if partial_bytes and (receiver.received > before or not arrival.buffered_bytes):
            arrival.since_s = self._loop.time()
        self._hold(arrival, partial_bytes)
        if arrival not in self._arrivals:
            return
        if work:
            self._slow_down(arrival, work)
        link.is_ended = receiver.is_ended
        if receiver.is_ended or receiver.must_acknowledge:
            self._acknowledge(arrival)
        elif receiver.owes_acknowledgement and arrival.timer is None:
            arrival.timer = self._loop.call_later(ACKNOWLEDGE_DELAY_S, self._acknowledge, arrival)

    def _hold(self, arrival: _Arrival, partial_bytes: int) -> None:
        """Account for an unfinished frame. Whoever makes all too much waits for the others."""
        self._buffered_bytes += partial_bytes - arrival.buffered_bytes
        arrival.buffered_bytes = partial_bytes
        self._gauges.set("unfinished frames (bytes)", self._buffered_bytes)
        peer = arrival.stream.peer
        if partial_bytes and self._streams[peer] > 1:
            same_peer = (one for one in self._arrivals if one.stream.peer == peer)
            if sum(one.buffered_bytes for one in same_peer) > MAX_PEER_BUFFERED_BYTES:
                self._cut(arrival, "it begins more frames than it ends")
                return
        if self._is_crowded:
            arrival.is_paused = True
            arrival.stream.pause(True)

    def _slow_down(self, arrival: _Arrival, work: float) -> None:
        """Read no more from a peer that asks for more than its share, until it is within it."""
        now_s = self._loop.time()
        wait_s = self._allowances.work(arrival.stream.peer, work, now_s)
        if wait_s > 0.0:
            arrival.resume_s = now_s + wait_s
            arrival.since_s += wait_s
            arrival.stream.pause(True)
            self._loop.call_at(arrival.resume_s, self._resume, arrival)

    def _resume(self, arrival: _Arrival) -> None:
        """Read on, unless there is still a reason not to."""
        due = arrival.resume_s - self._loop.time() < CLOCK_SLACK_S
        if arrival in self._arrivals and due and not arrival.is_paused:
            arrival.stream.pause(False)

    def _acknowledge(self, arrival: _Arrival) -> None:
        if arrival.timer is not None:
            arrival.timer.cancel()
            arrival.timer = None
        if arrival.link is not None:
            arrival.stream.write(arrival.link.receiver.acknowledgement())
        if arrival.stream.unsent_bytes() > MAX_REPLY_BYTES:
            reason = "it does not read its acknowledgements"
            self._loop.call_soon(self._on_over, arrival.stream.peer, reason, True)

    def _unpause(self) -> None:
        if self._is_crowded:
            return
        for arrival in self._arrivals:
            if arrival.is_paused:
                arrival.is_paused = False
                arrival.since_s = self._loop.time()  # the wait was our doing
                self._resume(arrival)

    def _cut(self, arrival: _Arrival, reason: str) -> None:
        """End a stream; its link may go on over another one."""
        self._lost(arrival, reason)
        arrival.stream.abort()

    def _remove(self, arrival: _Arrival) -> None:
        self._arrivals.pop(arrival, None)
        peer = arrival.stream.peer
        self._streams[peer] -= 1
        if self._streams[peer] <= 0:
            del self._streams[peer]
        self._gauges.set("inbound streams", len(self._arrivals))
        self._buffered_bytes -= arrival.buffered_bytes
        arrival.buffered_bytes = 0
        if arrival.timer is not None:
            arrival.timer.cancel()
            arrival.timer = None
        if arrival.link is not None:
            arrival.link.arrival = None
            arrival.link.lost_s = self._loop.time()

    def _lost(self, arrival: _Arrival, reason: str) -> None:
        if arrival not in self._arrivals:
            return
        self._remove(arrival)
        if arrival.link is not None:
            arrival.link.reason = reason
            if not arrival.link.is_ended:
                self._on_broken(arrival.stream.peer)
