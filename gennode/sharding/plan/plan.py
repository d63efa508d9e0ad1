"""Phase one, who hosts which layers: for a whole pool, for one pipeline, for one newcomer."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec

from gennode.errors import LocalError
from gennode.sharding import predict
from gennode.sharding.plan.cells import grouped
from gennode.sharding.plan.pipeline import Pool
from gennode.sharding.plan.rows import QUICKEST_S
from gennode.sharding.plan.shared import best_placement
from gennode.sharding.plan.spare import lack, room_layers, spread
from gennode.wire.ids import Hop, PeerId, Span
from gennode.wire.snapshot import Candidate, Demand, LayerCost, Snapshot

# So few peers may be better off sharing machines between routes than each in its own pipeline.
SHARED_PEERS = 24


@dataclass(frozen=True)
class Plan:
    """Which layers each peer should load.

    `hosts`: peers in order of id with what they load; peers without room are left out.
    `pipelines`: disjoint chains that each cover the model, with the share each peer computes
    when all are busy; it lies within what the peer loads. `rate_token_s`: tokens per second of
    all pipelines together; `step_s`: a token's time around them at that rate, on average.
    `missing`: what the pool lacks for one full copy, in words; empty if it lacks nothing.
    """

    epoch: int
    hosts: tuple[Hop, ...]
    pipelines: tuple[tuple[Hop, ...], ...]
    rate_token_s: float
    step_s: float
    missing: str

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that tell two plans apart: SHA-256 over hosts and pipelines."""
        return hashlib.sha256(msgspec.msgpack.encode((self.hosts, self.pipelines))).digest()


def plan(snapshot: Snapshot) -> Plan:
    """Place a pool: the pipelines that are worth most together, then spare machines where the
    model is weakest.

    A pure function of the snapshot, blind to the order of its peers. Never raises: a pool that
    lacks something hosts what it can, and `missing` says what it lacks.
    """
    demand = snapshot.demand
    by_peer = {one.peer: bounded(one) for one in sorted(snapshot.peers, key=lambda one: one.peer)}
    peers = list(by_peer.values())
    serving = [one for one in peers if one.max_sessions and room_layers(one, demand, 1)]
    pool = Pool(serving, demand)
    groups = grouped(pool)
    pool.refine(groups)
    found = [pool.hops(group) for group in groups]
    pipelines = tuple(sorted(found, key=lambda hops: hops[0].peer))
    if pipelines and len(peers) <= SHARED_PEERS:
        pipelines, hosts = best_placement(pipelines, by_peer, pool)
    else:
        shares = {hop.peer: hop.span for pipeline in pipelines for hop in pipeline}
        hosts = spread(peers, shares, demand)
    rate, mean_s = predicted(pipelines, by_peer, demand)
    missing = "" if pipelines else lack(peers, hosts, demand)
    return Plan(snapshot.epoch, hosts, pipelines, rate, mean_s, missing)


def bounded(one: Candidate) -> Candidate:
    """A candidate as plans see it: none takes no time at all."""
    cost = LayerCost(max(QUICKEST_S, one.cost.fixed_s), max(QUICKEST_S, one.cost.token_s))
    return msgspec.structs.replace(one, cost=cost)


def predicted(
    pipelines: Sequence[Sequence[Hop]], by_peer: Mapping[PeerId, Candidate], demand: Demand
) -> tuple[float, float]:
    """Tokens per second of all pipelines, and the mean seconds of a token around them.

    A pipeline that is late even when idle counts at the pace that `predict.worth` judges it by.
    """
    total = busy = 0.0
    for pipeline in pipelines:
        stages = [predict.Stage(by_peer[hop.peer], hop.span.layers) for hop in pipeline]
        limit_s = demand.step_limit_s
        rate = predict.best_rate(stages, demand, limit_s)
        if rate <= 0.0:
            limit_s = predict.LATE_FACTOR * predict.step_s(stages, demand, 0.0)
            rate = predict.best_rate(stages, demand, limit_s)
        total += rate
        busy += rate * predict.step_s(stages, demand, rate)
    return total, busy / total if total > 0 else 0.0


def split(layers: int, speeds: Sequence[float], capacities: Sequence[int]) -> list[Span]:
    """Cut `layers` layers into one contiguous span per stage, in the order given.

    `speeds` are layers per second, above 0. Among all cuts within `capacities` this one has the
    least time at its slowest stage: each layer goes where the time after taking it is lowest
    (D'Hondt's apportionment). No span is empty if every stage has capacity and there are
    layers enough. LocalError if the capacities don't add up.
    """
    if sum(max(0, capacity) for capacity in capacities) < layers:
        raise LocalError(
            f"{layers} layers don't fit on stages that hold {list(capacities)}",
            hint="add workers or give them more memory",
        )
    first = 1 if layers >= len(speeds) else 0
    counts = [min(first, max(0, capacity)) for capacity in capacities]
    heap = [
        ((count + 1) / speed, stage)
        for stage, (count, speed, capacity) in enumerate(
            zip(counts, speeds, capacities, strict=True)
        )
        if count < capacity
    ]
    heapq.heapify(heap)
    for _ in range(layers - sum(counts)):
        _, stage = heapq.heappop(heap)
        counts[stage] += 1
        if counts[stage] < capacities[stage]:
            heapq.heappush(heap, ((counts[stage] + 1) / speeds[stage], stage))
    spans = []
    end = 0
    for count in counts:
        spans.append(Span(end, end + count))
        end += count
    return spans
