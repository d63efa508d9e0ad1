"""The cheapest chain of workers over layers, by dynamic programming over (layer, worker)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gennode.sharding.route.ways import Links
from gennode.wire.ids import PeerId

Row = dict[int, float]
"""Of one layer: the workers that can compute it, by index, and what each costs in seconds."""


def cheapest_chain(
    rows: Sequence[Row],
    there_s: Sequence[float],
    back_s: Sequence[float],
    visit_s: Sequence[float],
    into_s: Sequence[Links],
    peers: Sequence[PeerId],
) -> list[int] | None:
    """Who computes each layer on the cheapest way from the owner and back; None without any.

    `there_s`, `back_s`: from the owner to each worker and back. `visit_s`: charged whenever a
    worker is entered. `into_s`: to each worker from the others, by the names of `peers`. Equal
    costs go to whoever stays, then to the lower index.

    Workers of the layer before are tried cheapest first, so that a search ends at the first one
    that costs more before its link than the best so far does with it.
    """
    entered = [(there_s[one] + visit_s[one] + own_s, one) for one, own_s in rows[0].items()]
    reached = sorted(arrival for arrival in entered if arrival[0] < math.inf)
    origins: list[dict[int, int]] = []
    for row in rows[1:]:
        staying_s = {worker: cost_s for cost_s, worker in reached}
        arrivals: list[tuple[float, int]] = []
        origin: dict[int, int] = {}
        for worker, own_s in row.items():
            best_s, best = staying_s.get(worker, math.inf), worker
            entering_s, links_s = visit_s[worker], into_s[worker]
            limit_s = best_s - entering_s
            for cost_s, previous in reached:
                if cost_s >= limit_s:
                    break
                arrival_s = cost_s + links_s[peers[previous]]
                if arrival_s < limit_s:
                    limit_s, best = arrival_s, previous
            if best != worker:
                best_s = limit_s + entering_s
            if best_s < math.inf:
                arrivals.append((best_s + own_s, worker))
                origin[worker] = best
        arrivals.sort()
        reached = arrivals
        origins.append(origin)
    ends = ((cost_s + back_s[worker], worker) for cost_s, worker in reached)
    end_s, last = min(ends, default=(math.inf, -1))
    if end_s == math.inf:
        return None
    chain = [last]
    for origin in reversed(origins):
        chain.append(origin[chain[-1]])
    return chain[::-1]
