"""A relay that reads and changes what it carries: it sees no plaintext, and no false byte lands."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from gennode.errors import NetworkError
from gennode.mesh.multiaddr import pack_varint, peer_to_bytes, unpack_varint
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.mesh.transport import Stream
from gennode.wire.ids import PeerId
from gennode.wire.signing import Key
from tests.mesh.ends import Diary, ping

HOP, STOP = "/libp2p/circuit/relay/0.2.0/hop", "/libp2p/circuit/relay/0.2.0/stop"
CONNECT, STATUS, OK = 1, 2, 100
CANARY = b"the secret of this session " * 400
WAIT_S = 20.0


def field(number: int, value: int | bytes) -> bytes:
    """One protobuf field: a varint or bytes."""
    if isinstance(value, int):
        return pack_varint(number << 3) + pack_varint(value)
    return pack_varint(number << 3 | 2) + pack_varint(len(value)) + value


def delimited(message: bytes) -> bytes:
    return pack_varint(len(message)) + message


class LyingRelay:
    """Speaks circuit relay v2 (https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md).

    Enough of it to connect anybody to `target`; what passes goes through `change`.
    """

    def __init__(self, transport: P2pdTransport, target: PeerId) -> None:
        self.transport = transport
        self.target = target
        self.change: Callable[[bytes], bytes] = bytes
        self.seen = bytearray()
        self.circuits = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self.transport.accept(HOP, self._hop)

    def _hop(self, stream: Stream) -> None:
        Circuit(self, stream)

    async def stop_stream(self, source: PeerId) -> Stream:
        stream = await self.transport.open(self.target, STOP, timeout_s=5)
        connect = field(1, 0) + field(2, field(1, peer_to_bytes(source)))
        stream.write(delimited(connect))
        return stream

    def spawn(self, circuit: Circuit) -> None:
        task = asyncio.get_running_loop().create_task(circuit.connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Circuit:
    """One relayed connection: a hop stream, a stop stream, and bytes between them."""

    def __init__(self, relay: LyingRelay, hop: Stream) -> None:
        self.relay, self.hop = relay, hop
        self.stop: Stream | None = None
        self._greeting = bytearray()
        self._status = bytearray()
        self._is_open = False
        hop.start(self._from_hop, self._hop_lost)

    def _from_hop(self, data: bytes) -> None:
        if self._is_open and self.stop is not None:
            self.relay.seen += data
            self.stop.write(self.relay.change(data))
        elif not self._greeting:
            self._greeting += data
            self.relay.spawn(self)

    def _hop_lost(self, _reason: str) -> None:
        if self.stop is not None:
            self.stop.abort()

    async def connect(self) -> None:
        try:
            self.stop = await self.relay.stop_stream(self.hop.peer)
        except NetworkError:
            self.hop.abort()
            return
        self.stop.start(self._from_stop, lambda _reason: self.hop.abort())

    def _from_stop(self, data: bytes) -> None:
        if not self._is_open:  # the target's status comes first
            self._status += data
            head = unpack_varint(self._status)
            if head is None or len(self._status) < sum(head):
                return
            data = bytes(self._status[sum(head) :])
            self._is_open = True
            self.relay.circuits += 1
            self.hop.write(delimited(field(1, STATUS) + field(5, OK)))
        if data:
            self.relay.seen += data
            self.hop.write(self.relay.change(data))


def flip(data: bytes) -> bytes:
    """The bytes with the last bit changed."""
    return data[:-1] + bytes([data[-1] ^ 1])


@asynccontextmanager
async def circuit() -> AsyncIterator[tuple[Diary, Diary, LyingRelay]]:
    """Two peers that only meet through a lying relay."""
    async with AsyncExitStack() as stack:
        started = []
        for number in (1, 2, 3):
            # The first two tell of an address that refuses everybody, as behind a NAT they would.
            announce = ("/ip4/127.0.0.1/tcp/1",) if number < 3 else ()
            transport = await P2pdTransport.start(Key(bytes([number]) * 32), announce=announce)
            stack.push_async_callback(transport.close)
            started.append(transport)
        first, second, third = started
        relay = LyingRelay(third, second.peer)
        await relay.start()
        await first.connect(third.addresses()[0], timeout_s=5)
        await second.connect(third.addresses()[0], timeout_s=5)
        a, b = Diary(first), Diary(second)
        await stack.enter_async_context(a.links)
        await stack.enter_async_context(b.links)
        a.links.learn(second.peer, [f"{third.addresses()[0]}/p2p-circuit/p2p/{second.peer}"])
        yield a, b, relay


async def test_an_honest_relay_sees_ciphertext_only() -> None:
    async with circuit() as (a, b, relay):
        a.links.send(b.transport.peer, ping(1), CANARY)
        await b.wait_for(messages=1)
        assert b.got[0][2] == CANARY
        assert relay.circuits
        assert len(relay.seen) > len(CANARY)
        assert CANARY[:27] not in relay.seen


async def test_every_flipped_bit_is_noticed() -> None:
    async with circuit() as (a, b, relay):
        a.links.send(b.transport.peer, ping(1), b"before")
        await b.wait_for(messages=1)
        relay.change = flip
        a.links.send(b.transport.peer, ping(2), os.urandom(4096))
        await a.wait_for(downs=1)  # whatever is sent again is flipped again
        assert [payload for _, _, payload in b.got] == [b"before"]
        assert not any(breach for _, _, breach in a.downs)
