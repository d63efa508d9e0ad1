"""What owners weigh beside time: exact in sum, and each preference turns the route it should."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gennode.sharding.route.preferences import (
    CROWDED_LOAD,
    ROOMY_LOAD,
    Mode,
    Preferences,
    choose_mode,
    reserved_seats,
)
from gennode.sharding.route.route import LOAD_WEIGHT, Gap, Route, RouteBoard
from gennode.wire.announcement import Announcement
from gennode.wire.ids import PeerId, Span
from tests.sharding.swarms import LAYERS, ME, MODEL, WHOLE, flat, hosted, layer_s, worker

A, B = PeerId("a"), PeerId("b")


def routed(
    swarm: list[Announcement],
    preferences: Preferences | None = None,
    rng: random.Random | None = None,
) -> Route:
    board = RouteBoard(swarm, model=MODEL, link_time_s=flat)
    route = board.route(WHOLE, ME, preferences=preferences or Preferences(), rng=rng)
    assert isinstance(route, Route)
    return route


def first(
    swarm: list[Announcement],
    preferences: Preferences | None = None,
    rng: random.Random | None = None,
) -> PeerId:
    return routed(swarm, preferences, rng).hops[0].peer


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, LAYERS - 1),
            st.integers(1, LAYERS),
            st.integers(1, 9),
            st.integers(0, 2000),
            st.floats(0, 1),
            st.floats(0, 3),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_brute_force_finds_nothing_better_with_price_and_risk(
    rows: list[tuple[int, int, int, int, float, float]],
) -> None:
    swarm, standing, failures = {}, {}, {}
    for i, (start, layers, time, price, trust, failed) in enumerate(rows):
        name = PeerId(f"p{i}")
        span = Span(start, min(LAYERS, start + layers))
        swarm[name] = worker(name, [span], layer_time_s=time / 1000, sessions=i % 3, price=price)
        standing[name], failures[name] = trust, failed
    preferences = Preferences(
        seconds_per_credit=5.0, standing=standing, failures=failures, failover_s=3.0
    )
    whole = Span(0, max(hosted(one).spans[0].end for one in swarm.values()))

    def cost_s(chain: tuple[PeerId, ...]) -> float:
        total_s = 0.001
        for layer, (before, peer) in enumerate(itertools.pairwise((ME, *chain))):
            if not hosted(swarm[peer]).spans[0].covers(Span(layer, layer + 1)):
                return math.inf
            if before != peer:
                risk = 1 - standing[peer] / (1 + failures[peer])
                total_s += 0.001 + risk * 3.0 * LOAD_WEIGHT
            total_s += layer_s(swarm[peer], whole.end) + hosted(swarm[peer]).price * 5e-6
        return total_s

    board = RouteBoard(swarm.values(), model=MODEL, link_time_s=flat)
    found = board.route(whole, ME, preferences=preferences)
    best_s = min(map(cost_s, itertools.product(swarm, repeat=whole.layers)))
    if isinstance(found, Gap):
        assert best_s == math.inf
        return
    chain = tuple(hop.peer for hop in found.hops for _ in range(hop.span.layers))
    assert math.isclose(cost_s(chain), best_s, abs_tol=1e-12)
    assert found.price == sum(hosted(swarm[peer]).price for peer in chain)


def test_a_price_counts_as_much_as_the_owner_says() -> None:
    swarm = [
        worker("a", [WHOLE], layer_time_s=0.001, price=1000),
        worker("b", [WHOLE], layer_time_s=0.002, price=0),
    ]
    assert first(swarm) == A
    assert first(swarm, Preferences(seconds_per_credit=0.9)) == A
    assert first(swarm, Preferences(seconds_per_credit=1.1)) == B
    assert routed(swarm).price == 5 * 1000


def test_who_fails_or_lies_has_to_be_much_quicker() -> None:
    swarm = [worker("a", [WHOLE], layer_time_s=0.001), worker("b", [WHOLE], layer_time_s=0.002)]
    assert first(swarm, Preferences(standing={A: 0.9})) == A
    assert first(swarm, Preferences(standing={A: 0.2})) == B
    assert first(swarm, Preferences(failures={A: 5.0})) == B
    assert first(swarm, Preferences(failures={A: 5.0}, standing={B: 0.0})) == A
    assert first(swarm, Preferences(failures={A: 5.0}, failover_s=0.1)) == A
    assert first(swarm, Preferences(standing={A: -3.0, B: 7.0}, failures={B: -1.0})) == B
    assert math.isclose(routed(swarm, Preferences(standing={B: 0.1})).step_time_s, 0.007)


def test_sessions_that_the_owner_opened_itself_are_counted() -> None:
    swarm = [worker("a", [WHOLE], layer_time_s=0.001), worker("b", [WHOLE], layer_time_s=0.0015)]
    assert first(swarm) == A
    assert first(swarm, Preferences(opened={A: 1, PeerId("stranger"): 9})) == B
    assert first(swarm, Preferences(opened={A: 4, B: 3})) == B  # full
    assert first(swarm, Preferences(opened={A: -5, B: -5})) == A


def test_owners_who_know_the_same_go_different_ways_and_each_seed_its_own() -> None:
    swarm = [worker(f"p{i}", [WHOLE], layer_time_s=0.01, sessions=2 + i % 2) for i in range(8)]
    chosen = Counter(first(swarm, rng=random.Random(seed)) for seed in range(200))
    assert len(chosen) == 8
    assert chosen.most_common(1)[0][1] < 80
    for seed in range(20):
        assert routed(swarm, rng=random.Random(seed)) == routed(swarm, rng=random.Random(seed))
        shuffled = random.Random(seed).sample(swarm, len(swarm))
        assert routed(swarm, rng=random.Random(seed)) == routed(shuffled, rng=random.Random(seed))
    assert {first(swarm) for _ in range(20)} == {PeerId("p0")}


def test_chance_changes_no_predicted_time_and_sends_nobody_to_the_far_end() -> None:
    near = worker("a", [WHOLE], layer_time_s=0.01, sessions=1)
    far = worker("b", [WHOLE], layer_time_s=0.10)
    for seed in range(50):
        route = routed([near, far], rng=random.Random(seed))
        assert route == routed([near])


@pytest.mark.parametrize("limit_s", [0.0, 0.020, 0.033, 0.060, 1.0])
def test_cost_first_takes_the_cheapest_that_is_quick_enough(limit_s: float) -> None:
    swarm = [
        worker("quick", [WHOLE], layer_time_s=0.002, price=900),
        worker("fair", [WHOLE], layer_time_s=0.005, price=200),
        worker("slow", [WHOLE], layer_time_s=0.010, price=50),
        worker("half", [Span(0, 2)], layer_time_s=0.002, price=0),
    ]
    wanted = {0.0: "quick", 0.020: "quick", 0.033: "fair", 0.060: "slow", 1.0: "slow"}
    found = routed(swarm, Preferences(mode=Mode.COST_FIRST, step_limit_s=limit_s))
    assert found.hops[-1].peer == wanted[limit_s]
    assert found.step_time_s <= max(limit_s, routed(swarm).step_time_s)


def test_alternatives_are_chosen_as_the_first_one_is() -> None:
    swarm = [
        worker(f"{name}{i}", [WHOLE], layer_time_s=time / 1000 + i / 1e5, price=price)
        for i in range(2)
        for name, time, price in (("quick", 2, 900), ("fair", 5, 200), ("slow", 10, 50))
    ]
    board = RouteBoard(swarm, model=MODEL, link_time_s=flat)
    cheap = Preferences(mode=Mode.COST_FIRST, step_limit_s=0.033)
    for preferences, wanted in (
        (Preferences(), ["quick0", "quick1", "fair0", "fair1"]),
        (cheap, ["fair0", "fair1", "quick0", "quick1"]),
    ):
        routes = board.routes(WHOLE, ME, count=4, preferences=preferences)
        assert [route.hops[0].peer for route in routes] == wanted
        assert routes[0] == board.route(WHOLE, ME, preferences=preferences)


def test_one_who_asks_for_a_fortune_changes_no_other_price() -> None:
    swarm = [
        worker("quick", [WHOLE], layer_time_s=0.002, price=900),
        worker("fair", [WHOLE], layer_time_s=0.005, price=200),
        worker("greedy", [WHOLE], layer_time_s=1e9, price=1 << 53),
    ]
    found = routed(swarm, Preferences(mode=Mode.COST_FIRST, step_limit_s=0.033))
    assert found.hops[0].peer == "fair"


def test_cost_first_takes_fewer_hops_where_prices_are_alike() -> None:
    whole = worker("z", [WHOLE], layer_time_s=0.003)
    parts = [worker(f"p{i}", [Span(i, i + 1)], layer_time_s=0.0001) for i in range(LAYERS)]
    assert len(routed([whole, *parts]).hops) > 1
    cheap = Preferences(mode=Mode.COST_FIRST, step_limit_s=0.1)
    assert [hop.peer for hop in routed([whole, *parts], cheap).hops] == ["z"]


def test_capacity_first_keeps_the_last_seats_free() -> None:
    def quick(sessions: int) -> Announcement:
        return worker(
            "a",
            [WHOLE],
            layer_time_s=0.010,
            further_time_s=0.0,
            sessions=sessions,
            max_sessions=100,
        )

    other = worker("b", [WHOLE], layer_time_s=0.015)
    spreading = Preferences(mode=Mode.CAPACITY_FIRST)
    chosen = [first([quick(sessions), other], spreading) for sessions in (0, 75, 85, 90, 99)]
    assert chosen == [A, A, A, B, B]
    assert first([quick(99), other]) == A


def test_the_mode_changes_late_and_changes_back_late() -> None:
    mode, seen = Mode.COST_FIRST, []
    for load in (0.1, 0.6, 0.69, CROWDED_LOAD, 0.6, 0.51, ROOMY_LOAD, 0.69, 0.9):
        mode = choose_mode(mode, load)
        seen.append(mode is Mode.CAPACITY_FIRST)
    assert seen == [False, False, False, True, True, True, False, False, True]
    assert choose_mode(Mode.QUICKEST, 0.6) is Mode.COST_FIRST


def test_load_is_that_of_the_fullest_layer() -> None:
    swarm = [
        worker("a", [Span(0, 3)], sessions=1),
        worker("b", [Span(0, 3)], sessions=0),
        worker("c", [Span(3, 5)], sessions=3),
    ]
    board = RouteBoard(swarm, model=MODEL, link_time_s=flat)
    assert math.isclose(board.load(WHOLE, ME), 3 / 4)
    assert math.isclose(board.load(Span(0, 3), ME), 1 / 8)
    assert math.isclose(board.load(Span(0, 3), ME, preferences=Preferences(opened={B: 2})), 3 / 8)
    assert board.load(WHOLE, ME, preferences=Preferences(opened={PeerId("c"): 1})) == 1.0
    assert board.load(Span(0, 0), ME) == 0.0


def test_a_new_session_takes_no_reserved_seat_and_one_that_goes_on_does() -> None:
    seats, reserved = 16, reserved_seats(16)
    swarm = [
        worker("a", [WHOLE], max_sessions=seats, sessions=seats - reserved),
        worker("b", [WHOLE], max_sessions=seats, layer_time_s=9.0),
    ]
    assert first(swarm, Preferences()) == A
    assert first(swarm, Preferences(is_new=True)) == B
    assert first(swarm, Preferences(is_new=True, opened={A: -1})) == A
    board = RouteBoard(swarm[:1], model=MODEL, link_time_s=flat)
    found = board.route(WHOLE, ME, preferences=Preferences(is_new=True))
    assert isinstance(found, Gap)
    assert "full" in found.reason


@pytest.mark.parametrize(("seats", "kept"), [(0, 0), (3, 0), (4, 1), (15, 1), (16, 2), (256, 32)])
def test_an_eighth_of_all_seats_is_reserved_and_none_of_few(seats: int, kept: int) -> None:
    assert reserved_seats(seats) == kept
