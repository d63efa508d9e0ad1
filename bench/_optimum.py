"""The best placement of a small pool, by trying them all.

`disjoint` tries every way to form pipelines that share no machine, with every order and every
split of the layers. That takes no more than this:

- The order matters to the way around alone: stages and frames cost the same wherever they are.
  So the best order of a group is its shortest tour, found by trying all.
- For a rate, the split of least time comes from a dynamic programme over stages and layers.
  Sessions have to fit too, rate * time of them at each stage: the least time is a lower bound,
  so splits with less room are left out and the search repeated, until what it finds has room.
- More tokens take longer and need more room, so bisection finds the best rate of a group.
- Groups are put together by dynamic programming over sets of machines.

`overlapping` tries every span for every machine, and asks `flow`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gennode.sharding.flow.flow import flow
from gennode.sharding.predict import (
    BISECTIONS,
    LATE_FACTOR,
    Stage,
    link_s,
    sessions_of,
    stage_s,
    step_s,
    worth,
)
from gennode.wire.ids import Hop, Span
from gennode.wire.snapshot import Candidate, Demand

MAX_MACHINES = 8

_Floats = NDArray[np.float64]


def disjoint(
    candidates: Sequence[Candidate], demand: Demand
) -> tuple[float, list[tuple[Hop, ...]]]:
    """The largest sum of `predict.worth` over disjoint pipelines, and those pipelines."""
    if len(candidates) > MAX_MACHINES:
        raise ValueError(f"{len(candidates)} machines have too many groups")
    whole = (1 << len(candidates)) - 1
    groups = {
        chosen: best_group(
            [one for index, one in enumerate(candidates) if chosen >> index & 1], demand
        )
        for chosen in range(1, whole + 1)
    }
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for within in range(1, whole + 1):
        lowest = within & -within
        found = best[within ^ lowest]  # leave the first machine out
        rest = within ^ lowest
        others = rest
        while True:
            group = lowest | others
            worth = best[within ^ group][0] + groups[group][0]
            if worth > found[0]:
                found = worth, (*best[within ^ group][1], group)
            if not others:
                break
            others = (others - 1) & rest
        best.append(found)
    return best[whole][0], [groups[group][1] for group in best[whole][1]]


def best_group(group: Sequence[Candidate], demand: Demand) -> tuple[float, tuple[Hop, ...]]:
    """The worth of the best pipeline of exactly these machines, and the pipeline."""
    if len(group) > demand.layers or any(one.capacity_layers < 1 for one in group):
        return 0.0, ()
    if sum(one.capacity_layers for one in group) < demand.layers:
        return 0.0, ()
    tour = _tour(group)
    if _split(tour, demand, 0.0, demand.step_limit_s) is None:
        return _late(tour, demand)
    rate, counts = _best_rate(tour, demand, demand.step_limit_s)
    return rate, _hops(tour, counts)


def _late(tour: Sequence[Candidate], demand: Demand) -> tuple[float, tuple[Hop, ...]]:
    """The same where even an idle pipeline is too slow; each split has a limit of its own there.

    The limit follows from the split, which we don't search then: the quickest split when idle
    and the best one at its limit are tried. A lower bound, and not the optimum.
    """
    idle = _split(tour, demand, 0.0, math.inf)
    if idle is None:
        return 0.0, ()
    stages = _stages(tour, idle)
    limit_s = LATE_FACTOR * step_s(stages, demand, 0.0)
    if limit_s <= demand.step_limit_s:
        return 0.0, ()
    _, counts = _best_rate(tour, demand, limit_s)
    best = max((idle, counts), key=lambda split: worth(_stages(tour, split), demand))
    return worth(_stages(tour, best), demand), _hops(tour, best)


def _stages(tour: Sequence[Candidate], counts: Sequence[int]) -> list[Stage]:
    return [Stage(one, count) for one, count in zip(tour, counts, strict=True)]


def _tour(group: Sequence[Candidate]) -> list[Candidate]:
    """The order with the shortest way around."""
    first, others = group[0], group[1:]

    def way_s(order: Sequence[Candidate]) -> float:
        around = [first, *order, first]
        return sum(one.coordinate.rtt_s(two.coordinate) for one, two in itertools.pairwise(around))

    return [first, *min(itertools.permutations(others), key=way_s)]


def _best_rate(
    tour: Sequence[Candidate], demand: Demand, limit_s: float
) -> tuple[float, list[int]]:
    best = _split(tour, demand, 0.0, limit_s) or []
    if not best:
        return 0.0, []
    low, high = 0.0, _bound(tour, demand)
    for _ in range(BISECTIONS):
        rate = (low + high) / 2
        if (counts := _split(tour, demand, rate, limit_s)) is not None:
            low, best = rate, counts
        else:
            high = rate
    return low, best


def _bound(tour: Sequence[Candidate], demand: Demand) -> float:
    """More than this is out of reach: the sessions of the roomiest, in the shortest time."""
    sessions = max(one.max_sessions for one in tour)
    idle = _split(tour, demand, 0.0, math.inf)
    if idle is None:
        return 0.0
    return sessions / step_s(_stages(tour, idle), demand, 0.0)


def _split(
    tour: Sequence[Candidate], demand: Demand, rate: float, limit_s: float
) -> list[int] | None:
    """Layers per stage with the least time at a rate, such that the sessions fit; None: no way."""
    links_s = 0.0
    if len(tour) > 1:
        for index, one in enumerate(tour):
            links_s += link_s(tour[index - 1], one, demand, rate)
    times = np.full((len(tour), demand.layers + 1), np.inf)
    rooms = np.zeros((len(tour), demand.layers + 1))
    for index, one in enumerate(tour):
        for layers in range(1, min(one.capacity_layers, demand.layers) + 1):
            times[index, layers] = stage_s(one, layers, rate)
            rooms[index, layers] = sessions_of(one, layers, demand)
    times[rooms < 1] = np.inf
    while True:
        stages_s, counts = _least(times)
        around_s = stages_s + links_s
        if not around_s <= limit_s or around_s == math.inf:
            return None
        tight = (rooms < rate * around_s) & np.isfinite(times)
        if not any(tight[index, count] for index, count in enumerate(counts)):
            return counts
        times[tight] = np.inf


def _least(times: _Floats) -> tuple[float, list[int]]:
    """The least sum of one time per stage whose layers add up to all, and those layers."""
    layers = times.shape[1] - 1
    total = np.full(layers + 1, np.inf)
    total[0] = 0.0
    choices = []
    whole = np.arange(layers + 1)
    before = whole[:, None] - whole[None, :]  # layers in all, less those of this stage
    for row in times:
        sums = np.where(before >= 0, total[np.maximum(before, 0)], np.inf) + row[None, :]
        choices.append(np.argmin(sums, axis=1))
        total = np.min(sums, axis=1)
    counts = []
    left = layers
    for choice in reversed(choices):
        counts.append(int(choice[left]))
        left -= counts[-1]
    return float(total[layers]), counts[::-1]


def _hops(tour: Sequence[Candidate], counts: Sequence[int]) -> tuple[Hop, ...]:
    ends = list(itertools.accumulate(counts))
    return tuple(
        Hop(one.peer, Span(end - count, end))
        for one, count, end in zip(tour, counts, ends, strict=False)
    )


def overlapping(candidates: Sequence[Candidate], demand: Demand, limit_s: float) -> float:
    """The most that `flow` finds for any placement at all: tiny pools and models only."""
    spans = [
        [
            Span(start, start + width)
            for width in range(min(one.capacity_layers, demand.layers) + 1)
            for start in range(demand.layers - width + 1)
            if width or not start
        ]
        for one in candidates
    ]
    best = 0.0
    for chosen in itertools.product(*spans):
        covered = {layer for span in chosen for layer in range(*span)}
        if len(covered) == demand.layers:
            hosts = list(zip(candidates, chosen, strict=True))
            best = max(best, flow(hosts, demand, limit_s).rate_token_s)
    return best
