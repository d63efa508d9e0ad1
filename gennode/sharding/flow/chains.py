"""Chains in a placement as it is: spans that follow each other without a gap or an overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gennode.sharding.predict import link_s, stage_s
from gennode.wire.ids import Hop, Span
from gennode.wire.snapshot import Candidate, Demand

Host = tuple[Candidate, Span]


def chains_of(hosts: Sequence[Host], demand: Demand) -> tuple[tuple[Hop, ...], ...]:
    """Disjoint chains that cover the model, the quickest first, each as quick as what is left
    allows. A placement that a plan made has as many of them as the plan had pipelines, if not
    the same ones.
    """
    free = sorted(hosts, key=lambda host: (host[1], host[0].peer))
    chains: list[tuple[Hop, ...]] = []
    while (chain := _quickest(free, demand)) is not None:
        chains.append(tuple(Hop(one.peer, span) for one, span in chain))
        taken = {one.peer for one, _ in chain}
        free = [host for host in free if host[0].peer not in taken]
    return tuple(chains)


def _quickest(hosts: Sequence[Host], demand: Demand) -> list[Host] | None:
    """The chain from the first layer to the last that takes an idle token least time.

    By dynamic programming over hosts in order of their starts; the way from one to the next
    counts, that of the last to the first does not.
    """
    ending: dict[int, list[int]] = {}
    best_s: list[float] = []
    before: list[int] = []
    for index, (one, span) in enumerate(hosts):
        reached_s, origin = (0.0, -1) if span.start == 0 else (math.inf, -1)
        for previous in ending.get(span.start, ()):
            arrival_s = best_s[previous] + link_s(hosts[previous][0], one, demand, 0.0)
            if arrival_s < reached_s:
                reached_s, origin = arrival_s, previous
        best_s.append(reached_s + stage_s(one, span.layers, 0.0))
        before.append(origin)
        if best_s[-1] < math.inf and span.layers > 0:
            ending.setdefault(span.end, []).append(index)
    last = min(ending.get(demand.layers, ()), key=best_s.__getitem__, default=-1)
    if last < 0:
        return None
    chain = []
    while last >= 0:
        chain.append(hosts[last])
        last = before[last]
    return chain[::-1]
