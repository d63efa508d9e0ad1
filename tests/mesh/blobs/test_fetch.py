"""Chunks from several peers: all of them, right, from whoever has them, whatever others do."""

from __future__ import annotations

import asyncio

import pytest

from gennode.errors import NetworkError, ResourceError
from gennode.mesh.blobs.fetch import fetch_chunks
from gennode.wire.blobs import Absent, Chunk, GetChunk, Request
from gennode.wire.ids import ModelId, PeerId
from tests.mesh.shelves import Lie, MemoryShelf, chunk_hash, liar, market, noise

MODEL = ModelId("ab" * 32)
CHUNKS = noise(24)
ALL = {chunk_hash(chunk): chunk for chunk in CHUNKS}


def shelf(*numbers: int) -> MemoryShelf:
    """Some of the chunks; all of them without numbers."""
    chosen = [CHUNKS[number] for number in numbers] if numbers else CHUNKS
    return MemoryShelf(MODEL, {chunk_hash(chunk): chunk for chunk in chosen})


@pytest.mark.parametrize("count", [1, 2, 4])
async def test_all_chunks_come_once_from_any_number_of_sources(count: int) -> None:
    shelves = {f"s{number}": shelf() for number in range(count)}
    async with market(**shelves) as here:
        await here.fetch(MODEL, CHUNKS, list(shelves))
        assert here.kept == ALL
        assert here.breaches == []
        reads = [len(one.reads) for one in shelves.values()]
        assert min(reads) > 0
        assert sum(reads) <= len(CHUNKS) + count  # a steal at the end, at most


async def test_sources_that_hold_a_part_each_make_a_whole() -> None:
    async with market(a=shelf(*range(10)), b=shelf(*range(8, 24))) as here:
        await here.fetch(MODEL, CHUNKS, ["a", "b"])
        assert here.kept == ALL


async def test_what_nobody_has_ends_with_a_hint_and_the_rest_is_kept() -> None:
    async with market(a=shelf(*range(10)), b=shelf(*range(5))) as here:
        with pytest.raises(NetworkError, match="14 of 24") as caught:
            await here.fetch(MODEL, CHUNKS, ["a", "b", "nobody"])
        assert "kept" in caught.value.hint
        assert len(here.kept) == 10


async def test_a_source_of_another_model_has_nothing() -> None:
    async with market(a=MemoryShelf(ModelId("cd" * 32), dict(ALL)), b=shelf()) as here:
        await here.fetch(MODEL, CHUNKS, ["a", "b"])
        assert here.kept == ALL


def _flip(request: Request) -> tuple[Chunk, bytes]:
    assert isinstance(request, GetChunk)
    chunk = bytearray(ALL[request.chunk])
    chunk[7] ^= 1
    return Chunk(request.chunk, "raw"), bytes(chunk)


def _garble(request: Request) -> tuple[Chunk, bytes]:
    assert isinstance(request, GetChunk)
    return Chunk(request.chunk, "planes"), b"\x02\xff garbage"


def _swap(request: Request) -> tuple[Absent, bytes]:
    return Absent("ef" * 32), b""


@pytest.mark.parametrize("lie", [_flip, _garble, _swap])
async def test_a_liar_is_dropped_and_reported_once(lie: Lie) -> None:
    async with market(honest=shelf()) as here:
        await liar(here.network, "liar", lie)
        await here.fetch(MODEL, CHUNKS, ["liar", "honest"])
        assert here.kept == ALL
        assert [peer for peer, _ in here.breaches] == ["liar"]


async def test_liars_alone_give_nothing() -> None:
    async with market() as here:
        await liar(here.network, "liar", _flip)
        with pytest.raises(NetworkError):
            await here.fetch(MODEL, CHUNKS, ["liar"])
        assert here.kept == {}


async def test_a_source_that_vanishes_is_made_up_for() -> None:
    async with market(a=shelf(), b=shelf()) as here:

        def crash(chunk: str, data: bytes) -> None:
            here.kept[chunk] = data
            if len(here.kept) == 4:
                loop.call_soon_threadsafe(here.network.crash, PeerId("a"))

        loop = asyncio.get_running_loop()
        sizes = {name: len(chunk) for name, chunk in ALL.items()}
        sources = [PeerId("a"), PeerId("b")]
        async with asyncio.timeout(20):
            await fetch_chunks(here.reach, sources, MODEL, sizes, crash)
        assert here.kept == ALL


async def test_a_full_disk_ends_the_fetch() -> None:
    def full(_chunk: str, _data: bytes) -> None:
        raise ResourceError("full", hint="free some")

    async with market(a=shelf()) as here:
        sizes = {name: len(chunk) for name, chunk in ALL.items()}
        with pytest.raises(ResourceError, match="full"):
            await fetch_chunks(here.reach, [PeerId("a")], MODEL, sizes, full)
