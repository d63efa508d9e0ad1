"""`gennode join` without its words: find a place in the swarm, load it, serve until stopped."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from gennode.engine.child.process import ComputeProcess
from gennode.engine.child.shard import ChildShard
from gennode.engine.devices import check_device
from gennode.engine.engines import shard_engine
from gennode.engine.folders import Folder, open_folder, refuse_gguf
from gennode.engine.options import EngineOptions
from gennode.engine.seam import CachePrecision, Precision
from gennode.errors import GennodeError, ResourceError, UsageError
from gennode.node.fetch import (
    Sharing,
    comes_in_parts,
    fetch_manifest,
    fetch_span,
    is_model_id,
    weights_folder,
)
from gennode.node.format import Format, Wish, format_of, narrowest, settle
from gennode.node.hub import find_or_download
from gennode.node.live import LiveNode
from gennode.node.moves.moving import Moving
from gennode.node.moves.placing import place_newcomer
from gennode.node.plans.agreeing import Agreeing
from gennode.node.progress import ShowProgress
from gennode.node.rolls.follow import Following, Means
from gennode.node.running import running
from gennode.node.state import NodeCard, StateFolder, hash_cache
from gennode.node.stopping import drain, stoppable
from gennode.node.transports import Listening
from gennode.node.worker import Worker
from gennode.sharding.capacity import Account
from gennode.wire.fields import Reach
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.manifest import ModelShape
from gennode.wire.release import Line


@dataclass(frozen=True)
class JoinOptions:
    """What a person asked for. `span` None: place me; `memory_bytes` None: half of what is free.

    `share`: of the time, how much to compute at most. `price`: credits to ask per layer for a
    million tokens. `leash`: leave when standard input ends, so as not to outlive whoever started
    us. `precision` and `cache`: of weights, and of keys and values; see `format`.
    """

    state: Path
    model: str
    device: str
    span: Span | None
    memory_bytes: int | None
    listening: Listening
    leash: bool = False
    follow: Line | None = None
    share: float = 1.0
    price: int = 0
    precision: Precision | Literal["auto"] = "auto"
    cache: CachePrecision = "fp32"

    @property
    def wish(self) -> Wish:
        """In what numbers layers are to be held."""
        return Wish(self.precision, self.cache, self.device)


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
    account: Account
    is_fetchable: bool
    """Whether others can get the model's weights from here."""


async def join(
    options: JoinOptions,
    *,
    on_ready: Callable[[Joined], None],
    on_leaving: Callable[[int], None],
    progress: ShowProgress,
) -> int:
    """Serve until told to stop, then hand sessions over; how many of them are left behind.

    `on_leaving` is told how many are still to go, whenever that changes.
    """
    check_device(options.device)  # before a large model is read for minutes
    state, left_behind = StateFolder(options.state), 0
    state.prepare()
    with state.locked():
        key = state.key()
        if options.memory_bytes is None:  # once: what is free changes as layers are loaded
            memory_bytes = int(psutil.virtual_memory().available) // 2
            options = dataclasses.replace(options, memory_bytes=memory_bytes)
        folder = None
        if not is_model_id(options.model):
            path = find_or_download(options.model, progress)
            with progress("checking the model's files") as report:
                folder = open_folder(path, progress=report, cache=hash_cache())
            if options.follow is not None:
                refuse_gguf(folder, "follow releases")
            shape = folder.manifest.shape
            _capacity(shape, options, narrowest(shape, folder, options.wish))
        async with (
            stoppable(leash=options.leash) as stop,
            running(
                key, options.listening, peers=state.peers, spill=state.path, stop=stop
            ) as started,
        ):
            node = started.node
            await node.bootstrap(options.listening.bootstrap)
            with progress("finding out how others reach this node", unit="steps"):
                await started.settle()
            # Not sooner: for a second or two it takes all of a core that the mesh needs to start.
            compute = _compute(folder, options)
            async with _ending(compute), Sharing(node) as shared:
                await _measure(node, compute, options, progress)
                worker, folder, held = await _take_place(node, folder, compute, options, progress)
                shared.add(folder.shelf, folder.whole_layers())
                joined = _joined(node, worker, folder, options, held)
                control = str(started.status_socket)
                state.publish(
                    NodeCard(key.peer, os.getpid(), joined.addresses, control, joined.model)
                )
                if options.follow is not None:
                    following = _following(node, shared, folder, options, held, options.follow)
                    node.keep(following.run())
                elif options.span is None:
                    _stay_flexible(node, shared, worker, folder)
                on_ready(joined)
                stop.is_awaited = True
                await stop.told.wait()
                left_behind = await drain(node, stop, on_leaving)
                _end_engines(node)
    return left_behind


def _compute(folder: Folder | None, options: JoinOptions) -> ComputeProcess:
    """The process that is to compute: this node's own computes nothing."""
    path = folder.path if folder else weights_folder(ModelId(options.model))
    path.mkdir(parents=True, exist_ok=True)
    return ComputeProcess(path, options.device)


@asynccontextmanager
async def _ending(compute: ComputeProcess) -> AsyncIterator[None]:
    """End the process with the block, whatever happens there."""
    try:
        yield
    finally:
        compute.end()


def _end_with(node: LiveNode, worker: Worker) -> None:
    """A worker that can compute no more ends its node, with the reason, and is not announced."""
    loop = asyncio.get_running_loop()
    if isinstance(worker.engine, ChildShard):
        worker.engine.on_given_up = lambda error: _call_in(loop, node.fail, error)


def _call_in(
    loop: asyncio.AbstractEventLoop, call: Callable[[GennodeError], None], error: GennodeError
) -> None:
    with suppress(RuntimeError):  # the loop is closed: the node has left already
        loop.call_soon_threadsafe(call, error)


def _end_engines(node: LiveNode) -> None:
    """Let no engine keep a node from leaving, though it may hang."""
    for worker in node.workers.values():
        if isinstance(worker.engine, ChildShard):
            worker.engine.shutdown()


async def _measure(
    node: LiveNode, compute: ComputeProcess, options: JoinOptions, progress: ShowProgress
) -> None:
    """Find out what this machine can do, and announce it."""
    memory_bytes = options.memory_bytes or 0
    with progress("measuring this machine", unit="steps") as report:
        machine = await node.in_engine_thread(
            lambda: compute.measure(options.device, memory_bytes, report)
        )
    node.machine.measured(
        msgspec.structs.replace(
            machine,
            flops_per_s=machine.flops_per_s * options.share,
            memory_bytes_per_s=machine.memory_bytes_per_s * options.share,
            pass_s=machine.pass_s / options.share,
        )
    )


async def _take_place(
    node: LiveNode,
    folder: Folder | None,
    compute: ComputeProcess,
    options: JoinOptions,
    progress: ShowProgress,
) -> tuple[Worker, Folder, Format]:
    """Choose layers, get their weights from peers if they are not here, load and announce them."""
    if folder is None:
        model = ModelId(options.model)
        with progress("looking for the model", unit="steps"):
            await node.hear(model)
            manifest = await fetch_manifest(node, model, folder=weights_folder(model))
        held = await _settle(node, compute, manifest.shape, None, options, progress)
        span = _place(node, model, manifest.shape, options, held)
        path = await fetch_span(node, model, span, folder=weights_folder(model), progress=progress)
        folder = await asyncio.to_thread(open_folder, path)
    else:
        if not node.is_alone and options.span is None:
            await node.hear(folder.manifest.model)
        manifest = folder.manifest
        held = await _settle(node, compute, manifest.shape, folder, options, progress)
        span = _place(node, manifest.model, manifest.shape, options, held)
    worker = _worker(folder, options, held, compute)
    with progress(f"loading layers {span}", unit="layers") as report:
        await node.in_engine_thread(lambda: worker.engine.load(span, report))
    _end_with(node, worker)
    await node.serve(worker)
    return worker, folder, held


async def _settle(
    node: LiveNode,
    compute: ComputeProcess,
    shape: ModelShape,
    folder: Folder | None,
    options: JoinOptions,
    progress: ShowProgress,
) -> Format:
    """In what numbers to hold the layers: it decides how many of them fit."""
    with progress("choosing the precision", unit="steps"):
        return await settle(node, compute, options.memory_bytes or 0, shape, folder, options.wish)


def _place(
    node: LiveNode, model: ModelId, shape: ModelShape, options: JoinOptions, held: Format
) -> Span:
    """The layers that were asked for, or those that the swarm lacks most."""
    capacity = _capacity(shape, options, held)
    if options.span is not None:
        return options.span
    now_s, name = time.monotonic(), held.compute_class
    return place_newcomer(node.machine, now_s, model, shape, capacity, compute_class=name)


def _stay_flexible(node: LiveNode, shared: Sharing, worker: Worker, folder: Folder) -> None:
    """Take part in planning, and go where plans and gaps want this worker."""
    model, engine = folder.manifest.model, worker.engine

    async def fetch(span: Span) -> None:
        if not folder.is_partial:
            return
        path = await fetch_span(node, model, span, folder=folder.path)
        fuller = await asyncio.to_thread(open_folder, path)
        await node.in_engine_thread(lambda: engine.reread(path))
        shared.add(fuller.shelf, fuller.whole_layers())

    agreeing, shape = Agreeing(node), folder.manifest.shape
    agreeing.plan(model, shape)
    node.keep(agreeing.run())
    moving = Moving(node, worker, shape, fetch=fetch, plan=lambda: agreeing.hosts(model))
    node.keep(moving.run())


def _following(
    node: LiveNode,
    shared: Sharing,
    folder: Folder,
    options: JoinOptions,
    held: Format,
    line: Line,
) -> Following:
    """How this worker gets at the versions of a line, beginning with the one in `folder`."""
    folders = {folder.manifest.model: folder}

    async def fetch(model: ModelId, span: Span) -> None:
        local = [one.shelf for one in folders.values()]
        await fetch_span(node, model, span, folder=weights_folder(model), local=local)

    def make(model: ModelId, span: Span) -> Worker:
        version = folders[model] = open_folder(weights_folder(model))
        its = format_of(version.manifest.shape, version, held.precision, options.wish)
        return _worker(version, dataclasses.replace(options, span=span), its)

    def gained(model: ModelId) -> None:
        shared.add(folders[model].shelf, folders[model].whole_layers())

    def dropped(model: ModelId) -> None:
        shared.remove(model)
        folders.pop(model, None)

    # of two versions, so perhaps more layers than one has
    each_bytes = held.account(folder.manifest.shape, 0).layer_bytes
    capacity = (options.memory_bytes or 0) // each_bytes
    return Following(node, line, Means(fetch, make, gained, dropped), capacity_layers=capacity)


def _capacity(shape: ModelShape, options: JoinOptions, held: Format) -> int:
    """How many layers may be loaded; an error if too few for what was asked."""
    found = held.account(shape, options.memory_bytes or 0)
    if options.span is not None and options.span.end > shape.layers:
        raise UsageError(
            f"{options.model} has {shape.layers} layers, not {options.span.end}",
            hint=f"choose within 0:{shape.layers}",
        )
    wanted = options.span.layers if options.span else 1
    if found.fitting_layers < wanted:
        raise ResourceError(
            f"{options.model}: {found.words}",
            hint="give more with --memory, or fewer layers with --layers",
        )
    return found.fitting_layers


def _worker(
    folder: Folder, options: JoinOptions, held: Format, compute: ComputeProcess | None = None
) -> Worker:
    shape = folder.manifest.shape
    capacity = _capacity(shape, options, held)
    cache_bytes = held.account(shape, options.memory_bytes or 0, layers=capacity).caches_bytes
    engine = shard_engine(
        folder,
        EngineOptions(
            device=options.device,
            precision=held.precision,
            cache=held.cache,
            max_cache_bytes=cache_bytes,
            max_layers=capacity,
            isolated=True,
        ),
        compute,
    )
    return Worker(
        engine,
        shape.layers,
        capacity,
        shape.max_positions,
        loads_on_request=not folder.is_partial,
        share=options.share,
        price=options.price,
        is_fixed=options.span is not None,
    )


def _joined(
    node: LiveNode, worker: Worker, folder: Folder, options: JoinOptions, held: Format
) -> Joined:
    hosting = worker.hosting()
    return Joined(
        peer=node.machine.peer,
        addresses=node.transport.addresses(),
        reach=node.machine.reach,
        model=hosting.model,
        spans=hosting.spans,
        layers=worker.layers,
        spare_layers=hosting.cold_layers,
        layer_time_s=hosting.layer_time_s,
        compute_class=hosting.compute_class,
        account=held.account(folder.manifest.shape, options.memory_bytes or 0),
        is_fetchable=comes_in_parts(folder.manifest),
    )
