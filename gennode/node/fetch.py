"""Weights from the swarm: who has them, fetching just what a span needs, and passing them on."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import platformdirs

from gennode.engine.checkpoint.layout import needed
from gennode.engine.checkpoint.shelf import MANIFEST, PartialFolder
from gennode.engine.gguf.folder import SUFFIX as GGUF_SUFFIX
from gennode.errors import GennodeError, ModelError, NetworkError, RemoteError
from gennode.mesh.blobs.fetch import OnBreach, fetch_chunks
from gennode.mesh.blobs.fetching import MAX_SOURCES, PROTOCOL
from gennode.mesh.blobs.server import BlobServer, Shelf
from gennode.mesh.blobs.stream import ask_manifest
from gennode.mesh.transport import Stream
from gennode.node.live import LiveNode
from gennode.node.meeting import rendezvous_key
from gennode.node.progress import ShowProgress, unwatched
from gennode.wire.announcement import Announcement
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.manifest import Manifest

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 10.0
FIND_TIMEOUT_S = 10.0
PROVIDERS_WANTED = 16
PROVIDE_INTERVAL_S = 3600.0  # the DHT forgets after a day
PROVIDE_RETRY_S = 60.0
MAX_BATCHES = 4  # of sources, the next asked when the first fail us
ROUNDS = 12  # four show what is needed: config and index, a header's start, its rest, the tensors


def is_model_id(text: str) -> bool:
    """Whether a model is named by the hash of its manifest, and so can come from peers."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def weights_folder(model: ModelId) -> Path:
    """Where a model's weights from peers are kept, for all nodes of this user."""
    return platformdirs.user_cache_path("gennode") / "weights" / model


def weights_key(model: ModelId, layer: int) -> bytes:
    """The DHT key under which peers with a layer's weights can be found (32 bytes)."""
    return hashlib.sha256(f"gennode/weights/{model}/{layer}".encode()).digest()


def comes_in_parts(manifest: Manifest) -> bool:
    """Whether a span of a model's layers can be fetched without all others: not of GGUF."""
    return not any(file.name.endswith(GGUF_SUFFIX) for file in manifest.files)


async def fetch_span(
    node: LiveNode,
    model: ModelId,
    span: Span | None,
    *,
    owner: bool = False,
    folder: Path,
    progress: ShowProgress = unwatched,
    local: Sequence[Shelf] = (),
    on_breach: OnBreach = lambda _peer, _reason: None,
) -> Path:
    """Fetch what a span of layers, or an owner, needs of a model into `folder`; that folder.

    What is there already is kept, and hashed again if it may have changed. Chunks that `local`
    shelves hold, such as those of an older version, are copied from there. NetworkError if
    peers lack some of it, ResourceError if the disk does, ModelError if the model makes no
    sense. `on_breach` is told once of each source that lied.
    """
    sources = await find_sources(node, model, span)
    manifest = await fetch_manifest(node, model, folder=folder, sources=sources)
    if not comes_in_parts(manifest):
        names = ", ".join(sorted(file.name for file in manifest.files))
        raise ModelError(f"model {model[:12]}… is a GGUF file, which peers don't pass on in parts",
                         hint=f"get {names:.200} elsewhere, and give their folder")  # fmt: skip
    partial = await asyncio.to_thread(PartialFolder.create, folder, manifest)
    starts = range(0, max(1, len(sources)), MAX_SOURCES)
    batches = [sources[start : start + MAX_SOURCES] for start in starts][:MAX_BATCHES]
    liars: set[PeerId] = set()

    def breach(peer: PeerId, reason: str) -> None:
        liars.add(peer)
        node.links.report(peer, reason)
        on_breach(peer, reason)

    for _ in range(ROUNDS):
        positions = await asyncio.to_thread(needed, manifest, partial.read_bytes, span, owner=owner)
        if positions <= partial.held:
            await asyncio.to_thread(partial.flush)
            return folder
        missing = await asyncio.to_thread(partial.want, positions)
        missing = await asyncio.to_thread(_copy, missing, local, partial)
        if not missing:
            continue  # what was on the disk shows what else is needed
        asked, *others = batches
        honest = [peer for peer in asked if peer not in liars]
        with progress("fetching weights", unit="bytes") as report:
            keep = _counting(partial.keep, sum(missing.values()), report)
            try:
                await fetch_chunks(
                    lambda peer: _reach(node, peer), honest, model, missing, keep,
                    on_breach=breach,
                )  # fmt: skip
            except NetworkError:
                if not others:
                    raise
                batches = others
            finally:
                await asyncio.shield(asyncio.to_thread(partial.flush))
    raise RemoteError(f"model {model} needs ever more files", hint="don't use this model")


async def fetch_manifest(
    node: LiveNode, model: ModelId, *, folder: Path, sources: Sequence[PeerId] | None = None
) -> Manifest:
    """A model's manifest, from `folder` if it is there, else from peers; NetworkError if none
    has it."""
    if (folder / MANIFEST).exists():
        return (await asyncio.to_thread(PartialFolder.open, folder, model)).manifest
    if sources is None:
        sources = await find_sources(node, model, None)
    for peer in sources:
        try:
            found = await ask_manifest(await _reach(node, peer), model)
        except NetworkError as error:
            log.info("source_lost peer=%s why=%s", peer, error)
        except RemoteError as error:
            node.links.report(peer, str(error))
        else:
            if found is not None:
                return found
    raise NetworkError(
        f"no peer that we know has the model {model[:12]}… ({len(sources)} were asked)",
        hint="check the id, and that --bootstrap leads to a swarm that serves this model",
    )


async def find_sources(node: LiveNode, model: ModelId, span: Span | None) -> list[PeerId]:
    """Whom to ask for weights, best first: who announces the span's layers, who announces the
    model, then who left a record in the DHT."""
    own = node.machine.peer
    hosts = [seen for seen in node.live() if _hosted(seen, model) and seen.peer != own]
    hosts.sort(key=lambda seen: -_overlap(_hosted(seen, model), span))
    found = dict.fromkeys(seen.peer for seen in hosts)
    for key in (weights_key(model, span.start if span else 0), rendezvous_key(model)):
        if len(found) >= MAX_SOURCES:
            break
        try:
            providers = await node.transport.find_providers(
                key, limit=PROVIDERS_WANTED, timeout_s=FIND_TIMEOUT_S
            )
        except NetworkError as error:
            log.info("rendezvous: %s", error)
            continue
        found |= dict.fromkeys(peer for peer in providers if peer != own)
    return [peer for peer in found if not node.links.is_banned(peer)]


class Sharing:
    """Passes weights on to other peers while its context lasts. An async context manager."""

    def __init__(self, node: LiveNode) -> None:
        self._node = node
        self._server = BlobServer(
            node.transport, is_banned=node.links.is_banned, on_breach=node.links.report
        )
        self._records: dict[ModelId, asyncio.Task[None]] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._server)
            self._group = await stack.enter_async_context(asyncio.TaskGroup())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for model in list(self._records):
            self.remove(model)
        await self._stack.__aexit__(None, None, None)  # the body's error goes on as it is

    def add(self, shelf: Shelf, layers: Iterable[int]) -> None:
        """Serve a model's chunks; `layers` are those whose weights are all here."""
        self._server.add(shelf)
        if (known := self._records.pop(shelf.model, None)) is not None:
            known.cancel()
        keys = [weights_key(shelf.model, layer) for layer in layers]
        self._records[shelf.model] = self._group.create_task(self._keep_records(keys))

    def remove(self, model: ModelId) -> None:
        """Serve a model no more; its records in the DHT run out by themselves."""
        self._server.remove(model)
        if (known := self._records.pop(model, None)) is not None:
            known.cancel()

    async def _keep_records(self, keys: Sequence[bytes]) -> None:
        while True:
            pause_s = PROVIDE_INTERVAL_S
            for key in keys:
                try:
                    await self._node.transport.provide(key)
                except NetworkError as error:  # a hint only: the directory is the better source
                    log.info("weights_record: %s", error)
                    pause_s = PROVIDE_RETRY_S
            await asyncio.sleep(pause_s)


async def _reach(node: LiveNode, peer: PeerId) -> Stream:
    """A blob stream to a peer, by the addresses that it announces if need be."""
    for address in next((seen.addresses for seen in node.live() if seen.peer == peer), ())[:4]:
        try:
            await node.transport.connect(address, timeout_s=OPEN_TIMEOUT_S)
            break
        except GennodeError as error:  # its text may be no address at all
            log.info("source %s at %s: %s", peer, address, error)
    return await node.transport.open(peer, PROTOCOL, timeout_s=OPEN_TIMEOUT_S)


def _hosted(seen: Announcement, model: ModelId) -> tuple[Span, ...]:
    hosting = seen.hosting_of(model)
    return hosting.spans if hosting else ()


def _overlap(spans: Iterable[Span], span: Span | None) -> int:
    """How many layers of `span` are among `spans`."""
    wanted = span or Span(0, 0)
    shared = (min(each.end, wanted.end) - max(each.start, wanted.start) for each in spans)
    return sum(max(0, layers) for layers in shared)


def _copy(
    missing: dict[str, int], local: Sequence[Shelf], partial: PartialFolder
) -> dict[str, int]:
    """Take what local shelves have; what is still missing."""
    left = {}
    for chunk, size_bytes in missing.items():
        for shelf in local:
            data = shelf.read(chunk)
            if data is not None and hashlib.sha256(data).hexdigest() == chunk:
                partial.keep(chunk, data)
                break
        else:
            left[chunk] = size_bytes
    return left


def _counting(
    keep: Callable[[str, bytes], None], total_bytes: int, report: Callable[[int, int], None]
) -> Callable[[str, bytes], None]:
    """`keep`, with a report after each chunk."""
    done_bytes = 0
    report(0, total_bytes)

    def counted(chunk: str, data: bytes) -> None:
        nonlocal done_bytes
        keep(chunk, data)
        done_bytes += len(data)
        report(min(done_bytes, total_bytes), total_bytes)

    return counted
