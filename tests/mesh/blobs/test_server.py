"""Serving: what is on the shelf and nothing else, to a few at a time, who must keep up."""

from __future__ import annotations

import asyncio

import pytest

from gennode.mesh.blobs import server as blob_server
from gennode.mesh.blobs.fetching import PROTOCOL
from gennode.mesh.blobs.server import MAX_REQUESTS, MAX_UPLOADS, MAX_UPLOADS_OF_ONE
from gennode.wire.blobs import (
    Absent,
    Answer,
    Busy,
    Chunk,
    GetChunk,
    GetManifest,
    ManifestPiece,
    decode_answer,
    encode,
)
from gennode.wire.frames import FrameSplitter, frame
from gennode.wire.ids import ModelId, PeerId
from gennode.wire.planes import unpack
from tests.mesh.ends import Raw
from tests.mesh.shelves import FETCHER, WAIT_S, Market, chunk_hash, market, noise, shelf_of
from tests.wire.test_planes import normal

SHELF = shelf_of(b"".join(noise(1, 50_000)))
[(CHUNK, DATA)] = SHELF.chunks.items()


async def ask(here: Market, *requests: GetChunk | GetManifest) -> list[tuple[Answer, bytes]]:
    """The answers to some requests on one stream."""
    stream = Raw(await here.reach(PeerId("a")))
    answers: list[tuple[Answer, bytes]] = []
    splitter, seen = FrameSplitter(), 0
    for request in requests:
        stream.stream.write(*encode(request))
    while len(answers) < len(requests):
        await stream.wait_for(seen + 1)
        answers += [
            (decode_answer(header), payload)
            for header, payload in splitter.feed(bytes(stream.data[seen:]))
        ]
        seen = len(stream.data)
    stream.stream.abort()
    return answers


async def test_chunks_and_manifests_come_in_the_order_of_the_requests() -> None:
    async with market(a=SHELF) as here:
        other = ModelId("00" * 32)
        answers = await ask(
            here,
            GetChunk(SHELF.model, CHUNK, 0),
            GetManifest(SHELF.model, 0),
            GetManifest(SHELF.model, 10),
            GetManifest(other, 0),
            GetChunk(other, CHUNK, 0),
            GetChunk(SHELF.model, "ef" * 32, 0),
        )
        whole = SHELF.manifest_bytes
        assert answers == [
            (Chunk(CHUNK, "raw"), DATA),
            (ManifestPiece(0, len(whole)), whole),
            (ManifestPiece(10, len(whole)), whole[10:]),
            (Absent(other), b""),
            (Absent(CHUNK), b""),
            (Absent("ef" * 32), b""),
        ]


@pytest.mark.parametrize(("link_kb_s", "form"), [(0, "raw"), (500, "planes"), (10**9, "raw")])
async def test_weights_are_packed_for_slow_links(link_kb_s: int, form: str) -> None:
    weights = shelf_of(normal("bf16"))
    [(chunk, data)] = weights.chunks.items()
    async with market(a=weights) as here:
        [(answer, payload)] = await ask(here, GetChunk(weights.model, chunk, link_kb_s))
        assert answer == Chunk(chunk, form)  # type: ignore[arg-type]
        assert (unpack(payload, len(data)) if form == "planes" else payload) == data
        assert here.servers[PeerId("a")].sent_bytes == len(payload)


async def test_a_model_that_was_removed_is_served_no_more() -> None:
    async with market(a=SHELF) as here:
        server = here.servers[PeerId("a")]
        server.add(shelf_of(b"another"))
        server.remove(SHELF.model)
        [(answer, _)] = await ask(here, GetManifest(SHELF.model, 0))
        assert answer == Absent(SHELF.model)


async def test_one_peer_does_not_take_all_places() -> None:
    async with market(a=SHELF) as here:
        held = [Raw(await here.reach(PeerId("a"))) for _ in range(MAX_UPLOADS_OF_ONE)]
        turned_away = Raw(await here.reach(PeerId("a")))
        await turned_away.wait_for(closed=True)
        [(header, _)] = FrameSplitter().feed(bytes(turned_away.data))
        assert decode_answer(header) == Busy()
        server = here.servers[PeerId("a")]
        held[0].stream.abort()
        await held[0].wait_for(closed=True)
        async with asyncio.timeout(WAIT_S):
            while server._uploads[FETCHER] == MAX_UPLOADS_OF_ONE:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert [answer for answer, _ in await ask(here, GetChunk(SHELF.model, CHUNK, 0))]


async def test_there_are_so_many_places_and_no_more() -> None:
    async with market(a=SHELF) as here:
        streams = []
        for number in range(MAX_UPLOADS + 3):
            transport = here.network.join(PeerId(f"fetcher {number}"))
            opened = await transport.open(PeerId("a"), PROTOCOL, timeout_s=WAIT_S)
            streams.append(Raw(opened))
        for stream in streams[MAX_UPLOADS:]:
            await stream.wait_for(closed=True)
        assert not any(stream.reason for stream in streams[:MAX_UPLOADS])


@pytest.mark.parametrize(
    "bad",
    [
        b"\xff" * 8,
        b"".join(map(bytes, frame(b"\xc1garbage"))),
        b"".join(map(bytes, encode(GetManifest(SHELF.model, 0), b"payload"))),
        b"".join(map(bytes, encode(Busy()))),
        b"".join(map(bytes, encode(GetChunk(SHELF.model, CHUNK, 0)))) * (MAX_REQUESTS + 8),
    ],
    ids=["length", "header", "payload", "an answer", "too many"],
)
async def test_bad_manners_end_the_stream(bad: bytes) -> None:
    async with market(a=SHELF) as here:
        stream = Raw(await here.reach(PeerId("a")))
        stream.stream.write(bad)
        await stream.wait_for(closed=True)
        assert [answer for answer, _ in await ask(here, GetManifest(SHELF.model, 0))]


async def test_a_place_is_not_held_by_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_server, "IDLE_LIMIT_S", 0.01)
    async with market(a=SHELF) as here:
        stream = Raw(await here.reach(PeerId("a")))
        stream.stream.write(encode(GetManifest(SHELF.model, 0))[0][:5])  # and no more of it
        await stream.wait_for(closed=True)


async def test_a_slow_reader_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_server, "DRAIN_LIMIT_S", 0.05)
    big = shelf_of(b"".join(noise(2, 4 * 1024 * 1024)))
    async with market(a=big) as here:
        stream = await here.reach(PeerId("a"))
        reader = Raw(stream)
        stream.pause(True)
        for chunk in [*big.chunks, *big.chunks]:
            stream.write(*encode(GetChunk(big.model, chunk, 0)))
        async with asyncio.timeout(WAIT_S):
            while here.servers[PeerId("a")]._streams:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert not reader.data
        assert stream.unsent_bytes() <= 3 * 4 * 1024 * 1024


async def test_a_shelf_that_can_not_be_read_costs_the_chunk_and_not_the_node() -> None:
    class Broken:
        model = SHELF.model
        manifest_bytes = SHELF.manifest_bytes

        def read(self, chunk: str) -> bytes | None:
            raise OSError(5, "the disk is dying")

    async with market(a=SHELF) as here:
        here.servers[PeerId("a")].add(Broken())
        answers = await ask(here, GetChunk(SHELF.model, CHUNK, 0), GetManifest(SHELF.model, 0))
        assert answers[0] == (Absent(CHUNK), b"")
        assert chunk_hash(DATA) == CHUNK
        assert isinstance(answers[1][0], ManifestPiece)


async def test_a_chunk_that_rotted_on_the_disk_is_not_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Rotten:
        model = SHELF.model
        manifest_bytes = SHELF.manifest_bytes

        def read(self, chunk: str) -> bytes | None:
            return bytes([DATA[0] ^ 1]) + DATA[1:]

    async with market(a=SHELF) as here:
        here.servers[PeerId("a")].add(Rotten())
        [answer] = await ask(here, GetChunk(SHELF.model, CHUNK, 0))
        assert answer == (Absent(CHUNK), b"")
    assert f"chunk_damaged model={SHELF.model} chunk={CHUNK}" in caplog.text
