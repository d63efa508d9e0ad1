"""Attacks on the passing on of weights: bombs, floods, lies; all repelled, memory bounded."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gennode.errors import NetworkError, RemoteError
from gennode.mesh.blobs import fetching as blobs
from gennode.mesh.blobs.fetching import MAX_SOURCES, PROTOCOL
from gennode.mesh.transport import Stream
from gennode.wire.blobs import (
    MAX_ANSWER_BYTES,
    Absent,
    Answer,
    Chunk,
    GetChunk,
    Request,
    decode_answer,
    decode_request,
    encode,
)
from gennode.wire.frames import FrameSplitter
from gennode.wire.ids import ModelId, PeerId
from gennode.wire.manifest import CHUNK_BYTES
from tests.mesh.ends import Raw
from tests.mesh.shelves import WAIT_S, Lie, MemoryShelf, chunk_hash, liar, market, noise, shelf_of

MODEL = ModelId("ab" * 32)
CHUNKS = noise(12)
ALL = {chunk_hash(chunk): chunk for chunk in CHUNKS}
BOMB = zstandard.ZstdCompressor().compress(bytes(1 << 28))
MEMORY_LIMIT_BYTES = 64 * 1024 * 1024


def honest() -> MemoryShelf:
    return MemoryShelf(MODEL, dict(ALL))


@given(st.binary(max_size=400))
def test_garbage_is_a_breach_or_a_message(header: bytes) -> None:
    for decode in (decode_answer, lambda data: decode_request(data, b"")):
        try:
            decode(header)
        except RemoteError:
            continue


def _bomb(request: Request) -> tuple[Answer, bytes]:
    """A plane of 256 MiB in a few KB."""
    assert isinstance(request, GetChunk)
    head = struct.pack("<BBII", 2, 1, len(BOMB), 10_000)
    return Chunk(request.chunk, "planes"), head + BOMB + bytes(10_000)


def _longer(request: Request) -> tuple[Answer, bytes]:
    assert isinstance(request, GetChunk)
    return Chunk(request.chunk, "raw"), ALL[request.chunk] + bytes(CHUNK_BYTES - 20_000)


def _another(request: Request) -> tuple[Answer, bytes]:
    """A right chunk in the place of another one that was asked for."""
    assert isinstance(request, GetChunk)
    wrong = next(data for name, data in ALL.items() if name != request.chunk)
    return Chunk(request.chunk, "raw"), wrong


@pytest.mark.parametrize("lie", [_bomb, _longer, _another])
async def test_lies_are_found_before_they_cost_memory(lie: Lie) -> None:
    async with market(honest=honest()) as here:
        await liar(here.network, "liar", lie)
        tracemalloc.start()
        try:
            await here.fetch(MODEL, CHUNKS, ["liar", "honest"])
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert here.kept == ALL
        assert [peer for peer, _ in here.breaches] == ["liar"]
        assert peak_bytes < MEMORY_LIMIT_BYTES


async def test_a_crowd_of_liars_does_not_keep_the_honest_one_away() -> None:
    async with market(honest=honest()) as here:
        names = [f"liar {number}" for number in range(MAX_SOURCES - 1)]
        for name in names:
            await liar(here.network, name, _another)
        await here.fetch(MODEL, CHUNKS, [*names, "honest"])
        assert here.kept == ALL
        assert sorted(peer for peer, _ in here.breaches) == sorted(names)


def _flooding(stream: Stream) -> None:
    """Sends answers without end, asked or not."""
    answer = b"".join(map(bytes, encode(Absent("ef" * 32), bytes(100_000))))

    def flood() -> None:
        for _ in range(10):
            stream.write(answer)
        if not ended:
            asyncio.get_running_loop().call_soon(flood)

    ended: list[str] = []
    stream.start(lambda _data: None, ended.append)
    flood()


def _huge(stream: Stream) -> None:
    """Claims a frame of two gigabytes."""
    stream.start(lambda _data: None, lambda _reason: None)
    stream.write(struct.pack(">II", 1 << 31, 16) + bytes(1000))


def _slightly_huge(stream: Stream) -> None:
    stream.start(lambda _data: None, lambda _reason: None)
    stream.write(struct.pack(">II", MAX_ANSWER_BYTES + 1, 16))


@pytest.mark.parametrize("attack", [_flooding, _huge, _slightly_huge])
async def test_floods_and_oversize_are_cut(attack: object) -> None:
    async with market(honest=honest()) as here:
        await here.network.join(PeerId("evil")).accept(PROTOCOL, attack)  # type: ignore[arg-type]
        tracemalloc.start()
        try:
            await here.fetch(MODEL, CHUNKS, ["evil", "honest"])
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert here.kept == ALL
        assert [peer for peer, _ in here.breaches] == ["evil"]
        assert peak_bytes < MEMORY_LIMIT_BYTES


async def test_a_source_that_trickles_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "CHUNK_TIMEOUT_S", 0.0)

    def trickle(stream: Stream) -> None:
        stream.start(lambda _data: stream.write(b"\0"), lambda _reason: None)

    async with market() as here:
        await here.network.join(PeerId("slow")).accept(PROTOCOL, trickle)
        with pytest.raises(NetworkError, match="12 of 12"):
            await here.fetch(MODEL, CHUNKS, ["slow"])


async def test_a_stream_that_is_cut_in_the_middle_of_a_chunk_costs_nothing() -> None:
    def cut(stream: Stream) -> None:
        splitter = FrameSplitter()

        def on_data(data: bytes) -> None:
            for header, _ in splitter.feed(data):
                request = decode_request(header, b"")
                assert isinstance(request, GetChunk)
                answer = b"".join(
                    map(bytes, encode(Chunk(request.chunk, "raw"), ALL[request.chunk]))
                )
                stream.write(answer[: len(answer) // 2])
            stream.close()

        stream.start(on_data, lambda _reason: None)

    async with market(honest=honest()) as here:
        await here.network.join(PeerId("cut")).accept(PROTOCOL, cut)
        await here.fetch(MODEL, CHUNKS, ["cut", "honest"])
        assert here.kept == ALL
        assert here.breaches == []  # bad luck is no lie


async def test_readers_who_never_read_hold_little_of_our_memory() -> None:
    big = shelf_of(b"".join(noise(1, CHUNK_BYTES)))
    [chunk] = big.chunks
    async with market(a=big) as here:
        tracemalloc.start()
        try:
            readers = []
            for number in range(MAX_SOURCES * 2):
                transport = here.network.join(PeerId(f"reader {number}"))
                stream = await transport.open(PeerId("a"), PROTOCOL, timeout_s=WAIT_S)
                stream.pause(True)
                readers.append(Raw(stream))
                for _ in range(8):
                    stream.write(*encode(GetChunk(big.model, chunk, 0)))
            async with asyncio.timeout(WAIT_S):
                while here.servers[PeerId("a")].sent_bytes < CHUNK_BYTES * 8:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            held_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # a memory stream keeps what was sent: two chunks each, and no third for who reads none
        assert held_bytes < 8 * 4 * CHUNK_BYTES
        assert hashlib.sha256(big.chunks[chunk]).hexdigest() == chunk
