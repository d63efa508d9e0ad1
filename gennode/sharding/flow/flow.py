"""What any placement achieves, overlaps and all: the most tokens per second within a time limit.

`predict` judges one pipeline of machines that serve nobody else. Here machines are shared: spans
overlap, and routes enter and leave them in the middle. A machine that routes of `rate_f` tokens
per second cross with `n_f` layers each, `N` layers in all, works in passes of

    P = (N * fixed_s + pass_s) / (1 - token_s * sum(rate_f * n_f))

A token waits for half a pass if one runs, and then for its own part of the next. With one route
of all layers this is `predict.stage_s`; the frames of all routes share the machine's line.

Routes are filled by successive least-time paths, as in the incremental assignment of traffic
(Sheffi, "Urban Transportation Networks", 1985, section 5.1), each as far as no token of any
route is late. That finds a rate that a router can reach, and not always the largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gennode.sharding.flow.paths import Paths, Visit
from gennode.sharding.predict import MAX_LOAD
from gennode.wire.ids import Hop, PeerId, Span
from gennode.wire.snapshot import Candidate, Demand

# The most that fits on a route is halved in on this often: to a millionth of what it could be,
# and coarsely where only a part is taken anyway.
_BISECTIONS, _COARSE_BISECTIONS = 20, 8
# All are tried, and the best one counts: filling each route at once, which is best for disjoint
# chains, and in turns, so that routes that share machines find their balance; paths of least
# time, and paths that leave no part of a span over (`Paths.least`).
_WAYS = ((1, False), (5, False), (1, True), (5, True))
# With more hosts than so many, the one way that does best there in the time that there is, from
# `pipelines` if there are any.
_FEW_HOSTS, _MANY_HOSTS = 64, 256
_WAYS_OF_SOME, _WAYS_OF_MANY = ((5, True),), ((1, True),)
# A route whose tokens take this share of the limit is full: bisection ends just below it.
_FULL = 0.9999
# Nobody waits longer (11 days): stands for no limit, and is below infinity.
_LONGEST_S = 1e6
# No token gets round faster: keeps the rate of a host that claims to take no time finite.
_QUICKEST_S = 1e-6
# Searches at most: far more than a thousand hosts need.
_MAX_SEARCHES = 4096


@dataclass(frozen=True, slots=True)
class Flow:
    """What a placement achieves: tokens per second, the mean seconds of a token, who goes where.

    `routes`: chains that each cover the model, with the tokens per second that take it.
    `step_s` is infinite if nothing flows.
    """

    rate_token_s: float
    step_s: float
    routes: tuple[tuple[tuple[Hop, ...], float], ...]


NOTHING = Flow(0.0, math.inf, ())


def flow(
    hosts: Sequence[tuple[Candidate, Span]],
    demand: Demand,
    limit_s: float,
    pipelines: Sequence[Sequence[Hop]] = (),
    *,
    quick: bool = False,
) -> Flow:
    """The most tokens per second that we find such that none takes longer than `limit_s`.

    `hosts`: distinct peers in any order, each with the span that it holds. `pipelines`: routes
    that whoever made the placement had in mind; they are tried first, if the hosts hold them.
    `quick`: fill in one way, whatever the number of hosts; to choose between many placements.
    Deterministic, with the same bits on every machine. The time grows with hosts times
    routes: a second or two for 1,000 hosts.
    """
    ordered = sorted(
        (
            (candidate, Span(max(0, span.start), min(demand.layers, span.end)))
            for candidate, span in hosts
        ),
        key=lambda host: host[0].peer,
    )
    ordered = [(candidate, span) for candidate, span in ordered if span.start < span.end]
    places = {candidate.peer: index for index, (candidate, _) in enumerate(ordered)}
    seeds = [_visits(pipeline, places, ordered, demand) for pipeline in pipelines]
    seeds = [seed for seed in seeds if seed]
    few = len(ordered) <= _FEW_HOSTS and not quick
    ways = _WAYS_OF_SOME if len(ordered) <= _MANY_HOSTS else _WAYS_OF_MANY
    best = NOTHING
    for seeding in ((), seeds) if seeds and few else (seeds,):
        for turns, whole in _WAYS if few else ways:
            found = _Swarm(ordered, demand, limit_s, whole=whole).filled(turns, seeding)
            if (found.rate_token_s, -found.step_s) > (best.rate_token_s, -best.step_s):
                best = found
    return best


def _visits(
    pipeline: Sequence[Hop],
    places: dict[PeerId, int],
    ordered: Sequence[tuple[Candidate, Span]],
    demand: Demand,
) -> tuple[Visit, ...]:
    """A pipeline by the places of its hosts; empty if they don't hold it or it has gaps."""
    visits = []
    end = 0
    for hop in pipeline:
        place = places.get(hop.peer)
        if place is None or hop.span.start != end or not ordered[place][1].covers(hop.span):
            return ()
        visits.append(Visit(place, hop.span.start, hop.span.end))
        end = hop.span.end
    return tuple(visits) if end == demand.layers else ()


class _Load:
    """What crosses a machine (rates are tokens per second), and what becomes of its passes."""

    __slots__ = ("longest", "mask", "pass_s", "sent", "visits", "wait_s", "work")

    def __init__(self) -> None:
        self.work = self.visits = self.sent = 0.0  # sums of rate * layers, of rates, on the line
        self.mask = self.longest = 0  # the layers that routes cross, and the most of one route
        self.pass_s = self.wait_s = 0.0

    def with_route(self, route: _Route, rate: float, place: int) -> _Load:
        """The same with `rate` more tokens per second of a route."""
        more = _Load()
        more.work, more.visits, more.sent = self.work, self.visits, self.sent
        more.mask, more.longest = self.mask, self.longest
        for visit in route.visits:
            if visit.place == place:
                layers = visit.end - visit.start
                more.work += rate * layers
                more.visits += rate
                more.sent += rate if len(route.visits) > 1 else 0.0
                more.mask |= (1 << visit.end) - (1 << visit.start)
                more.longest = max(more.longest, layers)
        return more

    def settle(self, candidate: Candidate) -> None:
        """Work out the pass and the wait; infinite if too much crosses."""
        cost, extra_s = candidate.cost, candidate.pass_s
        load = cost.token_s * self.work
        if load >= MAX_LOAD:
            self.pass_s = self.wait_s = math.inf
            return
        once_s = self.mask.bit_count() * cost.fixed_s + extra_s
        self.pass_s = max(once_s / (1 - load), once_s + self.longest * cost.token_s)
        self.wait_s = min(1.0, self.visits * self.pass_s) / 2 * self.pass_s


class _Machine:
    """One host, what crosses it, and what its memory keeps."""

    __slots__ = ("cached", "candidate", "frame_s", "left_bytes", "load", "sessions", "users")

    def __init__(self, candidate: Candidate, span: Span, demand: Demand) -> None:
        self.candidate = candidate
        self.left_bytes = max(0, candidate.memory_bytes - span.layers * demand.layer_bytes)
        upload = candidate.upload_bytes_per_s
        self.frame_s = demand.frame_bytes / upload if upload > 0 else 0.0
        self.load = _Load()
        self.sessions = self.cached = 0.0  # sums of rate * time, and of rate * time * layers
        self.users: list[_Route] = []

    def own_s(self, load: _Load, layers: int) -> float:
        """Seconds of a token's own part of a pass."""
        cost = self.candidate.cost
        alone_s = layers * (cost.fixed_s + cost.token_s) + self.candidate.pass_s
        return max(alone_s, layers / max(1, load.mask.bit_count()) * load.pass_s)

    def send_s(self, load: _Load) -> float:
        """Seconds of a frame on the machine's own line, with the wait for others (M/D/1)."""
        busy = load.sent * self.frame_s
        if busy >= MAX_LOAD:
            return math.inf
        return self.frame_s * (1 + busy / (2 * (1 - busy)))

    def marginal_s(self) -> tuple[float, float]:
        """Seconds that one more token would take here: for coming at all, and per layer."""
        cost, load = self.candidate.cost, self.load
        layer_s = cost.fixed_s + cost.token_s
        shared_s = load.pass_s / max(1, load.mask.bit_count())
        if layer_s >= shared_s:
            return load.wait_s + self.candidate.pass_s, layer_s
        return load.wait_s, shared_s

    def room(self, longest: int, demand: Demand) -> int:
        """Layers times sessions that there is memory for: whole sessions of the longest part."""
        return self.left_bytes // max(1, longest * demand.session_bytes) * longest

    def is_full(self, demand: Demand) -> bool:
        """Whether next to nothing more fits."""
        return (
            self.sessions >= _FULL * self.candidate.max_sessions
            or self.cached >= _FULL * self.room(self.load.longest, demand)
            or self.candidate.cost.token_s * self.load.work >= _FULL * MAX_LOAD
            or self.load.sent * self.frame_s >= _FULL * MAX_LOAD
        )


class _Route:
    """One chain of visits, the tokens per second that take it, and how long they take."""

    __slots__ = ("rate", "time_s", "visits", "way_s")

    def __init__(self, visits: tuple[Visit, ...], way_s: float) -> None:
        self.visits = visits
        self.way_s = way_s
        self.rate = self.time_s = 0.0


@dataclass(frozen=True, slots=True)
class _Change:
    """What some more tokens on a route change: loads by place, times and rates of routes."""

    loads: dict[int, _Load]
    times: list[tuple[_Route, float, float]]
    kept: dict[int, tuple[float, float]]


class _Swarm:
    """All hosts, and the routes filled so far."""

    def __init__(
        self,
        hosts: Sequence[tuple[Candidate, Span]],
        demand: Demand,
        limit_s: float,
        *,
        whole: bool,
    ) -> None:
        self.demand = demand
        self.whole = whole
        self.limit_s = min(limit_s, _LONGEST_S)
        self.hosts = hosts
        self.machines = [_Machine(candidate, span, demand) for candidate, span in hosts]
        self.paths = Paths([(host.coordinate, span) for host, span in hosts], demand.layers)
        self.routes: dict[tuple[Visit, ...], _Route] = {}
        self.open = [machine.left_bytes >= demand.session_bytes for machine in self.machines]
        self.changed = list(range(len(hosts)))  # whose prices the paths don't know yet

    def filled(self, turns: int, seeds: Sequence[tuple[Visit, ...]]) -> Flow:
        """Fill `seeds` and then least-time paths, a part in each turn and all in the last."""
        for turn in range(turns - 1):
            taken = list(self.open)
            batch = list(seeds) or self._search(taken)
            while batch:
                for visits in batch:
                    self._push(visits, 1 / (turns - turn))
                    for visit in visits:
                        taken[visit.place] = False
                batch = self._search(taken)
        batch = list(seeds)
        for _ in range(_MAX_SEARCHES):
            for visits in batch:
                self._fill(visits)
            batch = self._search(self.open)
            if not batch:
                break
        return self._result()

    def _search(self, usable: Sequence[bool]) -> list[tuple[Visit, ...]]:
        for place in self.changed:
            machine = self.machines[place]
            coming_s, layer_s = machine.marginal_s()
            self.paths.price(place, coming_s, layer_s, machine.send_s(machine.load))
        self.changed.clear()
        found = self.paths.least(usable, self.limit_s, whole=True) if self.whole else []
        return found or self.paths.least(usable, self.limit_s)

    def _fill(self, visits: tuple[Visit, ...]) -> None:
        """Push all that fits, and close what is full then: one machine at least."""
        if not all(self.open[visit.place] for visit in visits):
            return
        self._push(visits, 1.0)
        places = sorted({visit.place for visit in visits})
        full = []
        for place in places:
            machine = self.machines[place]
            late = any(user.time_s >= _FULL * self.limit_s for user in machine.users)
            if late or machine.is_full(self.demand):
                full.append(place)
        if not full:  # somewhere else there is no room for tokens that take longer
            full = [max(places, key=lambda place: (len(self.machines[place].users), -place))]
        for place in full:
            self.open[place] = False

    def _push(self, visits: tuple[Visit, ...], share: float) -> None:
        """Let a share of the most that fits take a path."""
        route = self.routes.get(visits)
        if route is None:
            route = _Route(visits, self.paths.way_s([visit.place for visit in visits]))
        low, high = 0.0, self._bound(route)
        bisections = _BISECTIONS if share == 1.0 else _COARSE_BISECTIONS
        least = high / (1 << (_BISECTIONS - 1))
        for _ in range(bisections):
            rate = (low + high) / 2
            if self._changed(route, rate) is None:
                high = rate
            else:
                low = rate
        if low > least and (change := self._changed(route, low * share)):
            self._commit(route, change)

    def _bound(self, route: _Route) -> float:
        """More than this can't be added, whatever else is checked."""
        alone_s = route.way_s
        for place, start, end in route.visits:
            machine = self.machines[place]
            alone_s += machine.own_s(machine.load, end - start)
        bound = math.inf
        for place, start, end in route.visits:
            machine = self.machines[place]
            token_s = machine.candidate.cost.token_s * (end - start)
            if token_s > 0:
                bound = min(bound, MAX_LOAD / token_s)
            sessions = machine.left_bytes / ((end - start) * self.demand.session_bytes)
            sessions = min(sessions, machine.candidate.max_sessions)
            bound = min(bound, sessions / max(alone_s, _QUICKEST_S))
        return bound

    def _changed(self, route: _Route, rate: float) -> _Change | None:
        """What `rate` more tokens per second on a route change; None if they don't fit."""
        places = sorted({visit.place for visit in route.visits})
        loads = {}
        affected = {route.visits: route}
        for place in places:
            machine = self.machines[place]
            loads[place] = machine.load.with_route(route, rate, place)
            loads[place].settle(machine.candidate)
            for user in machine.users:
                affected[user.visits] = user
        times = []
        kept: dict[int, tuple[float, float]] = {}
        for one in affected.values():
            time_s = self._time_s(one, loads)
            if time_s > self.limit_s:
                return None
            total = one.rate + rate if one is route else one.rate
            times.append((one, total, time_s))
            sessions = total * time_s - one.rate * one.time_s
            for place, start, end in one.visits:
                before = kept.get(place, (0.0, 0.0))
                kept[place] = before[0] + sessions, before[1] + sessions * (end - start)
        for place, (sessions, cached) in kept.items():
            machine = self.machines[place]
            longest = loads.get(place, machine.load).longest
            if (
                machine.sessions + sessions > machine.candidate.max_sessions
                or machine.cached + cached > machine.room(longest, self.demand)
            ):
                return None
        return _Change(loads, times, kept)

    def _time_s(self, route: _Route, loads: dict[int, _Load]) -> float:
        total_s = route.way_s
        crosses = len(route.visits) > 1
        for place, start, end in route.visits:
            machine = self.machines[place]
            load = loads.get(place, machine.load)
            total_s += load.wait_s + machine.own_s(load, end - start)
            if crosses:
                total_s += machine.send_s(load)
        return total_s

    def _commit(self, route: _Route, change: _Change) -> None:
        if route.visits not in self.routes:
            self.routes[route.visits] = route
            for place in sorted({visit.place for visit in route.visits}):
                self.machines[place].users.append(route)
        for place, load in change.loads.items():
            self.machines[place].load = load
            self.changed.append(place)
        for one, rate, time_s in change.times:
            one.rate, one.time_s = rate, time_s
        for place, (sessions, cached) in change.kept.items():
            self.machines[place].sessions += sessions
            self.machines[place].cached += cached

    def _result(self) -> Flow:
        rate = waiting = 0.0
        routes = []
        for visits, route in sorted(self.routes.items()):
            rate += route.rate
            waiting += route.rate * route.time_s
            hops = (
                Hop(self.hosts[place][0].peer, Span(start, end)) for place, start, end in visits
            )
            routes.append((tuple(hops), route.rate))
        return Flow(rate, waiting / rate, tuple(routes)) if routes else NOTHING
