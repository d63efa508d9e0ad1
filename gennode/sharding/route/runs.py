"""The cheapest chain of workers over runs of layers, where no detour between peers is shorter.

A worker's run is a maximal span of layers that it may compute, each at the same cost. Say that
a token passes from one worker to another at a layer that both could compute, with both able to
compute the next one or the one before, too. Then the cost is linear in where it passes, so that
one of the two directions is no dearer, until one's run begins or ends, or one computes nothing;
and leaving that one out is no dearer either, if the direct way is the shortest. So some cheapest
chain passes only where the run of the one before ends, or that of the one behind begins: no
other places need be tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gennode.sharding.route.ways import Links
from gennode.wire.ids import PeerId

Stint = tuple[int, int, int]
"""A worker by index, the first layer that it computes, and the one after the last."""


@dataclass(frozen=True, slots=True)
class Runs:
    """At each of `edges`, rising layers, who `begins` a run and who `ends` one; by index."""

    edges: Sequence[int]
    begins: Sequence[Sequence[int]]
    ends: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Costs:
    """Of each worker, by index, in seconds: per layer, from the owner, back to it, per visit;
    `into_s` is to it from others, by the names of `peers`."""

    own_s: Sequence[float]
    there_s: Sequence[float]
    back_s: Sequence[float]
    visit_s: Sequence[float]
    into_s: Sequence[Links]
    peers: Sequence[PeerId]


_Trail = tuple[int, int, "_Trail | None"]
"""A worker, the layer at which it took over, and from whom."""
_Arrival = tuple[float, int]
"""What it costs to come to a worker, in seconds, and which."""


def cheapest_stints(runs: Runs, costs: Costs) -> list[Stint] | None:
    """Who computes which layers on the cheapest way from the owner and back; None without any.

    Equal costs go to whoever stays, then to the lower index. The number of steps is that of
    places where runs begin or end times those who could compute there, not of layers.
    """
    own_s, there_s, visit_s = costs.own_s, costs.there_s, costs.visit_s
    edges, trails = runs.edges, dict[int, _Trail]()
    reached: list[_Arrival] = []
    for one in runs.begins[0]:
        cost_s = there_s[one] + visit_s[one]
        if cost_s < math.inf:
            reached.append((cost_s, one))
            trails[one] = one, edges[0], None
    for place in range(1, len(edges) - 1):
        edge = edges[place]
        length = edge - edges[place - 1]
        reached = [(cost_s + own_s[one] * length, one) for cost_s, one in reached]
        reached.sort()
        come: list[tuple[_Arrival, _Trail]] = []
        for one in runs.begins[place]:
            cost_s, before = _come(one, reached, costs)
            if cost_s < math.inf:
                come.append(((cost_s, one), (one, edge, trails[before])))
        if runs.ends[place]:
            reached = _gone(runs.ends[place], reached, trails, edge, costs)
        for arrival, trail in come:
            reached.append(arrival)
            trails[arrival[1]] = trail
    length, back_s = edges[-1] - edges[-2], costs.back_s
    ends = [(cost_s + own_s[one] * length + back_s[one], one) for cost_s, one in reached]
    end_s, last = min(ends, default=(math.inf, -1))
    return _stints_of(trails[last], edges[-1]) if end_s < math.inf else None


def _come(one: int, reached: Sequence[_Arrival], costs: Costs) -> _Arrival:
    """What a worker is reached at, and from whom. They are tried cheapest first, up to one that
    costs more before its link than the best so far with it."""
    links_s, peers = costs.into_s[one], costs.peers
    best_s, best = math.inf, -1
    for cost_s, before in reached:
        if cost_s >= best_s:
            break
        arrival_s = cost_s + links_s[peers[before]]
        if arrival_s < best_s:
            best_s, best = arrival_s, before
    return best_s + costs.visit_s[one], best


def _gone(
    ending: Sequence[int],
    reached: Sequence[_Arrival],
    trails: dict[int, _Trail],
    edge: int,
    costs: Costs,
) -> list[_Arrival]:
    """What is reached once workers whose runs end have handed over to those that stay, where
    that is cheaper for these. `reached` rises, what comes back need not.
    """
    gone = [arrival for arrival in reached if arrival[1] in ending]
    stay = [arrival for arrival in reached if arrival[1] not in ending]
    if not gone:
        return stay
    (least_s, _), peers = gone[0], costs.peers
    for index in range(len(stay) - 1, -1, -1):
        before_s, one = stay[index]
        if before_s <= least_s:
            break
        entering_s, links_s, best = costs.visit_s[one], costs.into_s[one], -1
        limit_s = before_s - entering_s
        for cost_s, other in gone:
            if cost_s >= limit_s:
                break
            arrival_s = cost_s + links_s[peers[other]]
            if arrival_s < limit_s:
                limit_s, best = arrival_s, other
        if best >= 0:
            stay[index] = limit_s + entering_s, one
            trails[one] = one, edge, trails[best]
    return stay


def _stints_of(trail: _Trail | None, end: int) -> list[Stint]:
    stints: list[Stint] = []
    while trail is not None:
        worker, start, trail = trail
        stints.append((worker, start, end))
        end = start
    return stints[::-1]
