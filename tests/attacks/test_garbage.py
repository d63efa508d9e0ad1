"""Bytes that are no protocol: the sender is dropped, memory stays bounded, others are served."""

from __future__ import annotations

import asyncio
import os
import random
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gennode.mesh.links.outgoing import PROTOCOL
from gennode.mesh.links.protocol import LINK_ID_BYTES, Kind
from gennode.mesh.memory import MemoryStream, MemoryTransport
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.node.live import LiveNode
from gennode.wire.frames import MAX_FRAME_BYTES, encode
from gennode.wire.ids import PeerId, SessionId
from gennode.wire.messages import Close
from gennode.wire.signing import Key
from tests.mesh.ends import Raw
from tests.node.toys import ATTACKER_SEED, THIRDS, Cast, staged, toy_worker, truth

PROMPT = "unharmed"
MAX_GROWTH_BYTES = 64 * 1024 * 1024
_RECORD = struct.Struct(">BQI")
HELLO = _RECORD.pack(Kind.HELLO, 0, LINK_ID_BYTES) + bytes(LINK_ID_BYTES)


def record(number: int, data: bytes, claimed: int | None = None) -> bytes:
    """A link's record around whatever bytes."""
    return _RECORD.pack(Kind.FRAME, number, len(data) if claimed is None else claimed) + data


def frame(data: bytes, header: int = 4) -> bytes:
    """A frame around whatever bytes; its first `header` bytes are the message."""
    return struct.pack(">II", 4 + len(data), header) + data


CLOSING = b"".join(bytes(part) for part in encode(Close(SessionId(bytes(16)))))

BREACHES = {
    "noise": random.Random(1).randbytes(4096),
    "a web request": b"GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n",
    "a greeting with a huge id": _RECORD.pack(Kind.HELLO, 0, (1 << 32) - 1) + bytes(64),
    "noise after the greeting": HELLO + random.Random(2).randbytes(4096),
    "a record of 4 GiB": HELLO + record(0, b"", (1 << 32) - 1),
    "a frame of 4 GiB": HELLO + record(0, struct.pack(">II", (1 << 32) - 1, 8), MAX_FRAME_BYTES),
    "a header longer than its frame": HELLO + record(0, struct.pack(">II", 16, 1 << 20), 20),
    "a header that is no message": HELLO + record(0, frame(b"\xc1\xc1\xc1\xc1")),
    "a message of unknown kind": HELLO + record(0, frame(b"\x92\xa4Oops\x00", 7)),
    "nesting without end": HELLO + record(0, frame(b"\x91" * 400_000, 400_000)),
    "a frame out of turn": HELLO + record(7, CLOSING),
    "an empty record": HELLO + record(0, b""),
    "two frames in one record": HELLO + record(0, CLOSING * 2),
}


def attacker(cast: Cast, number: int = 0) -> MemoryTransport:
    """A peer of its own on the swarm's network; for each number another."""
    return cast.network.join(Key(bytes([ATTACKER_SEED, number]) * 16).peer)


def victim(cast: Cast) -> PeerId:
    """The worker that attacks go to."""
    return cast.workers[1].machine.peer


@asynccontextmanager
async def attacked() -> AsyncIterator[tuple[Cast, MemoryTransport]]:
    """A swarm that answers before and after, and keeps its memory, whatever happens between."""
    async with staged([toy_worker(span) for span in THIRDS]) as cast:
        expected = await truth(PROMPT)
        assert await cast.ask(PROMPT) == expected
        tracemalloc.start()
        try:
            yield cast, attacker(cast)
            _, peak_bytes = tracemalloc.get_traced_memory()
            assert peak_bytes < MAX_GROWTH_BYTES
        finally:
            tracemalloc.stop()
        assert await cast.ask(PROMPT) == expected
        assert cast.repairs == []


async def send(transport: MemoryTransport, peer: PeerId, data: bytes) -> Raw:
    """Open a stream of the link protocol and write to it."""
    stream: MemoryStream = await transport.open(peer, PROTOCOL, timeout_s=1.0)
    raw = Raw(stream)
    stream.write(data)
    return raw


async def is_greeted(transport: MemoryTransport, peer: PeerId) -> bool:
    """Whether a peer answers a greeting, or closes the stream."""
    raw = await send(transport, peer, HELLO)
    while not raw.data and not raw.reason:
        raw._changed.clear()
        await raw._changed.wait()
    raw.stream.abort()
    return bool(raw.data)


async def test_every_breach_closes_the_stream() -> None:
    async with attacked() as (cast, _):
        for number, data in enumerate(BREACHES.values(), 1):
            raw = await send(attacker(cast, number), victim(cast), data)
            await raw.wait_for(closed=True)


async def test_whoever_breaks_the_protocol_is_refused_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with attacked() as (cast, transport):
        raw = await send(transport, victim(cast), BREACHES["noise"])
        await raw.wait_for(closed=True)
        for _ in range(100):
            raw = await send(transport, victim(cast), HELLO)
            await raw.wait_for(closed=True)
            assert not raw.data
        other = await send(attacker(cast, 1), victim(cast), HELLO)
        await other.wait_for(9)
        async with asyncio.timeout(10):  # the first ban is over before long
            while not await is_greeted(transport, victim(cast)):
                pass
    said = [text for text in caplog.messages if "peer_misbehaved" in text]
    assert len(said) == 1
    assert f"peer={transport.peer} address=/memory/p2p/{transport.peer} count=1" in said[0]


async def test_a_breach_in_the_middle_of_an_answer_disturbs_nobody() -> None:
    async with attacked() as (cast, _):
        asking = asyncio.ensure_future(cast.ask(PROMPT))
        for number, data in enumerate(BREACHES.values(), 1):
            transport = attacker(cast, number)
            for worker in cast.workers:
                raw = await send(transport, worker.machine.peer, data)
                await raw.wait_for(closed=True)
        assert await asking == await truth(PROMPT)


async def test_streams_beyond_the_limit_are_refused() -> None:
    async with attacked() as (cast, transport):
        raws = [await send(transport, victim(cast), b"") for _ in range(1000)]
        async with asyncio.TaskGroup() as group:
            for raw in raws[16:]:
                group.create_task(raw.wait_for(closed=True))
        assert sum(not raw.reason for raw in raws) <= 16
        for raw in raws:
            raw.stream.abort()


async def test_frames_that_never_end_hold_no_more_than_their_bytes() -> None:
    async with attacked() as (cast, transport):
        begun = struct.pack(">II", MAX_FRAME_BYTES, 64)
        for number in range(64):  # each with a link of its own, most of which must be dropped
            hello = _RECORD.pack(Kind.HELLO, 0, LINK_ID_BYTES) + number.to_bytes(
                LINK_ID_BYTES, "big"
            )
            data = hello + record(0, begun, MAX_FRAME_BYTES) + bytes(1024 * 1024)
            await send(transport, victim(cast), data)


@pytest.mark.slow  # two daemons start
async def test_over_real_connections_too() -> None:
    keys = [Key(os.urandom(32)) for _ in range(2)]
    async with asyncio.timeout(60):
        near, far = [await P2pdTransport.start(key) for key in keys]
        try:
            async with LiveNode(near, keys[0]) as node:
                await far.connect(near.addresses()[0], timeout_s=5.0)
                for data in BREACHES.values():
                    raw = Raw(await far.open(near.peer, PROTOCOL, timeout_s=5.0))
                    raw.stream.write(data)
                    await raw.wait_for(closed=True)
                async with LiveNode(far, keys[1]) as honest:  # the key is not banned for ever
                    await honest.bootstrap(near.addresses())
                    await honest.serve(toy_worker(THIRDS[0]))
                    while not node.live():
                        node._directory_changed.clear()
                        await node._directory_changed.wait()
        finally:
            await far.close()
            await near.close()
