"""`gennode plan` without its words: who hosts what now, and who should, for anybody who asks."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gennode.engine.folders import open_folder
from gennode.errors import NoRouteError
from gennode.node.fetch import fetch_manifest, is_model_id, weights_folder
from gennode.node.hub import find_or_download
from gennode.node.live import LiveNode
from gennode.node.plans.witness import PACE
from gennode.node.progress import ShowProgress
from gennode.node.running import running
from gennode.node.state import hash_cache
from gennode.node.transports import Listening, TransportName
from gennode.sharding.flow.flow import flow
from gennode.sharding.plan.plan import plan
from gennode.sharding.replan import chains_in, decide
from gennode.sharding.snapshots import snapshot_of
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.manifest import ModelShape
from gennode.wire.signing import SEED_BYTES, Key
from gennode.wire.snapshot import Candidate, Snapshot


class PlannedPeer(msgspec.Struct, frozen=True):
    """One worker: what it could host, hosts, should host, and its part of that in a pipeline."""

    peer: PeerId
    capacity_layers: int
    layer_time_s: float
    hosts: Span
    should_host: Span
    share: Span
    pipeline: int
    """Counted from 1; 0 if it is in none."""


class Survey(msgspec.Struct, frozen=True):
    """A swarm's placement of one model, and the plan for it. Rates in tokens per second."""

    model: ModelId
    layers: int
    step_limit_s: float
    peers: tuple[PlannedPeer, ...]
    rate_now_token_s: float
    step_now_s: float | None
    """How long a token takes now, on average; None if nothing flows."""
    rate_planned_token_s: float
    step_planned_s: float
    missing: str
    is_due: bool
    """Whether the plan is worth its moves."""
    why: str


def survey_of(snapshot: Snapshot, movable: Snapshot) -> Survey:
    """What a placement achieves, and what a plan would; `movable`: without those that stay."""
    made, decision = plan(snapshot), decide(movable)
    held = [(one, one.held) for one in snapshot.peers if one.held.layers]
    demand = snapshot.demand
    now = flow(held, demand, demand.step_limit_s, chains_in(held, demand, made))
    loads = {hop.peer: hop.span for hop in made.hosts}
    shares = {
        hop.peer: (number, hop.span)
        for number, pipeline in enumerate(made.pipelines, start=1)
        for hop in pipeline
    }

    def row(one: Candidate) -> PlannedPeer:
        pipeline, share = shares.get(one.peer, (0, Span(0, 0)))
        return PlannedPeer(
            peer=one.peer,
            capacity_layers=one.capacity_layers,
            layer_time_s=one.cost.pass_s(1),
            hosts=one.held,
            should_host=loads.get(one.peer, Span(0, 0)),
            share=share,
            pipeline=pipeline,
        )

    return Survey(
        model=ModelId(snapshot.model),
        layers=demand.layers,
        step_limit_s=demand.step_limit_s,
        peers=tuple(row(one) for one in snapshot.peers),
        rate_now_token_s=now.rate_token_s,
        step_now_s=now.step_s if now.rate_token_s > 0 else None,
        rate_planned_token_s=made.rate_token_s,
        step_planned_s=made.step_s,
        missing=made.missing,
        is_due=decision.plan is not None,
        why=decision.why,
    )


async def survey(
    model: str,
    bootstrap: Sequence[str],
    *,
    transport_name: TransportName,
    peers: Path | None,
    progress: ShowProgress,
) -> Survey:
    """Look at the swarm of a model: a folder, a name or an id. NoRouteError if it has nobody."""
    async with running(
        Key(os.urandom(SEED_BYTES)),
        Listening(bootstrap=tuple(bootstrap), transport_name=transport_name),
        peers=peers,
    ) as started:
        node = started.node
        await node.bootstrap(bootstrap)
        found, shape = await _look_up(node, model, progress)
        with progress("listening to the swarm", unit="steps"):
            await node.hear(found)
        epoch = int(time.time() // PACE.epoch_s)
        whole, movable = (
            snapshot_of(node.live(), model=found, shape=shape, epoch=epoch, with_fixed=fixed)
            for fixed in (True, False)
        )
        if not whole.peers:
            raise NoRouteError(f"nobody hosts model {found}", hint="start one: gennode join")
        return survey_of(whole, movable)


async def _look_up(
    node: LiveNode, model: str, progress: ShowProgress
) -> tuple[ModelId, ModelShape]:
    """A model's id and shape, from its files here or from peers."""
    if is_model_id(model):
        named = ModelId(model)
        await node.hear(named)
        manifest = await fetch_manifest(node, named, folder=weights_folder(named))
    else:
        path = find_or_download(model, progress)
        with progress("checking the model's files") as report:
            folder = await asyncio.to_thread(open_folder, path, progress=report, cache=hash_cache())
        manifest = folder.manifest
    return manifest.model, manifest.shape
