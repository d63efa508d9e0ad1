"""Small pools: placements whose machines serve several routes, and which one to take.

Disjoint pipelines waste what a quick machine has left beside slow ones. In a small pool that may
be much of it, so other placements are tried, and `flow` judges all: the one that lets most
tokens through within the step limit is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gennode.sharding import predict
from gennode.sharding.flow.flow import Flow, flow
from gennode.sharding.plan.groups import EXACT_MACHINES
from gennode.sharding.plan.pipeline import Pool
from gennode.sharding.plan.spare import spread
from gennode.wire.ids import Hop, PeerId, Span
from gennode.wire.snapshot import Candidate, Demand

# Windows of layers are as wide as they can be beside the caches of so many sessions.
WINDOW_SESSIONS = (1, 4, 16, 64)
# So many pipelines are given up in turn.
MAX_LEFT = 4
# Pipelines that others are placed around one at a time: those that are worth most alone.
LEADERS = 3
# In larger pools than the smallest, so many other placements are judged in all ways, after all
# have been in one.
FINALISTS = 4
# Another placement must let so much more through: less is not worth leaving pipelines for.
LEAST_GAIN = 1e-3

Pipelines = tuple[tuple[Hop, ...], ...]
Placement = tuple[Pipelines, tuple[Hop, ...]]


def best_placement(
    pipelines: Pipelines, by_peer: Mapping[PeerId, Candidate], pool: Pool
) -> Placement:
    """The placement through which most flows in time: pipelines and what everybody hosts.

    Where nothing flows in time, that of the pipelines given. A placement without pipelines in
    mind gets the disjoint ones of its routes.
    """
    demand = pool.demand
    best: Placement = pipelines, spread(list(by_peer.values()), _shares(pipelines), demand)
    most = _flow(best, by_peer, demand).rate_token_s
    others = list(dict.fromkeys(_others(pipelines, by_peer, pool)))
    if len(by_peer) > EXACT_MACHINES:
        rates = [_flow(other, by_peer, demand, quick=True).rate_token_s for other in others]
        order = sorted(range(len(others)), key=lambda at: (-rates[at], at))
        others = [others[at] for at in order[:FINALISTS]]
    for meant, hosts in others:
        found = _flow((meant, hosts), by_peer, demand)
        kept = meant or _disjoint(found)
        if kept and found.rate_token_s > most * (1 + LEAST_GAIN):
            best, most = (kept, hosts), found.rate_token_s
    return best


def _others(
    pipelines: Pipelines, by_peer: Mapping[PeerId, Candidate], pool: Pool
) -> Iterator[Placement]:
    """Fewer pipelines and the other machines around them; and windows of layers for all."""
    peers, demand = list(by_peer.values()), pool.demand
    in_time = [one for one in pipelines if _is_in_time(one, by_peer, demand)]
    parts = [tuple(in_time)] if len(in_time) < len(pipelines) else []
    if len(in_time) > 1:
        parts += [tuple(one for one in in_time if one is not left) for left in in_time[:MAX_LEFT]]
    parts += [(pool.hops(group),) for group in pool.best(LEADERS)]
    for part in parts:
        for sessions in WINDOW_SESSIONS if part else ():
            yield part, spread(peers, _shares(part), demand, sessions)
    for sessions in WINDOW_SESSIONS:
        yield (), spread(peers, {}, demand, sessions, full=False)


def _is_in_time(
    pipeline: Sequence[Hop], by_peer: Mapping[PeerId, Candidate], demand: Demand
) -> bool:
    stages = [predict.Stage(by_peer[hop.peer], hop.span.layers) for hop in pipeline]
    return predict.best_rate(stages, demand, demand.step_limit_s) > 0.0


def _shares(pipelines: Pipelines) -> dict[PeerId, Span]:
    return {hop.peer: hop.span for pipeline in pipelines for hop in pipeline}


def _flow(
    placement: Placement,
    by_peer: Mapping[PeerId, Candidate],
    demand: Demand,
    *,
    quick: bool = False,
) -> Flow:
    held = [(by_peer[hop.peer], hop.span) for hop in placement[1]]
    return flow(held, demand, demand.step_limit_s, placement[0], quick=quick)


def _disjoint(found: Flow) -> Pipelines:
    """Routes that share no machine, those that carry most first."""
    taken: set[PeerId] = set()
    kept = []
    for route, _ in sorted(found.routes, key=lambda one: -one[1]):
        peers = {hop.peer for hop in route}
        if len(peers) == len(route) and taken.isdisjoint(peers):
            taken |= peers
            kept.append(route)
    return tuple(sorted(kept, key=lambda hops: hops[0].peer))
