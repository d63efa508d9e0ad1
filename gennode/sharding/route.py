"""Phase two, the chain of workers for one session: the cheapest one that is live now."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from gennode.wire.announcement import Announcement, Hosting
from gennode.wire.ids import Hop, ModelId, PeerId, Span
from gennode.wire.messages import MAX_ROUTE_HOPS

LinkTime = Callable[[PeerId, PeerId], float]
"""Seconds from one peer to another for one token's frame: ≥ 0, infinite if there is no way."""

# A route is searched among this many workers per layer, the nearest and quickest. It bounds the
# work (a link is asked for per pair: a thousand workers have a million) and changes nothing in
# a swarm where each layer has no more.
SHORTLIST = 16

# Loading is paid once and a step for each token of an answer, so one second of loading weighs
# as much as this many seconds in every step of a short answer.
LOAD_WEIGHT = 1 / 64

# A price per hop that no useful step time reaches: with it, fewer hops are always cheaper.
_FEWEST_HOPS_S = 1e6


@dataclass(frozen=True)
class Route:
    """A chain of hops that covers a span. `step_time_s`: predicted time of one token, once all
    is loaded, from the owner around to the owner. `cold`: what must be loaded first.
    """

    hops: tuple[Hop, ...]
    step_time_s: float
    cold: tuple[Hop, ...]


@dataclass(frozen=True)
class Gap:
    """Why there is no route, in words, and the layers that it fails at."""

    spans: tuple[Span, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class _Worker:
    """A worker as seen from here: the layers of the span that it has loaded, counted from the
    span's start; its time per layer as busy as it is; the links there and back.
    """

    peer: PeerId
    hosting: Hosting
    layers: list[int]
    time_s: float
    around_s: float


@dataclass(frozen=True, slots=True)
class _Offer:
    """Layers of one worker, all loaded or all to be loaded, at a cost per layer."""

    peer: PeerId
    layers: list[int]
    time_s: float
    cost_s: float
    cold: bool


_Table = list[dict[PeerId, _Offer]]
"""Per layer of the span: the workers that can compute it."""


def choose_route(
    announcements: Iterable[Announcement],
    *,
    model: ModelId,
    span: Span,
    entry: PeerId,
    exclude: frozenset[PeerId] = frozenset(),
    link_time_s: LinkTime,
    allow_cold: bool = True,
) -> Route | Gap:
    """The cheapest chain of workers over the layers of `span`, from `entry` and back to it.

    A hop costs the link from the hop before it, then per layer its measured time, stretched by
    how full the worker is, and `LOAD_WEIGHT` of the load time where it is not loaded. Workers
    may be entered and left in the middle of what they host. Full ones (`sessions` at
    `max_sessions`) and those in `exclude` are left out. Exact for up to `SHORTLIST` workers per
    layer. Where every two workers can reach each other, a Gap means that there is no chain.
    Equal costs are decided by peer id.
    """
    if span.layers <= 0:
        return Route((), 0.0, ())
    serving = [
        (announcement, hosting)
        for announcement in announcements
        if (hosting := announcement.hosting_of(model)) and announcement.peer not in exclude
    ]

    def link_s(here: PeerId, there: PeerId) -> float:
        return 0.0 if here == there else link_time_s(here, there)

    workers = [
        _worker(one, hosting, span, link_s(entry, one.peer) + link_s(one.peer, entry))
        for one, hosting in serving
        if one.sessions < hosting.max_sessions
    ]
    table: _Table = [{} for _ in range(span.layers)]
    _shortlist(table, _warm_offers(workers))
    if allow_cold and min(map(len, table)) < SHORTLIST:
        _shortlist(table, _cold_offers(workers, [len(offers) for offers in table]))
    if not all(table):
        return _gap(table, [hosting for _, hosting in serving], span)
    for hop_price_s in (0.0, _FEWEST_HOPS_S):
        chain = _cheapest_chain(table, entry, link_s, hop_price_s)
        if chain is None:
            return Gap((span,), f"no workers of layers {span} can reach each other")
        route = _route(chain, table, span, entry, link_s)
        if len(route.hops) <= MAX_ROUTE_HOPS:
            return route
    return Gap((span,), f"layers {span} take more than {MAX_ROUTE_HOPS} hops")


def _worker(one: Announcement, hosting: Hosting, span: Span, around_s: float) -> _Worker:
    layers: list[int] = []
    for held in hosting.spans:
        first, end = max(held.start, span.start), min(held.end, span.end)
        layers += range(first - span.start, end - span.start)
    time_s = hosting.layer_time_s * (1 + one.sessions / hosting.max_sessions)
    return _Worker(one.peer, hosting, layers, time_s, around_s)


def _warm_offers(workers: Iterable[_Worker]) -> Iterator[_Offer]:
    """What is loaded, the best first: a visit's links are shared by its layers."""

    def rank(worker: _Worker) -> tuple[float, PeerId]:
        links_s = worker.around_s / len(worker.layers)
        return worker.time_s + links_s, worker.peer

    for worker in sorted((worker for worker in workers if worker.layers), key=rank):
        yield _Offer(worker.peer, worker.layers, worker.time_s, worker.time_s, cold=False)


def _cold_offers(workers: Iterable[_Worker], cover: list[int]) -> Iterator[_Offer]:
    """What each worker would load on request: of what it lacks, the layers with least `cover`.

    Deciding this before the search keeps every promise (`spare_layers` holds for the whole
    route, even if it visits a worker twice) and the search exact, and leaves no layer without
    an offer if the swarm has room for it at all.
    """

    def cost_s(worker: _Worker) -> float:
        return worker.time_s + worker.hosting.load_time_s * LOAD_WEIGHT

    def rank(worker: _Worker) -> tuple[float, PeerId]:
        links_s = worker.around_s / min(worker.hosting.spare_layers, len(cover))
        return cost_s(worker) + links_s, worker.peer

    for worker in sorted((one for one in workers if one.hosting.spare_layers), key=rank):
        lacking = sorted(set(range(len(cover))).difference(worker.layers))
        layers = sorted(lacking, key=cover.__getitem__)[: worker.hosting.spare_layers]
        for layer in layers:
            cover[layer] += 1
        yield _Offer(worker.peer, layers, worker.time_s, cost_s(worker), cold=True)


def _shortlist(table: _Table, offers: Iterable[_Offer]) -> None:
    """Add offers, the best first, to the layers that have less than enough."""
    short = sum(len(row) < SHORTLIST for row in table)
    for offer in offers:
        if not short:
            break
        for layer in offer.layers:
            row = table[layer]
            if len(row) < SHORTLIST:
                row[offer.peer] = offer
                short -= len(row) == SHORTLIST


def _cheapest_chain(
    table: _Table, entry: PeerId, link_s: LinkTime, hop_price_s: float
) -> list[PeerId] | None:
    """Who computes each layer on the cheapest way, by dynamic programming over (layer, peer).

    Previous peers are tried cheapest first, so that a search ends at the first one that costs
    more before its link than the best so far does with it.
    """
    links_s: dict[tuple[PeerId, PeerId], float] = {}
    reached: list[tuple[float, PeerId]] = [(0.0, entry)]
    staying_s: dict[PeerId, float] = {}
    origins: list[dict[PeerId, PeerId]] = []
    for workers in table:
        arrivals = []
        origin: dict[PeerId, PeerId] = {}
        for peer, offer in workers.items():
            best_s, best = staying_s.get(peer, math.inf), peer
            for cost_s, previous in reached:
                if cost_s + hop_price_s >= best_s:
                    break
                pair = (previous, peer)
                if pair not in links_s:
                    links_s[pair] = link_s(previous, peer)
                arrival_s = cost_s + links_s[pair] + hop_price_s
                if arrival_s < best_s:
                    best_s, best = arrival_s, previous
            if best_s < math.inf:
                arrivals.append((best_s + offer.cost_s, peer))
                origin[peer] = best
        reached = sorted(arrivals)
        staying_s = {peer: cost_s for cost_s, peer in reached}
        origins.append(origin)
    ends = [(cost_s + link_s(peer, entry), peer) for cost_s, peer in reached]
    end_s, last = min(ends, default=(math.inf, entry))
    if end_s == math.inf:
        return None
    chain = [last]
    for origin in reversed(origins[1:]):
        chain.append(origin[chain[-1]])
    return chain[::-1]


def _runs(chain: Iterable[tuple[int, PeerId]]) -> tuple[Hop, ...]:
    """Layers in rising order with their peers, joined to hops."""
    hops: list[Hop] = []
    for layer, peer in chain:
        if hops and hops[-1].peer == peer and hops[-1].span.end == layer:
            hops[-1] = Hop(peer, Span(hops[-1].span.start, layer + 1))
        else:
            hops.append(Hop(peer, Span(layer, layer + 1)))
    return tuple(hops)


def _route(
    chain: Sequence[PeerId], table: _Table, span: Span, entry: PeerId, link_s: LinkTime
) -> Route:
    step_time_s = 0.0
    here = entry
    for workers, peer in zip(table, chain, strict=True):
        step_time_s += link_s(here, peer) + workers[peer].time_s
        here = peer
    numbered = list(enumerate(chain, span.start))
    cold = [(layer, peer) for layer, peer in numbered if table[layer - span.start][peer].cold]
    return Route(_runs(numbered), step_time_s + link_s(here, entry), _runs(cold))


def _gap(table: _Table, serving: Iterable[Hosting], span: Span) -> Gap:
    hosted = {
        layer
        for one in serving
        for held in one.spans
        for layer in range(max(held.start, span.start), min(held.end, span.end))
    }
    bare = [layer for layer, row in enumerate(table, span.start) if not row]
    parts = {
        "no live worker": [layer for layer in bare if layer not in hosted],
        "only workers that are full": [layer for layer in bare if layer in hosted],
    }
    reasons = []
    spans: list[Span] = []
    for what, layers in parts.items():
        found = [hop.span for hop in _runs((layer, PeerId("")) for layer in layers)]
        if found:
            reasons.append(f"layers {', '.join(map(str, found))} have {what}")
            spans += found
    return Gap(tuple(sorted(spans)), "; ".join(reasons))
