"""Shelves of made-up chunks, and streams that serve them honestly or not."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from gennode.mesh.blobs.fetch import fetch_chunks
from gennode.mesh.blobs.fetching import PROTOCOL
from gennode.mesh.blobs.server import BlobServer
from gennode.mesh.memory import MemoryNetwork, MemoryTransport
from gennode.mesh.transport import Stream
from gennode.wire.blobs import Answer, Request, decode_request, encode
from gennode.wire.frames import FrameSplitter
from gennode.wire.ids import ModelId, PeerId
from gennode.wire.manifest import CHUNK_BYTES, Manifest, ManifestFile, ModelShape

WAIT_S = 20.0
FETCHER = PeerId("fetcher")
SHAPE = ModelShape("LlamaForCausalLM", 4, 64, 4, 4, 16, 128, 256, 512)


def chunk_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def noise(count: int, size_bytes: int = 20_000, seed: int = 0) -> list[bytes]:
    """Chunks that no compressor shrinks."""
    chance = random.Random(seed)
    return [chance.randbytes(size_bytes) for _ in range(count)]


@dataclass
class MemoryShelf:
    """Chunks in memory; `reads` counts what was asked for."""

    model: ModelId
    chunks: dict[str, bytes]
    manifest_bytes: bytes = b""
    reads: list[str] = field(default_factory=list)

    def read(self, chunk: str) -> bytes | None:
        self.reads.append(chunk)
        return self.chunks.get(chunk)


def shelf_of(data: bytes, *, held: Callable[[int], bool] = lambda _number: True) -> MemoryShelf:
    """A model of one file, of which `held` chunks are here."""
    pieces = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
    names = tuple(map(chunk_hash, pieces))
    manifest = Manifest(SHAPE, (ManifestFile("model.safetensors", len(data), names),))
    here = {name: piece for number, (name, piece) in enumerate(zip(names, pieces, strict=True))
            if held(number)}  # fmt: skip
    return MemoryShelf(manifest.model, here, manifest.canonical)


@dataclass
class Market:
    """A fetcher and its sources on one memory network."""

    network: MemoryNetwork
    transport: MemoryTransport
    servers: dict[PeerId, BlobServer] = field(default_factory=dict)
    kept: dict[str, bytes] = field(default_factory=dict)
    breaches: list[tuple[PeerId, str]] = field(default_factory=list)

    async def reach(self, peer: PeerId) -> Stream:
        return await self.transport.open(peer, PROTOCOL, timeout_s=WAIT_S)

    async def fetch(self, model: ModelId, chunks: Sequence[bytes], sources: Sequence[str]) -> None:
        """Fetch these chunks into `kept`."""
        sizes = {chunk_hash(chunk): len(chunk) for chunk in chunks}
        async with asyncio.timeout(WAIT_S):
            await fetch_chunks(
                self.reach,
                [PeerId(source) for source in sources],
                model,
                sizes,
                self.kept.__setitem__,
                on_breach=lambda peer, reason: self.breaches.append((peer, reason)),
            )


@asynccontextmanager
async def market(**shelves: MemoryShelf) -> AsyncIterator[Market]:
    """A memory network with one blob server per shelf, named by the shelf's keyword."""
    async with AsyncExitStack() as stack:
        network = MemoryNetwork()
        found = Market(network, network.join(FETCHER))
        for name, shelf in shelves.items():
            transport = network.join(PeerId(name))
            server = await stack.enter_async_context(BlobServer(transport))
            server.add(shelf)
            found.servers[PeerId(name)] = server
        yield found


Lie = Callable[[Request], tuple[Answer, bytes]]


async def liar(network: MemoryNetwork, name: str, lie: Lie) -> None:
    """A peer that answers each request as `lie` says."""

    def on_stream(stream: Stream) -> None:
        splitter = FrameSplitter()

        def on_data(data: bytes) -> None:
            for header, payload in splitter.feed(data):
                stream.write(*encode(*lie(decode_request(header, payload))))

        stream.start(on_data, lambda _reason: None)

    await network.join(PeerId(name)).accept(PROTOCOL, on_stream)
