"""When a pool is planned anew: for a gain that pays, and for layers that nobody holds."""

from __future__ import annotations

import math

import msgspec

from gennode.sharding.plan.plan import plan
from gennode.sharding.rebalance import next_moves
from gennode.sharding.replan import MIN_GAIN, decide
from gennode.wire.ids import Hop, PeerId, Span
from tests.sharding.held import candidate, snapshot


def test_what_was_just_planned_stays() -> None:
    peers = [candidate(f"p{index}") for index in range(4)]
    spans = {hop.peer: hop.span for hop in plan(snapshot(*peers)).hosts}
    settled = [msgspec.structs.replace(one, held=spans[one.peer]) for one in peers]
    again = decide(snapshot(*settled))
    assert again.plan is None
    assert again.gain < MIN_GAIN
    assert "more" in again.why


def test_a_lame_placement_is_planned_anew_unless_that_is_under_way() -> None:
    layers = 16
    crawling = candidate("s", (0, 16), 16, layer_s=0.05)
    quick = [candidate(name, (0, 8), 8, layer_s=0.001) for name in ("a", "b")]
    pool = snapshot(crawling, *quick, layers=layers)
    found = decide(pool)
    assert found.plan is not None
    assert found.gain > MIN_GAIN
    accepted = (
        Hop(PeerId("a"), Span(0, 8)), Hop(PeerId("b"), Span(8, 16)), Hop(PeerId("s"), Span(0, 16))
    )  # fmt: skip
    assert decide(pool, accepted).plan is None


def test_moving_that_takes_too_long_is_not_begun() -> None:
    crawling = candidate("s", (0, 16), 16, layer_s=0.05)
    quick = [candidate(name, (0, 8), 8, layer_s=0.001, move_s=100.0) for name in ("a", "b")]
    found = decide(snapshot(crawling, *quick, layers=16))
    assert found.plan is None
    assert found.gain > MIN_GAIN
    assert "moving would take" in found.why


def test_gaps_that_one_move_closes_need_no_plan() -> None:
    pool = snapshot(candidate("a", (0, 4), 4), candidate("b", (0, 4), 4))
    found = decide(pool)
    assert found.plan is None
    assert found.gain == math.inf
    assert "close the gaps" in found.why


def test_gaps_that_no_moves_close_are_planned_away() -> None:
    pool = snapshot(candidate("a", (3, 6), 4), candidate("b", (6, 7), 4))
    assert [move.span for move in next_moves(pool)] == [Span(6, 8), Span(2, 6)]
    found = decide(pool)
    assert found.plan is not None
    assert sorted(hop.span for hop in found.plan.hosts) == [Span(0, 4), Span(4, 8)]
    assert found.why == "nobody holds layers 0:3, 7:8"


def test_a_pool_that_is_too_small_says_so() -> None:
    found = decide(snapshot(candidate("a", (0, 4), 4)))
    assert found.plan is None
    assert "needs room" in found.why
