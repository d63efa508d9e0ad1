"""Phase one, who hosts which layers: for a whole pool, for one pipeline, for one newcomer."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec

from gennode.errors import LocalError
from gennode.sharding import predict
from gennode.sharding.cells import grouped
from gennode.sharding.pipeline import Pool
from gennode.sharding.rows import QUICKEST_S
from gennode.wire.announcement import Announcement
from gennode.wire.ids import Hop, ModelId, PeerId, Span
from gennode.wire.snapshot import Candidate, Demand, LayerCost, Snapshot

# No machine is quicker; a peer that claims to be (0 s, say) must not outweigh all others.
FASTEST_LAYER_S = 1e-6


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
    """Place a pool: the pipelines that are worth most together, then spare room where it helps.

    A pure function of the snapshot, blind to the order of its peers. Never raises: a pool that
    lacks something hosts what it can, and `missing` says what it lacks.
    """
    demand = snapshot.demand
    peers = sorted({one.peer: _bounded(one) for one in snapshot.peers}.values(), key=_by_id)
    room = {one.peer: room_layers(one, demand) for one in peers}
    usable = [one for one in peers if room[one.peer] and one.max_sessions]
    pool = Pool(usable, demand)
    groups = grouped(pool)
    pipelines = tuple(sorted((pool.hops(group) for group in groups), key=lambda hops: hops[0].peer))
    by_peer = {one.peer: one for one in peers}
    rate, mean_s = _predicted(pipelines, by_peer, demand)
    shares = {hop.peer: hop.span for pipeline in pipelines for hop in pipeline}
    hosts, missing = _spread(peers, room, shares, demand)
    return Plan(snapshot.epoch, hosts, pipelines, rate, mean_s, missing)


def room_layers(candidate: Candidate, demand: Demand) -> int:
    """How many of a model's layers a machine has room for, caches aside."""
    fits = candidate.memory_bytes // demand.layer_bytes
    return max(0, min(candidate.capacity_layers, demand.layers, fits))


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


def place(
    model: ModelId, layers: int, capacity_layers: int, announcements: Iterable[Announcement]
) -> Span:
    """The span of a model that a newcomer should load, given what others announce.

    The contiguous window, of its whole capacity, that needs cover most: windows are compared
    by the layers' supply (tokens per second that their hosts could compute), lowest first, so
    layers without a host count before all else. Ties go to the lowest start. This is the rule
    of Petals (block_selection.py) without its random restarts.
    """
    supply = [0.0] * layers
    for announcement in sorted(announcements, key=lambda announcement: announcement.peer):
        if hosting := announcement.hosting_of(model):
            for span in hosting.spans:
                _add(supply, span, hosting.layer_time_s)
    return _neediest_window(supply, capacity_layers, Span(0, 0))


def speed_of(layer_time_s: float) -> float:
    """Layers per second of a peer that takes `layer_time_s` for one."""
    return 1 / max(layer_time_s, FASTEST_LAYER_S)


def _by_id(candidate: Candidate) -> PeerId:
    return candidate.peer


def _bounded(one: Candidate) -> Candidate:
    cost = LayerCost(max(QUICKEST_S, one.cost.fixed_s), max(QUICKEST_S, one.cost.token_s))
    return msgspec.structs.replace(one, cost=cost)


def _predicted(
    pipelines: Sequence[Sequence[Hop]], by_peer: Mapping[PeerId, Candidate], demand: Demand
) -> tuple[float, float]:
    """Tokens per second of all pipelines, and the mean time of a token."""
    total = busy = 0.0
    for pipeline in pipelines:
        stages = [predict.Stage(by_peer[hop.peer], hop.span.layers) for hop in pipeline]
        idle_s = predict.step_s(stages, demand, 0.0)
        limit_s = demand.step_limit_s
        if idle_s >= limit_s:
            limit_s = predict.LATE_FACTOR * idle_s
        rate = predict.best_rate(stages, demand, limit_s)
        total += rate
        busy += rate * predict.step_s(stages, demand, rate)
    return total, busy / total if total > 0 else 0.0


def _spread(
    peers: Sequence[Candidate],
    room: Mapping[PeerId, int],
    shares: Mapping[PeerId, Span],
    demand: Demand,
) -> tuple[tuple[Hop, ...], str]:
    """What everybody loads: their shares, and whom no pipeline took the weakest layers."""
    supply = [0.0] * demand.layers
    hosts = []
    for one in sorted(peers, key=lambda one: (one.peer not in shares, one.peer)):
        if span := shares.get(one.peer):
            hosts.append(Hop(one.peer, span))
        elif room[one.peer]:
            span = _neediest_window(supply, room[one.peer], Span(0, 0))
            hosts.append(Hop(one.peer, span))
        else:
            continue
        _add(supply, span, one.cost.fixed_s + one.cost.token_s)
    hosts.sort(key=lambda hop: hop.peer)
    return tuple(hosts), _missing(supply)


def _add(supply: list[float], span: Span, layer_time_s: float) -> None:
    for layer in range(span.start, min(span.end, len(supply))):
        supply[layer] += speed_of(layer_time_s)


def _neediest_window(supply: Sequence[float], width: int, within: Span) -> Span:
    """The window of `width` layers around `within` whose sorted supplies come first."""
    layers = len(supply)
    width = max(0, min(width, layers))
    if within.layers:
        starts = range(max(0, within.end - width), min(within.start, layers - width) + 1)
    else:
        starts = range(layers - width + 1)
    start = min(starts, key=lambda start: sorted(supply[start : start + width]))
    return Span(start, start + width)


def _missing(supply: Sequence[float]) -> str:
    lacking = [layer for layer, tokens_per_s in enumerate(supply) if not tokens_per_s]
    if not lacking:
        return ""
    return (
        f"the pool holds {len(supply) - len(lacking)} of {len(supply)} layers: "
        f"it needs room for {len(lacking)} more"
    )
