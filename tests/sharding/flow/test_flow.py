"""The judge of placements: one chain is `predict`'s, shared machines do what a simulation does."""

from __future__ import annotations

import heapq
import math
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gennode.sharding.flow.flow import Flow, flow
from gennode.sharding.predict import Stage, best_rate, step_s
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import Hop, PeerId, Span
from gennode.wire.snapshot import Candidate, Demand, LayerCost

DEMAND = Demand(layers=12, layer_bytes=100, session_bytes=10, frame_bytes=4000)
NEAR, FAR = Coordinate(0.0, 0.0, 0.002), Coordinate(0.02, 0.0, 0.002)
Hosts = list[tuple[Candidate, Span]]


def machine(
    name: str,
    *,
    fixed_s: float = 1e-3,
    token_s: float = 5e-5,
    memory_bytes: int = 10_000,
    max_sessions: int = 64,
    upload_bytes_per_s: float = 1e7,
    where: Coordinate = NEAR,
) -> Candidate:
    cost = LayerCost(fixed_s, token_s)
    return Candidate(
        PeerId(name), 12, memory_bytes, max_sessions, cost, 1e-3, upload_bytes_per_s, where
    )


def drawn(seed: int, count: int) -> Hosts:
    """Random machines with random spans."""
    rng = random.Random(seed)
    hosts = []
    for number in range(count):
        start = rng.randrange(12)
        one = machine(
            f"p{number:03}",
            fixed_s=rng.uniform(1e-4, 3e-3),
            token_s=rng.uniform(0, 3e-4),
            memory_bytes=rng.randrange(100, 20_000),
            max_sessions=rng.choice((1, 8, 64)),
            upload_bytes_per_s=rng.choice((0, 1e6, 1e8)),
            where=Coordinate(rng.uniform(0, 0.03), rng.uniform(0, 0.03), rng.uniform(0, 0.004)),
        )
        hosts.append((one, Span(start, rng.randint(start + 1, 12))))
    return hosts


@given(seed=st.integers(0, 9999), stages=st.integers(1, 4), limit_s=st.floats(0.02, 2.0))
@settings(deadline=None, max_examples=40)
def test_a_chain_alone_gives_what_predict_says(seed: int, stages: int, limit_s: float) -> None:
    rng = random.Random(seed)
    cuts = [0, *sorted(rng.sample(range(1, 12), stages - 1)), 12]
    hosts = [
        (one, Span(start, end))
        for (one, _), start, end in zip(drawn(seed, stages), cuts, cuts[1:], strict=False)
    ]
    chain = [Stage(one, span.layers) for one, span in hosts]
    expected = best_rate(chain, DEMAND, limit_s)
    found = flow(hosts, DEMAND, limit_s)
    assert found.rate_token_s == pytest.approx(expected, rel=1e-3)
    if expected:
        assert found.step_s == pytest.approx(step_s(chain, DEMAND, found.rate_token_s), rel=1e-9)


def test_chains_that_share_nothing_add_up() -> None:
    hosts = [
        (machine(f"{chain}{stage}", fixed_s=1e-3 * (1 + chain / 4)), Span(6 * stage, 6 * stage + 6))
        for chain in range(3)
        for stage in range(2)
    ]
    apart = [
        best_rate([Stage(one, 6) for one, _ in hosts[2 * n : 2 * n + 2]], DEMAND, 0.05)
        for n in range(3)
    ]
    pipelines = [[Hop(one.peer, span) for one, span in hosts[2 * n : 2 * n + 2]] for n in range(3)]
    assert flow(hosts, DEMAND, 0.05, pipelines).rate_token_s >= sum(apart) * 0.999
    assert flow(hosts, DEMAND, 0.05).rate_token_s >= sum(apart) * 0.9


def test_a_second_host_of_half_the_layers_relieves_the_first() -> None:
    one, other = (machine(name, memory_bytes=1_000_000, max_sessions=999) for name in "ab")
    alone = flow([(one, Span(0, 12))], DEMAND, 0.1)
    helped = flow([(one, Span(0, 12)), (other, Span(0, 6))], DEMAND, 0.1)
    assert helped.rate_token_s > 1.2 * alone.rate_token_s
    assert any(len(hops) == 2 for hops, _ in helped.routes)


def test_a_gap_lets_nothing_through() -> None:
    assert flow([(machine("a"), Span(0, 5)), (machine("b"), Span(6, 12))], DEMAND, 1.0) == Flow(
        0.0, math.inf, ()
    )
    assert flow([], DEMAND, 1.0).rate_token_s == 0.0
    full = machine("a", memory_bytes=1200)  # weights, and no room for a cache
    assert flow([(full, Span(0, 12))], DEMAND, 1.0).rate_token_s == 0.0


def test_many_hosts_are_judged_by_the_pipelines_they_came_with() -> None:
    hosts = [
        (machine(f"{chain:03}{stage}"), Span(6 * stage, 6 * stage + 6))
        for chain in range(140)
        for stage in range(2)
    ]
    pipelines = [
        [Hop(one.peer, span) for one, span in hosts[at : at + 2]] for at in range(0, 280, 2)
    ]
    alone = best_rate([Stage(one, 6) for one, _ in hosts[:2]], DEMAND, 0.05)
    assert flow(hosts, DEMAND, 0.05, pipelines).rate_token_s == pytest.approx(140 * alone, rel=1e-3)
    assert flow(hosts, DEMAND, 0.05).rate_token_s == pytest.approx(140 * alone, rel=1e-3)


def test_a_host_that_claims_to_take_no_time_gets_a_finite_rate() -> None:
    cost = LayerCost(0.0, 0.0)
    liar = Candidate(PeerId("a"), 12, 10_000, 64, cost, 0.0, 0.0, NEAR)
    found = flow([(liar, Span(0, 12))], DEMAND, 0.1)
    assert 0 < found.rate_token_s < 1e9
    assert found.step_s == 0.0


def test_pipelines_that_hosts_do_not_hold_are_left_out() -> None:
    hosts = [(machine("a"), Span(0, 8)), (machine("b"), Span(8, 12))]
    wrong = [
        [Hop(PeerId("a"), Span(0, 12))],
        [Hop(PeerId("a"), Span(0, 8))],
        [Hop(PeerId("nobody"), Span(0, 12))],
        [Hop(PeerId("b"), Span(8, 12)), Hop(PeerId("a"), Span(0, 8))],
    ]
    assert flow(hosts, DEMAND, 1.0, wrong) == flow(hosts, DEMAND, 1.0)


def charge(hosts: Hosts, found: Flow) -> dict[PeerId, list[tuple[float, Span, int]]]:
    """Per peer: the rates, spans and hops in all of the routes that cross it."""
    crossing = defaultdict(list)
    for hops, rate in found.routes:
        for hop in hops:
            crossing[hop.peer].append((rate, hop.span, len(hops)))
    return crossing


def times_s(hosts: Hosts, found: Flow) -> list[float]:
    """Each route's time by the formulas of the module's docstring, told a second time."""
    by_peer = {one.peer: one for one, _ in hosts}
    crossing = charge(hosts, found)
    times = []
    for hops, _ in found.routes:
        total_s = 0.0
        for number, hop in enumerate(hops):
            one, visits = by_peer[hop.peer], crossing[hop.peer]
            union = len({layer for _, span, _ in visits for layer in range(*span)})
            longest = max(span.layers for _, span, _ in visits)
            work = sum(rate * span.layers for rate, span, _ in visits)
            once_s = union * one.cost.fixed_s + one.pass_s
            pass_s = max(
                once_s / (1 - one.cost.token_s * work), once_s + longest * one.cost.token_s
            )
            own_s = hop.span.layers * (one.cost.fixed_s + one.cost.token_s) + one.pass_s
            total_s += max(own_s, hop.span.layers / union * pass_s)
            total_s += min(1.0, pass_s * sum(rate for rate, _, _ in visits)) * pass_s / 2
            if len(hops) > 1:
                after = by_peer[hops[(number + 1) % len(hops)].peer]
                total_s += one.coordinate.rtt_s(after.coordinate) / 2
                if one.upload_bytes_per_s:
                    frame_s = DEMAND.frame_bytes / one.upload_bytes_per_s
                    load = frame_s * sum(rate for rate, _, count in visits if count > 1)
                    total_s += frame_s * (1 + load / (2 * (1 - load)))
        times.append(total_s)
    return times


@given(seed=st.integers(0, 9999), count=st.integers(1, 16), limit_s=st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=40)
def test_nobody_is_late_and_no_memory_is_overfull(seed: int, count: int, limit_s: float) -> None:
    hosts = drawn(seed, count)
    found = flow(hosts, DEMAND, limit_s)
    assert flow(random.Random(seed).sample(hosts, count), DEMAND, limit_s) == found
    held = {one.peer: (one, span) for one, span in hosts}
    times = times_s(hosts, found)
    caches: dict[PeerId, float] = defaultdict(float)
    sessions: dict[PeerId, float] = defaultdict(float)
    for (hops, rate), time_s in zip(found.routes, times, strict=True):
        ends = [0, *(hop.span.end for hop in hops)]
        assert rate > 0
        assert [hop.span.start for hop in hops] == ends[:-1]
        assert ends[-1] == DEMAND.layers
        assert time_s <= limit_s * (1 + 1e-9)
        for hop in hops:
            assert held[hop.peer][1].covers(hop.span)
            caches[hop.peer] += rate * time_s * hop.span.layers * DEMAND.session_bytes
            sessions[hop.peer] += rate * time_s
    for peer, cache_bytes in caches.items():
        one, span = held[peer]
        room_bytes = one.memory_bytes - span.layers * DEMAND.layer_bytes
        assert cache_bytes <= room_bytes * (1 + 1e-9)
        assert sessions[peer] <= one.max_sessions * (1 + 1e-9)
    total = sum(rate for _, rate in found.routes)
    assert found.rate_token_s == pytest.approx(total)
    if total:
        waited = sum(rate * time_s for (_, rate), time_s in zip(found.routes, times, strict=True))
        assert found.step_s == pytest.approx(waited / total)


@given(seed=st.integers(0, 9999), count=st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_more_time_never_costs_much(seed: int, count: int) -> None:
    """The search is no optimum, so a looser limit may lose a little, and no more."""
    hosts = drawn(seed, count)
    tight, loose = (flow(hosts, DEMAND, limit_s).rate_token_s for limit_s in (0.1, 0.2))
    assert loose >= 0.8 * tight


# A simulation of what the formulas describe, event by event.


@dataclass
class Token:
    """One token on its way; `hop` is the next."""

    hops: tuple[Hop, ...]
    born_s: float
    hop: int = 0


@dataclass
class Carousel:
    """A machine that goes round its layers; tokens get on where their part begins."""

    one: Candidate
    waiting: dict[int, list[Token]] = field(default_factory=lambda: defaultdict(list))
    riding: list[Token] = field(default_factory=list)
    at: int = -1  # nothing to do
    line_free_s: float = 0.0


class Simulation:
    """Poisson arrivals on each route of a flow, passes layer by layer, and lines in between."""

    def __init__(self, hosts: Hosts, found: Flow, seed: int) -> None:
        self.rng = random.Random(seed)
        self.found = found
        self.machines = {one.peer: Carousel(one) for one, _ in hosts}
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.count = 0
        self.done: list[tuple[float, float]] = []

    def run(self, until_s: float) -> tuple[float, float]:
        """Tokens per second and their mean seconds, without the first fifth."""
        for hops, rate in self.found.routes:
            self._arrive_later(0.0, hops, rate)
        while self.events and self.events[0][0] < until_s:
            now_s, _, act = heapq.heappop(self.events)
            act(now_s)
        late = [(born_s, end_s) for born_s, end_s in self.done if end_s > until_s / 5]
        return len(late) / (until_s * 0.8), sum(end - born for born, end in late) / len(late)

    def _at(self, time_s: float, act: Callable[[float], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (time_s, self.count, act))

    def _arrive_later(self, now_s: float, hops: tuple[Hop, ...], rate: float) -> None:
        def arrive(now_s: float) -> None:
            self._reach(now_s, Token(hops, now_s))
            self._arrive_later(now_s, hops, rate)

        self._at(now_s + self.rng.expovariate(rate), arrive)

    def _reach(self, now_s: float, token: Token) -> None:
        hop = token.hops[token.hop]
        machine = self.machines[hop.peer]
        machine.waiting[hop.span.start].append(token)
        if machine.at < 0:
            machine.at = hop.span.start
            self._at(now_s + machine.one.pass_s, lambda now_s: self._turn(now_s, machine))

    def _turn(self, now_s: float, machine: Carousel) -> None:
        machine.riding += machine.waiting.pop(machine.at, [])
        if machine.riding:
            cost = machine.one.cost
            took_s = cost.fixed_s + cost.token_s * len(machine.riding)
            self._at(now_s + took_s, lambda now_s: self._next(now_s, machine))
        else:
            self._go_on(now_s, machine, machine.at)

    def _next(self, now_s: float, machine: Carousel) -> None:
        layer = machine.at + 1
        riding, machine.riding = machine.riding, []
        for token in riding:
            if token.hops[token.hop].span.end == layer:
                self._send(now_s, machine, token)
            else:
                machine.riding.append(token)
        if machine.riding:
            machine.at = layer
            self._turn(now_s, machine)
        else:
            self._go_on(now_s, machine, layer)

    def _go_on(self, now_s: float, machine: Carousel, layer: int) -> None:
        """To the next layer where somebody waits; a new round costs what a pass does."""
        starts = sorted(start for start, tokens in machine.waiting.items() if tokens)
        if not starts:
            machine.at = -1
            return
        ahead = [start for start in starts if start >= layer]
        machine.at = ahead[0] if ahead else starts[0]
        wait_s = 0.0 if ahead else machine.one.pass_s
        self._at(now_s + wait_s, lambda now_s: self._turn(now_s, machine))

    def _send(self, now_s: float, machine: Carousel, token: Token) -> None:
        arrival_s = now_s
        if len(token.hops) > 1:
            after = token.hops[(token.hop + 1) % len(token.hops)].peer
            one = machine.one
            start_s = max(now_s, machine.line_free_s)
            machine.line_free_s = start_s + DEMAND.frame_bytes / one.upload_bytes_per_s
            way_s = one.coordinate.rtt_s(self.machines[after].one.coordinate) / 2
            arrival_s = machine.line_free_s + way_s
        token.hop += 1
        if token.hop == len(token.hops):
            self._at(arrival_s, lambda now_s: self.done.append((token.born_s, now_s)))
        else:
            self._at(arrival_s, lambda now_s: self._reach(now_s, token))


CHAIN: Hosts = [
    (machine("a", where=NEAR), Span(0, 4)),
    (machine("b", where=FAR, fixed_s=5e-4), Span(4, 12)),
]
SHARED: Hosts = [
    (machine("a", where=NEAR), Span(0, 12)),
    (machine("b", where=NEAR, fixed_s=2e-3), Span(0, 6)),
    (machine("c", where=FAR, fixed_s=5e-4), Span(4, 12)),
]
STAGGERED: Hosts = [
    (machine("a", where=NEAR), Span(0, 5)),
    (machine("b", where=NEAR, token_s=2e-4), Span(3, 9)),
    (machine("c", where=FAR), Span(7, 12)),
    (machine("d", where=FAR, token_s=1e-4), Span(0, 8)),
]


@pytest.mark.parametrize("limit_s", [0.04, 0.08])
@pytest.mark.parametrize("hosts", [CHAIN, SHARED, STAGGERED], ids=["chain", "shared", "staggered"])
def test_a_simulation_finds_the_same(hosts: Hosts, limit_s: float) -> None:
    """The routes of the flow carry its rate, and tokens take what it says, within a fifth."""
    found = flow(hosts, DEMAND, limit_s)
    assert found.rate_token_s > 0
    rate, mean_s = Simulation(hosts, found, seed=1).run(8000 / found.rate_token_s)
    assert rate == pytest.approx(found.rate_token_s, rel=0.05)
    assert mean_s == pytest.approx(found.step_s, rel=0.2)
