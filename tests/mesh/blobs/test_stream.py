"""Asking one source: its manifest in pieces, its pace, and what it may not send."""

from __future__ import annotations

import asyncio

import pytest

from gennode.errors import NetworkError, RemoteError
from gennode.mesh.blobs import stream as blob_stream
from gennode.mesh.blobs.stream import BlobStream, ask_manifest
from gennode.wire.blobs import (
    PIECE_BYTES,
    Absent,
    Answer,
    Busy,
    Chunk,
    GetChunk,
    GetManifest,
    ManifestPiece,
    Request,
)
from gennode.wire.ids import ModelId, PeerId
from gennode.wire.manifest import MAX_MANIFEST_BYTES, Manifest, ManifestFile, parse_manifest
from tests.mesh.shelves import SHAPE, WAIT_S, Lie, MemoryShelf, liar, market, shelf_of

SHELF = shelf_of(bytes(5_000_000))


async def test_a_manifest_larger_than_a_piece_comes_whole() -> None:
    files = [f"file{number:04}" for number in range(4000)]
    hashes = ("ab" * 32,) * 5
    manifest = Manifest(SHAPE, tuple(ManifestFile(name, 20_000_000, hashes) for name in files))
    assert len(manifest.canonical) > PIECE_BYTES
    shelf = MemoryShelf(manifest.model, {}, manifest.canonical)
    async with market(a=shelf) as here, asyncio.timeout(WAIT_S):
        assert await ask_manifest(await here.reach(PeerId("a")), manifest.model) == manifest


async def test_who_does_not_have_it_says_so() -> None:
    async with market(a=SHELF) as here:
        assert await ask_manifest(await here.reach(PeerId("a")), ModelId("00" * 32)) is None
        assert await ask_manifest(await here.reach(PeerId("a")), SHELF.model) == parse_manifest(
            SHELF.manifest_bytes, SHELF.model
        )


def _other(request: Request) -> tuple[Answer, bytes]:
    other = shelf_of(b"another model").manifest_bytes
    return ManifestPiece(0, len(other)), other


def _endless(request: Request) -> tuple[Answer, bytes]:
    assert isinstance(request, GetManifest)
    return ManifestPiece(request.offset, MAX_MANIFEST_BYTES), bytes(PIECE_BYTES)


def _empty(request: Request) -> tuple[Answer, bytes]:
    return ManifestPiece(0, 100), b""


def _elsewhere(request: Request) -> tuple[Answer, bytes]:
    return ManifestPiece(7, 100), b"piece"


def _chunk(request: Request) -> tuple[Answer, bytes]:
    return Chunk("ab" * 32, "raw"), b"chunk"


@pytest.mark.parametrize("lie", [_other, _endless, _empty, _elsewhere, _chunk])
async def test_what_is_no_such_manifest_is_a_breach(lie: Lie) -> None:
    async with market() as here:
        await liar(here.network, "liar", lie)
        with pytest.raises(RemoteError):
            await ask_manifest(await here.reach(PeerId("liar")), SHELF.model)


async def test_a_busy_source_is_no_breach() -> None:
    async with market() as here:
        await liar(here.network, "busy", lambda _request: (Busy(), b""))
        assert await ask_manifest(await here.reach(PeerId("busy")), SHELF.model) is None


async def test_a_silent_source_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_stream, "MANIFEST_TIMEOUT_S", 0.01)
    async with market() as here:
        await here.network.join(PeerId("mute")).accept(
            "/gennode/blob/1", lambda stream: stream.start(lambda _: None, lambda _: None)
        )
        with pytest.raises(NetworkError, match="too long"):
            await ask_manifest(await here.reach(PeerId("mute")), SHELF.model)


async def test_an_answer_that_nobody_asked_for_ends_the_stream() -> None:
    async with market() as here:
        sent: list[Answer] = [Absent("ab" * 32)] * 3
        await liar(here.network, "eager", lambda _request: (sent.pop(), b""))
        woken = asyncio.Event()
        source = BlobStream(await here.reach(PeerId("eager")), woken.set)
        source._unanswered = -1  # as if it had not been asked
        source.send(GetChunk(SHELF.model, "ab" * 32, 0))
        async with asyncio.timeout(WAIT_S):
            await woken.wait()
        with pytest.raises(RemoteError, match="nobody asked"):
            source.take()


async def test_the_pace_of_a_source_is_measured_on_large_answers() -> None:
    async with market() as here:
        big = bytes(1024 * 1024)
        await liar(here.network, "a", lambda _request: (Absent("ab" * 32), big))
        woken = asyncio.Event()
        source = BlobStream(await here.reach(PeerId("a")), woken.set)
        assert source.link_kb_s == 0
        source._rate(10, 1.0)
        assert source.link_kb_s == 0
        source._rate(len(big), 0.5)
        assert source.link_kb_s == round(len(big) / 1000 / 0.5)
        source.abort()
