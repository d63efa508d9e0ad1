"""`gennode join` without its words: find a place in the swarm, load it, serve until stopped."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from gennode.engine.shard import LlamaShard, check_device
from gennode.engine.weights import ModelFolder, open_model
from gennode.errors import ResourceError, UsageError
from gennode.node.fetch import (
    Sharing,
    fetch_manifest,
    fetch_span,
    is_model_id,
    weights_folder,
)
from gennode.node.follow import Following, Means
from gennode.node.hub import find_or_download
from gennode.node.live import LiveNode
from gennode.node.progress import ShowProgress
from gennode.node.running import running
from gennode.node.state import NodeCard, StateFolder, hash_cache
from gennode.node.stopping import stoppable
from gennode.node.transports import Listening
from gennode.node.worker import Worker
from gennode.sharding.capacity import cache_bytes, hosting_bytes, layer_bytes, layers_that_fit
from gennode.sharding.plan import place
from gennode.wire.fields import Reach
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.manifest import ModelShape
from gennode.wire.release import Line

PLANNED_SESSIONS = 4  # whose caches are set aside before layers are counted
PLANNED_POSITIONS = 2048


@dataclass(frozen=True)
class JoinOptions:
    """What a person asked for. `span` None: place me; `memory_bytes` None: half of what is free.

    `leash`: leave when standard input ends, so as not to outlive whoever started us.
    """

    state: Path
    model: str
    device: str
    span: Span | None
    memory_bytes: int | None
    listening: Listening
    leash: bool = False
    follow: Line | None = None


class Joined(msgspec.Struct, frozen=True):
    """A worker that is ready."""

    peer: PeerId
    addresses: tuple[str, ...]
    reach: Reach
    model: ModelId
    spans: tuple[Span, ...]
    layers: int
    spare_layers: int
    layer_time_s: float
    compute_class: str


async def join(
    options: JoinOptions, *, on_ready: Callable[[Joined], None], progress: ShowProgress
) -> None:
    """Serve until SIGINT or SIGTERM."""
    check_device(options.device)  # before a large model is read for minutes
    state = StateFolder(options.state)
    state.prepare()
    with state.locked():
        key = state.key()
        folder, worker = None, None
        if not is_model_id(options.model):
            path = find_or_download(options.model, progress)
            with progress("checking the model's files") as report:
                folder = open_model(path, progress=report, cache=hash_cache())
            worker = _worker(folder, options)
        async with (
            stoppable(leash=options.leash) as stop,
            running(key, options.listening, peers=state.peers) as started,
        ):
            node = started.node
            await node.bootstrap(options.listening.bootstrap)
            with progress("finding out how others reach this node", unit="steps"):
                await started.settle()
            async with Sharing(node) as shared:
                if folder is None or worker is None:
                    folder, options = await _fetch(node, options, progress)
                    worker = _worker(folder, options)
                await _settle(node, worker, folder, options, progress)
                shared.add(folder.shelf, folder.whole_layers())
                joined = _joined(node, worker)
                control = str(started.status_socket)
                state.publish(
                    NodeCard(key.peer, os.getpid(), joined.addresses, control, joined.model)
                )
                if options.follow is not None:
                    node.keep(_following(node, shared, folder, options, options.follow).run())
                on_ready(joined)
                stop.is_awaited = True
                await stop.told.wait()


async def _fetch(
    node: LiveNode, options: JoinOptions, progress: ShowProgress
) -> tuple[ModelFolder, JoinOptions]:
    """The layers of our place, from peers; the options that come back name that place."""
    model = ModelId(options.model)
    with progress("looking for the model", unit="steps"):
        await node.hear(model)
        manifest = await fetch_manifest(node, model, folder=weights_folder(model))
    capacity = _capacity(manifest.shape, options, _memory(options))
    span = options.span or place(model, manifest.shape.layers, capacity, node.live())
    path = await fetch_span(node, model, span, folder=weights_folder(model), progress=progress)
    folder = await asyncio.to_thread(open_model, path)
    return folder, dataclasses.replace(options, span=span)


def _following(
    node: LiveNode, shared: Sharing, folder: ModelFolder, options: JoinOptions, line: Line
) -> Following:
    """How this worker gets at the versions of a line, beginning with the one in `folder`."""
    folders = {folder.manifest.model: folder}

    async def fetch(model: ModelId, span: Span) -> None:
        local = [one.shelf for one in folders.values()]
        await fetch_span(node, model, span, folder=weights_folder(model), local=local)

    def make(model: ModelId, span: Span) -> Worker:
        folders[model] = open_model(weights_folder(model))
        return _worker(folders[model], dataclasses.replace(options, span=span))

    def gained(model: ModelId) -> None:
        shared.add(folders[model].shelf, folders[model].whole_layers())

    def dropped(model: ModelId) -> None:
        shared.remove(model)
        folders.pop(model, None)

    shape = folder.manifest.shape
    positions = min(PLANNED_POSITIONS, shape.max_positions)
    each_bytes = hosting_bytes(shape, 1, sessions=PLANNED_SESSIONS, positions=positions)
    capacity = _memory(options) // each_bytes  # of two versions, so perhaps more than one has
    return Following(node, line, Means(fetch, make, gained, dropped), capacity_layers=capacity)


def _memory(options: JoinOptions) -> int:
    if options.memory_bytes is not None:
        return options.memory_bytes
    return int(psutil.virtual_memory().available) // 2


def _capacity(shape: ModelShape, options: JoinOptions, memory_bytes: int) -> int:
    """How many layers may be loaded; ResourceError if too few for what was asked."""
    positions = min(PLANNED_POSITIONS, shape.max_positions)
    capacity = layers_that_fit(shape, memory_bytes, sessions=PLANNED_SESSIONS, positions=positions)
    if options.span is not None and options.span.end > shape.layers:
        raise UsageError(
            f"{options.model} has {shape.layers} layers, not {options.span.end}",
            hint=f"choose within 0:{shape.layers}",
        )
    wanted = options.span.layers if options.span else 1
    if capacity < wanted:
        raise ResourceError(
            f"{memory_bytes / 2**20:.0f} MiB hold {capacity} layers of {options.model}",
            hint="give more with --memory, or fewer layers with --layers",
        )
    return capacity


def _worker(folder: ModelFolder, options: JoinOptions) -> Worker:
    shape, memory_bytes = folder.manifest.shape, _memory(options)
    capacity = _capacity(shape, options, memory_bytes)
    positions = min(PLANNED_POSITIONS, shape.max_positions)
    cache = max(
        memory_bytes - capacity * layer_bytes(shape),
        capacity * cache_bytes(shape, sessions=PLANNED_SESSIONS, positions=positions),
    )
    engine = LlamaShard(folder, device=options.device, max_cache_bytes=cache)
    if folder.is_partial and options.span is not None:
        capacity = options.span.layers  # others can't be loaded on request: they are not here
    return Worker(engine, shape.layers, capacity, shape.max_positions)


async def _settle(
    node: LiveNode,
    worker: Worker,
    folder: ModelFolder,
    options: JoinOptions,
    progress: ShowProgress,
) -> None:
    """Choose layers, load them, announce them."""
    model, layers = folder.manifest.model, folder.manifest.shape.layers
    span = options.span
    if span is None:
        if not node.is_alone:
            await node.hear(model)
        span = place(model, layers, worker.capacity_layers, node.live())
    with progress(f"loading layers {span}", unit="layers") as report:
        await node.in_engine_thread(lambda: worker.engine.load(span, report))
    await node.serve(worker)


def _joined(node: LiveNode, worker: Worker) -> Joined:
    hosting = worker.hosting()
    return Joined(
        peer=node.machine.peer,
        addresses=node.transport.addresses(),
        reach=node.machine.reach,
        model=hosting.model,
        spans=hosting.spans,
        layers=worker.layers,
        spare_layers=hosting.spare_layers,
        layer_time_s=hosting.layer_time_s,
        compute_class=hosting.compute_class,
    )
