"""Phase two, the chain of workers for one session: the best one that is live now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

import numpy as np

from gennode.sharding.route.chain import cheapest_chain
from gennode.sharding.route.offers import (
    LOAD_WEIGHT,
    SHORTLIST,
    Asking,
    Entry,
    Pool,
    Table,
    asking,
    sessions_now,
    shortlisted,
)
from gennode.sharding.route.preferences import Mode, Preferences, choose_mode
from gennode.sharding.route.runs import Costs, Stint, cheapest_stints
from gennode.sharding.route.ways import LinkTime, Ways
from gennode.wire.announcement import Announcement
from gennode.wire.ids import Hop, ModelId, PeerId, Span
from gennode.wire.messages import MAX_ROUTE_HOPS

__all__ = [
    "LOAD_WEIGHT",
    "SHORTLIST",
    "Gap",
    "LinkTime",
    "Mode",
    "Preferences",
    "Route",
    "RouteBoard",
    "Ways",
    "choose_mode",
    "choose_route",
    "choose_routes",
]

# A price per hop that no useful step time reaches: with it, fewer hops are always cheaper.
_FEWEST_HOPS_S = 1e6
# A price per layer that outweighs all times, and is outweighed by the one above.
_SHARED_LAYER_S = 1e3

# Weights of price against time, as powers of 4, that cost-first tries; and one for price alone.
_FRUGALITIES = (-6, 6)
_ONLY_PRICE = 1e3

NO_PREFERENCES = Preferences()

_Search = Callable[[float], "Route | None"]
"""The best route at a price in seconds for each visit, None if there is no way."""


@dataclass(frozen=True)
class Route:
    """A chain of hops that covers a span. `step_time_s`: predicted time of one token, once all
    is loaded, from the owner around to the owner. `cold`: what must be loaded first. `price`:
    credits that all hops together ask for a million tokens.
    """

    hops: tuple[Hop, ...]
    step_time_s: float
    cold: tuple[Hop, ...]
    price: int = 0


@dataclass(frozen=True)
class Gap:
    """Why there is no route, in words, and the layers that it fails at."""

    spans: tuple[Span, ...]
    reason: str


class RouteBoard:
    """Announcements of one moment, made ready to be asked for many routes of one model.

    What links take is asked once for a pair and remembered: make a new board when announcements
    or links have changed. Boards with the same links may share `Ways` in place of a function.
    """

    def __init__(
        self,
        announcements: Iterable[Announcement],
        *,
        model: ModelId,
        link_time_s: LinkTime | Ways,
    ) -> None:
        ways = link_time_s if isinstance(link_time_s, Ways) else Ways(link_time_s)
        self._pool = Pool(announcements, model, ways)

    def route(
        self,
        span: Span,
        entry: PeerId,
        *,
        exclude: frozenset[PeerId] = frozenset(),
        allow_cold: bool = True,
        preferences: Preferences = NO_PREFERENCES,
        rng: Random | None = None,
    ) -> Route | Gap:
        """The best chain over `span` from `entry` and back to it; see `choose_route`."""
        if span.layers <= 0:
            return Route((), 0.0, ())
        asked = asking(self._pool, span.end, exclude, preferences, rng)
        return self._chosen(span, entry, asked, preferences, allow_cold)

    def routes(
        self,
        span: Span,
        entry: PeerId,
        *,
        count: int,
        exclude: frozenset[PeerId] = frozenset(),
        allow_cold: bool = True,
        preferences: Preferences = NO_PREFERENCES,
        rng: Random | None = None,
    ) -> list[Route]:
        """The best chain and others that can stand in for it; see `choose_routes`."""
        each = self.each_route(
            span, entry, exclude=exclude, allow_cold=allow_cold, preferences=preferences, rng=rng
        )
        return list(islice(each, max(0, count)))

    def each_route(
        self,
        span: Span,
        entry: PeerId,
        *,
        exclude: frozenset[PeerId] = frozenset(),
        allow_cold: bool = True,
        preferences: Preferences = NO_PREFERENCES,
        rng: Random | None = None,
    ) -> Iterator[Route]:
        """The same one after the other, each searched for when it is asked for."""
        if span.layers <= 0:
            return
        asked = asking(self._pool, span.end, exclude, preferences, rng)
        found: list[tuple[Hop, ...]] = []
        while True:
            route = self._chosen(span, entry, asked, preferences, allow_cold)
            if isinstance(route, Gap) or route.hops in found:
                return
            found.append(route.hops)
            yield route
            shared_s = asked.extra_s.copy()
            for peer in {hop.peer for hop in route.hops}:
                shared_s[self._pool.index[peer]] += _SHARED_LAYER_S
            asked = replace(asked, extra_s=shared_s)

    def load(
        self, span: Span, entry: PeerId, *, preferences: Preferences = NO_PREFERENCES
    ) -> float:
        """How full the shortlisted workers of the fullest layer are, 0 to 1: for `choose_mode`.

        1 if some layer has nobody with room.
        """
        if span.layers <= 0:
            return 0.0
        pool = self._pool
        table = Table(pool, asking(pool, span.end, frozenset(), preferences, None), span, entry)
        full = (sessions_now(pool, preferences) / pool.max_sessions.clip(1)).tolist()
        return max(
            sum(full[worker] for worker in row) / len(row) if row else 1.0 for row in table.rows
        )

    def _chosen(
        self, span: Span, entry: PeerId, asked: Asking, preferences: Preferences, allow_cold: bool
    ) -> Route | Gap:
        if preferences.mode is Mode.COST_FIRST:
            return self._frugal(span, entry, asked, preferences.step_limit_s, allow_cold)
        return self._best(span, entry, asked, allow_cold)

    def _best(self, span: Span, entry: PeerId, asked: Asking, allow_cold: bool) -> Route | Gap:
        pool = self._pool
        if pool.ways.is_metric and not (allow_cold and pool.loads_cold):
            search = self._by_runs(span, entry, asked)
        else:
            search = self._by_layers(span, entry, asked, allow_cold)
        if isinstance(search, Gap):
            return search
        for hop_price_s in (0.0, _FEWEST_HOPS_S):
            route = search(hop_price_s)
            if route is None:
                return Gap((span,), f"no workers of layers {span} can reach each other")
            if len(route.hops) <= MAX_ROUTE_HOPS:
                return route
        return Gap((span,), f"layers {span} take more than {MAX_ROUTE_HOPS} hops")

    def _by_layers(
        self, span: Span, entry: PeerId, asked: Asking, allow_cold: bool
    ) -> _Search | Gap:
        pool = self._pool
        table = Table(pool, asked, span, entry)
        if allow_cold:
            table.add_cold()
        if not all(table.rows):
            return self._gap(span, asked, [at for at, row in enumerate(table.rows) if not row])
        ends = table.entry

        def search(hop_price_s: float) -> Route | None:
            visit_s = (asked.visit_s + hop_price_s).tolist()
            chain = cheapest_chain(
                table.rows, ends.there_s, ends.back_s, visit_s, pool.into_s, pool.peers
            )
            if chain is None:
                return None
            numbered = list(enumerate(chain, span.start))
            cold = [
                (at, worker) for at, worker in numbered if (at - span.start, worker) in table.cold
            ]
            return self._route(_stints(numbered), ends, asked, _stints(cold))

        return search

    def _by_runs(self, span: Span, entry: PeerId, asked: Asking) -> _Search | Gap:
        pool = self._pool
        runs = shortlisted(pool, asked, span, entry)
        if runs is None:
            offered = np.count_nonzero(pool.hosts(span)[asked.is_open], axis=0)
            return self._gap(span, asked, (offered == 0).nonzero()[0].tolist())
        ends, own_s = pool.entered_from(entry), asked.cost_s.tolist()

        def search(hop_price_s: float) -> Route | None:
            visit_s = (asked.visit_s + hop_price_s).tolist()
            costs = Costs(own_s, ends.there_s, ends.back_s, visit_s, pool.into_s, pool.peers)
            stints = cheapest_stints(runs, costs)
            return None if stints is None else self._route(stints, ends, asked, ())

        return search

    def _frugal(
        self, span: Span, entry: PeerId, asked: Asking, limit_s: float, allow_cold: bool
    ) -> Route | Gap:
        """The cheapest chain found within a step time, the quickest if there is none.

        A least price under a limit of time is hard to find exactly, so we weigh the two and
        search for the weight: the best chain at some weight, which is near the optimum. Source:
        Handler, Zang, "A dual algorithm for the constrained shortest path problem", Networks
        10, 1980.
        """

        def weighed(frugality: float) -> Route | Gap:
            layer_s, visit_s = asked.frugal_s(self._pool.price)
            extra_s = asked.extra_s + frugality * layer_s
            dear = replace(asked, extra_s=extra_s, visit_s=asked.visit_s + frugality * visit_s)
            return self._best(span, entry, dear, allow_cold)

        cheapest = weighed(_ONLY_PRICE)
        if isinstance(cheapest, Gap) or cheapest.step_time_s <= limit_s:
            return cheapest
        chosen = self._best(span, entry, asked, allow_cold)
        if isinstance(chosen, Gap) or chosen.step_time_s > limit_s:
            return chosen
        low, high = _FRUGALITIES
        while low < high:
            middle = (low + high + 1) // 2
            found = weighed(4.0**middle)
            if isinstance(found, Gap) or found.step_time_s > limit_s:
                high = middle - 1
            else:
                low, chosen = middle, found
        return chosen

    def _route(
        self, stints: Sequence[Stint], ends: Entry, asked: Asking, cold: Sequence[Stint]
    ) -> Route:
        pool, step_time_s, price = self._pool, 0.0, 0
        before = -1
        for worker, start, end in stints:
            if before < 0:
                step_time_s = ends.there_s[worker]
            else:
                step_time_s += pool.into_s[worker][pool.peers[before]]
            step_time_s += float(asked.time_s[worker]) * (end - start)
            price += pool.hostings[worker].price * (end - start)
            before = worker
        step_time_s += ends.back_s[before]
        return Route(self._hops(stints), step_time_s, self._hops(cold), price)

    def _hops(self, stints: Sequence[Stint]) -> tuple[Hop, ...]:
        peers = self._pool.peers
        return tuple(Hop(peers[worker], Span(start, end)) for worker, start, end in stints)

    def _gap(self, span: Span, asked: Asking, bare: Sequence[int]) -> Gap:
        """What there is in place of a route. `bare`: layers of `span` that nobody offers."""
        hosts = np.count_nonzero(self._pool.hosts(span)[asked.is_known], axis=0).tolist()
        known = [hosts[layer] > 0 for layer in bare]
        parts = {
            "no live worker": [layer for layer, held in zip(bare, known, strict=True) if not held],
            "only workers that are full": [
                layer for layer, held in zip(bare, known, strict=True) if held
            ],
        }
        reasons = []
        spans: list[Span] = []
        for what, layers in parts.items():
            runs = _stints((span.start + layer, 0) for layer in layers)
            found = [Span(start, end) for _, start, end in runs]
            if found:
                reasons.append(f"layers {', '.join(map(str, found))} have {what}")
                spans += found
        return Gap(tuple(sorted(spans)), "; ".join(reasons))


def choose_route(
    announcements: Iterable[Announcement],
    *,
    model: ModelId,
    span: Span,
    entry: PeerId,
    exclude: frozenset[PeerId] = frozenset(),
    link_time_s: LinkTime,
    allow_cold: bool = True,
    preferences: Preferences = NO_PREFERENCES,
    rng: Random | None = None,
) -> Route | Gap:
    """The best chain of workers over the layers of `span`, from `entry` and back to it.

    A hop costs the link from the hop before it, then per layer its measured time, that of the
    sessions in line before ours, and `LOAD_WEIGHT` of the load time where it is not loaded;
    `preferences` may add a price and a risk. Workers may be entered and left in the middle of
    what they host. Full ones (`sessions` at `max_sessions`) and those in `exclude` are left out.
    Exact for up to `SHORTLIST` workers per layer. Where every two workers can reach each other,
    a Gap means that there is no chain. Equal costs are decided by peer id. With an `rng`, owners
    who know the same choose differently; the same one makes the same route.
    """
    board = RouteBoard(announcements, model=model, link_time_s=link_time_s)
    return board.route(
        span, entry, exclude=exclude, allow_cold=allow_cold, preferences=preferences, rng=rng
    )


def choose_routes(
    announcements: Iterable[Announcement],
    *,
    model: ModelId,
    span: Span,
    entry: PeerId,
    count: int,
    exclude: frozenset[PeerId] = frozenset(),
    link_time_s: LinkTime,
    allow_cold: bool = True,
    preferences: Preferences = NO_PREFERENCES,
    rng: Random | None = None,
) -> list[Route]:
    """Up to `count` different routes; the first is the best one, the others are for failover.

    Each next one has as few layers as can be on workers of those before it, among the chains
    that the shortlists allow. So it shares no worker with them if there is such a chain, and
    where all workers can reach each other it shares only layers that nobody else has. Fewer
    than `count` if there are no more; none where `choose_route` has a Gap.
    """
    board = RouteBoard(announcements, model=model, link_time_s=link_time_s)
    return board.routes(
        span,
        entry,
        count=count,
        exclude=exclude,
        allow_cold=allow_cold,
        preferences=preferences,
        rng=rng,
    )


def _stints(chain: Iterable[tuple[int, int]]) -> list[Stint]:
    """Layers in rising order with their workers, joined."""
    stints: list[Stint] = []
    for layer, worker in chain:
        if stints and stints[-1][0] == worker and stints[-1][2] == layer:
            stints[-1] = (worker, stints[-1][1], layer + 1)
        else:
            stints.append((worker, layer, layer + 1))
    return stints
