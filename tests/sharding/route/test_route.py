"""Routes: exact against brute force, and every rule of cost and eligibility."""

from __future__ import annotations

import itertools
import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from gennode.sharding.route.route import (
    LOAD_WEIGHT,
    Gap,
    LinkTime,
    Route,
    RouteBoard,
    choose_route,
    choose_routes,
)
from gennode.wire.announcement import Announcement
from gennode.wire.ids import Hop, ModelId, PeerId, Span
from tests.sharding.swarms import LAYERS, ME, MODEL, WHOLE, flat, hosted, layer_s, worker


def routed(swarm: list[Announcement], span: Span = WHOLE, link_time_s: LinkTime = flat) -> Route:
    route = choose_route(swarm, model=MODEL, span=span, entry=ME, link_time_s=link_time_s)
    assert isinstance(route, Route)
    return route


def gap(
    swarm: list[Announcement],
    *,
    exclude: frozenset[PeerId] = frozenset(),
    allow_cold: bool = True,
) -> Gap:
    found = choose_route(
        swarm,
        model=MODEL,
        span=WHOLE,
        entry=ME,
        exclude=exclude,
        link_time_s=flat,
        allow_cold=allow_cold,
    )
    assert isinstance(found, Gap)
    return found


SPANS = st.sets(st.integers(0, LAYERS - 1)).map(
    lambda layers: [Span(layer, layer + 1) for layer in sorted(layers)]
)
SWARMS = st.lists(
    st.tuples(SPANS, st.integers(0, LAYERS), st.integers(0, 9), st.integers(0, 4)), max_size=4
).map(
    lambda rows: [
        worker(f"p{i}", spans, spare=spare, layer_time_s=time / 1000, sessions=sessions)
        for i, (spans, spare, time, sessions) in enumerate(rows)
    ]
)


def links(seed: int) -> LinkTime:
    """Any times, not even symmetric."""
    rng = random.Random(seed)
    names = [ME, *(PeerId(f"p{i}") for i in range(4))]
    times_s = {pair: rng.randrange(20) / 1000 for pair in itertools.permutations(names, 2)}
    return lambda here, there: times_s[here, there]


def cost_s(
    chain: list[PeerId], start: int, swarm: dict[PeerId, Announcement], link_time_s: LinkTime
) -> float:
    """What a chain costs, infinite if it breaks a rule: the oracle."""
    total_s = 0.0
    loaded = dict.fromkeys(swarm, 0)
    for layer, (before, peer) in enumerate(itertools.pairwise([ME, *chain]), start):
        one = swarm[peer]
        if one.sessions >= hosted(one).max_sessions:
            return math.inf
        if before != peer:
            total_s += link_time_s(before, peer)
        total_s += layer_s(one, start + len(chain))
        if not any(span.covers(Span(layer, layer + 1)) for span in hosted(one).spans):
            loaded[peer] += 1
            total_s += hosted(one).load_time_s * LOAD_WEIGHT
    if any(loaded[peer] > hosted(one).spare_layers for peer, one in swarm.items()):
        return math.inf
    return total_s + link_time_s(chain[-1], ME)


@settings(max_examples=150, deadline=None)
@given(
    swarm=SWARMS,
    seed=st.integers(0, 999),
    bounds=st.sampled_from([(0, LAYERS), (1, 4), (2, 3)]),
    mode=st.sampled_from(["warm", "all or nothing", "partly"]),
)
def test_brute_force_finds_nothing_cheaper(
    swarm: list[Announcement], seed: int, bounds: tuple[int, int], mode: str
) -> None:
    if mode == "all or nothing":  # room for a part only is given out before the search
        swarm = [
            worker(one.peer, list(hosted(one).spans), spare=LAYERS * (hosted(one).spare_layers > 2))
            for one in swarm
        ]
    link_time_s = links(seed)
    span = Span(*bounds)
    found = choose_route(
        swarm,
        model=MODEL,
        span=span,
        entry=ME,
        link_time_s=link_time_s,
        allow_cold=mode != "warm",
    )
    usable = {
        one.peer: worker(
            one.peer,
            list(hosted(one).spans),
            spare=hosted(one).spare_layers if mode != "warm" else 0,
            layer_time_s=hosted(one).layer_time_s,
            sessions=one.sessions,
        )
        for one in swarm
    }
    best_s = min(
        (
            cost_s(list(chain), span.start, usable, link_time_s)
            for chain in itertools.product(usable, repeat=span.layers)
        ),
        default=math.inf,
    )
    if isinstance(found, Gap):
        assert best_s == math.inf
        return
    chain = [hop.peer for hop in found.hops for _ in range(hop.span.layers)]
    loads_s = sum(hosted(usable[hop.peer]).load_time_s * hop.span.layers for hop in found.cold)
    total_s = cost_s(chain, span.start, usable, link_time_s)
    assert math.isclose(total_s, found.step_time_s + loads_s * LOAD_WEIGHT, abs_tol=1e-12)
    assert [hop.span.start for hop in found.hops] == [
        span.start, *(hop.span.end for hop in found.hops[:-1])
    ]  # fmt: skip
    if mode == "partly":
        assert total_s < math.inf
    else:
        assert math.isclose(total_s, best_s, abs_tol=1e-12)


@given(swarm=SWARMS, seed=st.integers(0, 99))
def test_the_order_of_announcements_means_nothing(swarm: list[Announcement], seed: int) -> None:
    shuffled = random.Random(seed).sample(swarm, len(swarm))
    first, second = (
        choose_route(some, model=MODEL, span=Span(0, LAYERS), entry=ME, link_time_s=links(seed))
        for some in (swarm, shuffled)
    )
    assert first == second


def test_ties_go_to_the_lower_peer_id() -> None:
    twins = [worker(name, [Span(0, LAYERS)]) for name in ("b", "a", "c")]
    assert routed(twins).hops == (Hop(PeerId("a"), Span(0, LAYERS)),)


def test_workers_are_entered_and_left_in_the_middle() -> None:
    swarm = [worker("a", [Span(0, 4)], layer_time_s=0.001), worker("b", [Span(1, 5)])]
    hops = (Hop(PeerId("a"), Span(0, 4)), Hop(PeerId("b"), Span(4, 5)))
    assert routed(swarm).hops == hops
    assert routed(swarm, Span(2, 5)).hops == (Hop(PeerId("a"), Span(2, 4)), hops[1])


def test_the_way_back_to_the_owner_counts() -> None:
    def link_time_s(here: PeerId, there: PeerId) -> float:
        return 1.0 if (here, there) == ("a", ME) else 0.001

    twins = [worker(name, [Span(0, LAYERS)]) for name in ("a", "b")]
    assert routed(twins, link_time_s=link_time_s).hops[0].peer == "b"


def test_busier_workers_count_as_slower() -> None:
    busy = worker("a", [Span(0, LAYERS)], layer_time_s=0.010, sessions=3)
    idle = worker("b", [Span(0, LAYERS)], layer_time_s=0.017)
    route = routed([busy, idle])
    assert route.hops[0].peer == "b"
    assert math.isclose(route.step_time_s, 5 * 0.017 + 2 * 0.001)


def test_a_further_token_in_a_pass_takes_what_is_announced() -> None:
    serial = worker("a", [WHOLE], layer_time_s=0.010, sessions=3)
    batching = worker("b", [WHOLE], layer_time_s=0.011, further_time_s=0.001, sessions=3)
    route = routed([serial, batching])
    assert route.hops[0].peer == "b"
    assert math.isclose(route.step_time_s, 5 * (0.011 + 3 * 0.001) + 2 * 0.001)


def test_sessions_are_in_line_only_as_long_as_they_are_here() -> None:
    part = worker("a", [Span(0, 1)], layer_time_s=0.010, sessions=2)
    rest = worker("b", [Span(1, LAYERS)], layer_time_s=0.010)
    route = routed([part, rest])
    assert math.isclose(route.step_time_s, 0.010 * (5 + 2 * 1.5 / 5) + 3 * 0.001)


def test_warm_wins_unless_cold_is_worth_the_load() -> None:
    warm = worker("warm", [Span(0, LAYERS)], layer_time_s=0.020)
    cold = worker("cold", [Span(0, 3)], spare=2, layer_time_s=0.010, load_time_s=0.1)
    slow = worker("cold", [Span(0, 3)], spare=2, layer_time_s=0.010, load_time_s=10.0)
    assert routed([warm, cold]).cold == (Hop(PeerId("cold"), Span(3, 5)),)
    assert routed([warm, slow]).cold == ()
    assert routed([slow]).cold == (Hop(PeerId("cold"), Span(3, 5)),)
    assert gap([slow], allow_cold=False).spans == (Span(3, 5),)


def test_layers_that_load_in_no_time_are_still_named() -> None:
    instant = worker("a", [], spare=LAYERS, load_time_s=0.0)
    assert routed([instant]).cold == (Hop(PeerId("a"), Span(0, LAYERS)),)


def test_a_worker_is_never_asked_for_more_than_its_spare_layers_in_two_visits() -> None:
    swarm = [worker("q", [Span(2, 3)]), worker("p", [], spare=2), worker("r", [], spare=2)]
    hops = routed(swarm).hops
    assert [(hop.span, hop.peer) for hop in hops] == [
        (Span(0, 2), "p"), (Span(2, 3), "q"), (Span(3, 5), "r")
    ]  # fmt: skip
    assert gap(swarm[:2]).spans == (Span(3, 5),)


def test_a_gap_says_in_words_what_is_missing() -> None:
    swarm = [worker("a", [Span(0, 2)]), worker("b", [Span(4, 5)])]
    assert gap(swarm) == Gap((Span(2, 4),), "layers 2:4 have no live worker")
    assert gap([]).reason == "layers 0:5 have no live worker"
    assert gap(swarm, exclude=frozenset([PeerId("b")])).reason.startswith("layers 2:5 have no")
    full = worker("c", [Span(2, 4)], sessions=4)
    assert gap([*swarm, full]).reason == "layers 2:4 have only workers that are full"
    other = worker("d", [Span(0, 5)], model=ModelId("b" * 64))
    assert gap([other]).spans == (Span(0, 5),)


def test_peers_without_a_way_between_them_make_no_route() -> None:
    def island(here: PeerId, there: PeerId) -> float:
        return math.inf

    found = choose_route(
        [worker("a", [Span(0, 5)])], model=MODEL, span=Span(0, 5), entry=ME, link_time_s=island
    )
    assert found == Gap((Span(0, 5),), "no workers of layers 0:5 can reach each other")


def test_a_route_has_no_more_hops_than_the_wire_takes() -> None:
    span = Span(0, 70)
    pieces = [worker(f"p{i:02}", [Span(i, i + 1)], layer_time_s=0.0) for i in range(70)]
    half = worker("half", [Span(0, 35)], layer_time_s=0.5)
    found = choose_route(pieces, model=MODEL, span=span, entry=ME, link_time_s=flat)
    assert found == Gap((span,), "layers 0:70 take more than 64 hops")
    assert len(routed([*pieces, half], span).hops) == 36


def test_nothing_to_cover_is_an_empty_route() -> None:
    assert routed([], Span(3, 3)) == Route((), 0.0, ())


def test_a_board_answers_as_the_function_does_however_often_it_is_asked() -> None:
    rng = random.Random(5)
    swarm = [
        worker(f"p{i:02}", [Span(i % 3, i % 3 + 3)], layer_time_s=rng.random(), sessions=i % 4)
        for i in range(30)
    ]
    places_s = {peer: rng.random() for peer in [ME, *(one.peer for one in swarm)]}
    asked: list[tuple[PeerId, PeerId]] = []

    def link_time_s(here: PeerId, there: PeerId) -> float:
        asked.append((here, there))
        return abs(places_s[here] - places_s[there])

    board = RouteBoard(swarm, model=MODEL, link_time_s=link_time_s)
    for exclude in (frozenset[PeerId](), frozenset([PeerId("p03")]), frozenset[PeerId]()):
        assert board.route(WHOLE, ME, exclude=exclude) == choose_route(
            swarm, model=MODEL, span=WHOLE, entry=ME, exclude=exclude, link_time_s=link_time_s
        )
    asked.clear()
    board.route(WHOLE, ME)
    assert not asked
    patch = board.route(Span(2, 4), swarm[0].peer)
    assert isinstance(patch, Route)
    assert patch == choose_route(
        swarm, model=MODEL, span=Span(2, 4), entry=swarm[0].peer, link_time_s=link_time_s
    )


def test_the_shortlist_is_filled_for_layers_that_only_slow_workers_have() -> None:
    quick = [worker(f"q{i:03}", [Span(0, 4)], layer_time_s=0.001) for i in range(300)]
    slow = [worker(f"s{i:03}", [Span(4, 5)], layer_time_s=0.9 - i / 100) for i in range(40)]
    assert [hop.peer for hop in routed([*quick, *slow]).hops] == ["q000", "s039"]


def alternatives(swarm: list[Announcement], count: int, link_time_s: LinkTime) -> list[Route]:
    return choose_routes(
        swarm, model=MODEL, span=WHOLE, entry=ME, count=count, link_time_s=link_time_s
    )


def chain_of(route: Route) -> list[PeerId]:
    return [hop.peer for hop in route.hops for _ in range(hop.span.layers)]


@settings(max_examples=60, deadline=None)
@given(swarm=SWARMS, seed=st.integers(0, 999))
def test_alternatives_share_no_more_layers_than_they_must(
    swarm: list[Announcement], seed: int
) -> None:
    swarm = [worker(one.peer, list(hosted(one).spans), sessions=one.sessions) for one in swarm]
    routes = alternatives(swarm, 3, links(seed))
    best = choose_route(swarm, model=MODEL, span=WHOLE, entry=ME, link_time_s=links(seed))
    assert routes[:1] == ([] if isinstance(best, Gap) else [best])
    by_peer = {one.peer: one for one in swarm}
    every = [list(chain) for chain in itertools.product(by_peer, repeat=LAYERS)]
    possible = [chain for chain in every if cost_s(chain, 0, by_peer, links(seed)) < math.inf]
    used: list[PeerId] = []
    for route in routes:
        fewest = min(sum(used.count(peer) for peer in chain) for chain in possible)
        assert sum(used.count(peer) for peer in chain_of(route)) == fewest
        used += sorted(set(chain_of(route)))
    assert len({route.hops for route in routes}) == len(routes)


def test_alternatives_go_round_the_only_worker_of_a_layer_where_they_can() -> None:
    swarm = [worker("only", [Span(2, 3)])]
    swarm += [worker(f"{name}{i}", [span]) for i in range(2) for name, span in
              (("a", Span(0, 2)), ("b", Span(3, 5)))]  # fmt: skip
    first, second = alternatives(swarm, 5, flat)[:2]
    assert {hop.peer for hop in first.hops} & {hop.peer for hop in second.hops} == {"only"}


def test_alternatives_of_nothing_are_none() -> None:
    assert alternatives([], 3, flat) == []
    assert alternatives([worker("a", [WHOLE])], 0, flat) == []
    assert len(alternatives([worker("a", [WHOLE])], 3, flat)) == 1


def test_a_layer_that_no_model_has_makes_no_queue_look_short() -> None:
    busy = worker("a", [WHOLE], layer_time_s=0.010, sessions=3)
    idle = worker("b", [WHOLE], layer_time_s=0.017)
    liar = worker("c", [Span(1023, 1024)])
    assert routed([busy, idle, liar]) == routed([busy, idle])
    assert routed([busy, idle, liar]).hops[0].peer == "b"
