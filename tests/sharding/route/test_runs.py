"""Runs of layers: as cheap as a search at each layer, wherever no detour is shorter."""

from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from gennode.sharding.route.route import (
    LOAD_WEIGHT,
    Gap,
    LinkTime,
    Preferences,
    Route,
    RouteBoard,
    Ways,
)
from gennode.wire.announcement import Announcement
from gennode.wire.ids import Hop, PeerId, Span
from tests.sharding.swarms import ME, MODEL, flat, worker

LONG = Span(0, 40)


def spans_of(rng: random.Random) -> list[Span]:
    """One span or several, with room between them."""
    spans: list[Span] = []
    start = rng.randrange(36)
    while start < LONG.end and len(spans) < 3:
        end = min(LONG.end, start + rng.randrange(1, 20))
        spans.append(Span(start, end))
        start = end + rng.randrange(1, 8)
    return spans


def plane(seed: int, workers: int) -> tuple[list[Announcement], LinkTime]:
    """Workers at points of a plane, many of them in the same place and just as quick."""
    rng = random.Random(seed)
    swarm = [
        worker(
            f"p{index:02}",
            spans_of(rng),
            layer_time_s=rng.choice([0.001, 0.002, 0.003]),
            sessions=rng.randrange(5),
        )
        for index in range(workers)
    ]
    places = [ME, *(one.peer for one in swarm)]
    points = {peer: (rng.randrange(4) / 100, rng.randrange(4) / 100) for peer in places}
    line_s = rng.choice([0.0, 0.001])

    def link_time_s(here: PeerId, there: PeerId) -> float:
        return math.dist(points[here], points[there]) + line_s

    return swarm, link_time_s


def charged_s(route: Route, preferences: Preferences) -> float:
    risks = (preferences.failure_chance(hop.peer) for hop in route.hops)
    return route.step_time_s + sum(risks) * preferences.failover_s * LOAD_WEIGHT


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 9999),
    workers=st.sampled_from([3, 12, 60]),
    span=st.sampled_from([LONG, Span(7, 33), Span(11, 12)]),
    failures=st.dictionaries(st.sampled_from(["p00", "p01", "p02"]), st.floats(0, 9)),
)
def test_runs_cost_what_layers_do(
    seed: int, workers: int, span: Span, failures: dict[PeerId, float]
) -> None:
    swarm, link_time_s = plane(seed, workers)
    preferences = Preferences(failures=failures, failover_s=2.0)
    by_runs, by_layers = (
        RouteBoard(swarm, model=MODEL, link_time_s=Ways(link_time_s, is_metric=is_metric)).route(
            span, ME, preferences=preferences
        )
        for is_metric in (True, False)
    )
    if isinstance(by_layers, Gap) or isinstance(by_runs, Gap):
        assert by_runs == by_layers
        return
    ends = [hop.span.end for hop in by_runs.hops]
    assert [hop.span.start for hop in by_runs.hops] == [span.start, *ends[:-1]]
    assert ends[-1] == span.end
    held = {one.peer: one.hosting[0].spans for one in swarm}
    for hop in by_runs.hops:
        assert any(span.covers(hop.span) for span in held[hop.peer])
    spent_s = [charged_s(route, preferences) for route in (by_runs, by_layers)]
    assert math.isclose(*spent_s, rel_tol=1e-12)


def metric(swarm: list[Announcement], link_time_s: LinkTime = flat) -> Route | Gap:
    ways = Ways(link_time_s, is_metric=True)
    return RouteBoard(swarm, model=MODEL, link_time_s=ways).route(LONG, ME)


def test_ties_go_to_whoever_stays_and_to_the_lower_peer_id() -> None:
    swarm = [worker(name, [span]) for name, span in
             (("c", LONG), ("b", LONG), ("a", Span(0, 20)), ("d", Span(20, 40)))]  # fmt: skip
    found = metric(swarm)
    assert isinstance(found, Route)
    assert found.hops == (Hop(PeerId("b"), LONG),)


def test_cold_layers_are_offered_where_ways_are_metric_too() -> None:
    found = metric([worker("a", [Span(0, 30)], spare=10)])
    assert isinstance(found, Route)
    assert found.cold == (Hop(PeerId("a"), Span(30, 40)),)


def test_islands_have_no_route() -> None:
    found = metric([worker("a", [LONG])], lambda _, __: math.inf)
    assert found == Gap((LONG,), "no workers of layers 0:40 can reach each other")


def test_a_metric_route_has_no_more_hops_than_the_wire_takes() -> None:
    span = Span(0, 70)
    pieces = [worker(f"p{i:02}", [Span(i, i + 1)], layer_time_s=0.0) for i in range(70)]
    half = worker("half", [Span(0, 35)], layer_time_s=0.5)
    for swarm, hops in ((pieces, 0), ([*pieces, half], 36)):
        ways = Ways(flat, is_metric=True)
        found = RouteBoard(swarm, model=MODEL, link_time_s=ways).route(span, ME)
        assert len(getattr(found, "hops", ())) == hops


def test_ways_shared_by_boards_are_asked_for_once() -> None:
    swarm, link_time_s = plane(3, 60)
    asked: list[tuple[PeerId, PeerId]] = []

    def counted(here: PeerId, there: PeerId) -> float:
        asked.append((here, there))
        return link_time_s(here, there)

    ways = Ways(counted, is_metric=True)
    first, second = (
        RouteBoard(swarm, model=MODEL, link_time_s=ways).route(LONG, ME) for _ in range(2)
    )
    assert first == second
    assert isinstance(first, Route)
    assert len(asked) == len(set(asked))


def test_ways_forget_what_is_too_much() -> None:
    ways = Ways(lambda *_: 1.0, max_links=2)
    links = [ways.into(PeerId(name)) for name in "abc"]
    assert [one[PeerId("d")] for one in links] == [1.0, 1.0, 1.0]
    assert sum(map(len, links)) == 1
