"""A span's weights from the swarm: just what it needs, from anyone who has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from gennode.engine.checkpoint.layout import SINGLE
from gennode.engine.checkpoint.shelf import FolderShelf
from gennode.engine.checkpoint.weights import ModelFolder, open_model
from gennode.engine.folders import Folder
from gennode.engine.gguf.folder import open_gguf
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.llama.shard import LlamaShard
from gennode.errors import ModelError, NetworkError
from gennode.mesh.memory import MemoryNetwork
from gennode.node.fetch import (
    Sharing,
    fetch_manifest,
    fetch_span,
    find_sources,
    is_model_id,
    weights_folder,
    weights_key,
)
from gennode.node.live import LiveNode
from gennode.wire.blobs import Chunk, GetChunk, Request
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.manifest import CHUNK_BYTES
from gennode.wire.signing import Key
from tests.engine.gguf.making import make
from tests.engine.shards import LAYERS, write_single
from tests.mesh.shelves import SHAPE, liar

WAIT_S = 60.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_model(write_single(tmp_path_factory.mktemp("whole")))


@dataclass
class Swarm:
    """Nodes on one memory network."""

    stack: AsyncExitStack
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    count: int = 0

    async def node(self) -> tuple[LiveNode, Sharing]:
        """A fresh node that shares nothing yet."""
        self.count += 1
        key = Key(bytes([self.count]) * 32)
        transport = self.network.join(key.peer)
        self.stack.push_async_callback(transport.close)
        node = await self.stack.enter_async_context(LiveNode(transport, key))
        return node, await self.stack.enter_async_context(Sharing(node))

    async def host(self, folder: Folder) -> PeerId:
        """A node that shares a folder, once its records are out."""
        node, shared = await self.node()
        shared.add(folder.shelf, folder.whole_layers())
        keys = [weights_key(folder.manifest.model, layer) for layer in folder.whole_layers()]
        async with asyncio.timeout(WAIT_S):
            peer, known = node.machine.peer, self.network.providers
            while not all(peer in known(key) for key in keys):  # noqa: ASYNC110
                await asyncio.sleep(0)
        return node.machine.peer


@asynccontextmanager
async def swarm() -> AsyncIterator[Swarm]:
    async with asyncio.timeout(WAIT_S), AsyncExitStack() as stack:
        yield Swarm(stack)


async def test_a_third_fetches_from_a_second_what_it_fetched_from_a_first(
    whole: ModelFolder, tmp_path: Path
) -> None:
    model, span = whole.manifest.model, Span(1, 3)
    async with swarm() as here:
        first = await here.host(whole)
        node, _ = await here.node()
        path = await fetch_span(node, model, span, folder=tmp_path / "second")
        here.network.crash(first)
        second = await here.host(open_model(path))
        node, _ = await here.node()
        path = await fetch_span(node, model, span, folder=tmp_path / "third")
        assert await find_sources(node, model, span) == [second]
        LlamaShard(open_model(path)).load(span)
        with pytest.raises(NetworkError, match="none of"):
            await fetch_span(node, model, Span(0, LAYERS), folder=tmp_path / "third")


async def test_an_owner_fetches_what_it_needs(whole: ModelFolder, tmp_path: Path) -> None:
    async with swarm() as here:
        await here.host(whole)
        node, _ = await here.node()
        path = await fetch_span(
            node, whole.manifest.model, None, owner=True, folder=tmp_path / "owner"
        )
        folder = open_model(path)
        assert LlamaOwner(folder).tokenize("add 2 3 =") == LlamaOwner(whole).tokenize("add 2 3 =")
        assert len(folder.whole_layers()) < LAYERS


async def test_a_liar_is_told_of_once_and_others_make_up_for_it(
    whole: ModelFolder, tmp_path: Path
) -> None:
    def lie(request: Request) -> tuple[Chunk, bytes]:
        assert isinstance(request, GetChunk)
        return Chunk(request.chunk, "raw"), b"not at all"

    model = whole.manifest.model
    breaches = []
    async with swarm() as here:
        await liar(here.network, "liar", lie)
        for layer in range(LAYERS):
            here.network.providers(weights_key(model, layer))[PeerId("liar")] = None
        await here.host(whole)
        node, _ = await here.node()
        manifest = whole.manifest.canonical
        folder = tmp_path / "fetched"
        folder.mkdir()
        (folder / "manifest.msgpack").write_bytes(manifest)  # the liar would not get further
        assert (await find_sources(node, model, Span(0, 1)))[0] == "liar"
        await fetch_span(
            node, model, Span(0, 2), folder=folder,
            on_breach=lambda peer, _reason: breaches.append(peer),
        )  # fmt: skip
        assert breaches == ["liar"]
        assert node.links.is_banned(PeerId("liar"))
        assert "liar" not in await find_sources(node, model, Span(0, 1))
        assert open_model(folder).whole_layers()[:2] == [0, 1]


async def test_a_manifest_of_another_model_is_passed_over(
    whole: ModelFolder, tmp_path: Path
) -> None:
    async with swarm() as here:
        await here.host(whole)
        node, _ = await here.node()
        stranger = ModelId("ab" * 32)
        with pytest.raises(NetworkError, match="no peer that we know") as caught:
            await fetch_manifest(node, stranger, folder=tmp_path)
        assert "--bootstrap" in caught.value.hint
        assert not list(tmp_path.iterdir())


async def test_an_older_version_on_this_disk_saves_the_way(
    whole: ModelFolder, tmp_path: Path
) -> None:
    newer_path = write_single(tmp_path / "newer")
    weights = bytearray((newer_path / SINGLE).read_bytes())
    weights[-1] ^= 1  # in the head: the last chunk alone differs
    (newer_path / SINGLE).write_bytes(weights)
    newer = open_model(newer_path)
    assert newer.manifest.model != whole.manifest.model
    async with swarm() as here:
        node, shared = await here.node()
        shared.add(newer.shelf, range(LAYERS))
        other, _ = await here.node()
        span = Span(0, LAYERS)
        sources = [node.machine.peer]
        here.network.providers(weights_key(newer.manifest.model, 0))[sources[0]] = None
        path = await fetch_span(
            other, newer.manifest.model, span, owner=True,
            folder=tmp_path / "here", local=[whole.shelf],
        )  # fmt: skip
        assert (path / SINGLE).read_bytes() == bytes(weights)
        assert shared._server.sent_bytes <= CHUNK_BYTES + 4096


async def test_a_fetch_that_was_cut_goes_on_where_it_was(
    whole: ModelFolder, tmp_path: Path
) -> None:
    model, span, sent = whole.manifest.model, Span(0, LAYERS), 0

    async with swarm() as here:
        host = await here.host(whole)
        node, _ = await here.node()
        done = asyncio.Event()
        served = 0

        def count(
            title: str, *, unit: str = ""
        ) -> AbstractContextManager[Callable[[int, int], None]]:
            def report(done_bytes: int, _total: int) -> None:
                nonlocal served
                served = max(served, done_bytes)
                if done_bytes > 2 * CHUNK_BYTES:
                    loop.call_soon_threadsafe(here.network.crash, host)
                    loop.call_soon_threadsafe(done.set)

            return nullcontext(report)

        loop = asyncio.get_running_loop()
        with pytest.raises(NetworkError, match="pieces"):
            await fetch_span(node, model, span, folder=tmp_path, progress=count)
        assert done.is_set()
        (tmp_path / "verified.msgpack").unlink(missing_ok=True)  # as after a kill
        node, shared = await here.node()
        shared.add(whole.shelf, range(LAYERS))
        here.network.providers(weights_key(model, 0))[node.machine.peer] = None
        other, _ = await here.node()
        await fetch_span(other, model, span, folder=tmp_path)
        sent = shared._server.sent_bytes
        assert open_model(tmp_path).whole_layers() == list(range(LAYERS))
        assert sent < sum(file.size_bytes for file in whole.manifest.files) - 2 * CHUNK_BYTES


async def test_a_model_that_makes_no_sense_is_refused(whole: ModelFolder, tmp_path: Path) -> None:
    odd = msgspec.structs.replace(whole.manifest, shape=SHAPE)
    async with swarm() as here:
        node, shared = await here.node()
        shared.add(FolderShelf(whole.path, odd), [])
        here.network.providers(weights_key(odd.model, 0))[node.machine.peer] = None
        other, _ = await here.node()
        with pytest.raises(ModelError, match="disagree"):
            await fetch_span(other, odd.model, Span(0, 1), folder=tmp_path)


async def test_a_gguf_file_is_known_to_peers_and_not_fetched_in_parts(tmp_path: Path) -> None:
    make(tmp_path)
    folder = open_gguf(tmp_path / "gguf" / "f16")
    model, path = folder.manifest.model, tmp_path / "fetched"
    async with swarm() as here:
        await here.host(folder)
        node, _ = await here.node()
        assert await fetch_manifest(node, model, folder=path) == folder.manifest
        for span, owner in ((Span(0, 1), False), (None, True)):
            with pytest.raises(ModelError, match="don't pass on") as refused:
                await fetch_span(node, model, span, owner=owner, folder=path)
            assert "model.gguf, tokenizer.json" in refused.value.hint
    assert not path.exists()


def test_ids_and_folders() -> None:
    model = ModelId("ab" * 32)
    assert is_model_id(model)
    assert not is_model_id("gennode-small")
    assert not is_model_id("AB" * 32)
    assert not is_model_id(model + "\n")
    assert weights_folder(model).name == model
    assert weights_key(model, 1) != weights_key(model, 11)
