"""A point moves to where its round trips fit, and liars can't move it far."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.mesh.distances.vivaldi import (
    MAX_RTT_S,
    MIN_ERROR,
    Landmark,
    difference_s,
    moved,
    settled,
)
from gennode.wire.coordinates import MAX_AXIS_S, Coordinate
from tests.wire.test_coordinates import coordinates

TRUTH = Coordinate(0.03, -0.02, 0.004, 0.1)


def landmarks(count: int, seed: int = 1, jitter: float = 0.05) -> list[Landmark]:
    """Honest neighbours all around, and what was measured to them from TRUTH."""
    rng = Random(seed)
    found = []
    for _ in range(count):
        where = Coordinate(rng.gauss(0, 0.06), rng.gauss(0, 0.06), rng.uniform(0.001, 0.01), 0.1)
        found.append((where, TRUTH.rtt_s(where) * (1 + rng.uniform(-jitter, jitter))))
    return found


def test_a_sample_moves_by_the_rule_of_the_paper() -> None:
    own, other = Coordinate(0.0, 0.0, 0.01, 0.2), Coordinate(0.08, 0.0, 0.01, 0.2)
    after = moved(own, other, 0.06, Random(0))
    # predicted 0.1: of 0.04 too much a quarter, by half the weight, in the direction of the other
    assert after.x_s == pytest.approx(0.005 * 0.8, rel=1e-3)  # 0.08 of 0.1 lie in the plane
    assert after.height_s == pytest.approx(0.01 - 0.005 * 0.2)
    assert after.error == pytest.approx(0.2 * 0.875 + 0.125 * 0.04 / 0.06)


@given(coordinates, coordinates, st.floats(), st.integers(0, 99), st.floats(0, 10))
def test_whatever_comes_the_point_stays_within_bounds(
    own: Coordinate, other: Coordinate, rtt_s: float, seed: int, limit_s: float
) -> None:
    after = moved(own, other, rtt_s, Random(seed), limit_s)
    assert abs(after.x_s) <= MAX_AXIS_S
    assert abs(after.y_s) <= MAX_AXIS_S
    assert 0 <= after.height_s <= MAX_AXIS_S
    assert 0 <= after.error <= 1


@pytest.mark.parametrize("rtt_s", [0.0, -1.0, math.nan, math.inf, MAX_RTT_S + 1])
def test_a_round_trip_that_cannot_be_changes_nothing(rtt_s: float) -> None:
    assert moved(TRUTH, Coordinate(), rtt_s, Random(0)) == TRUTH


def test_two_at_one_point_part() -> None:
    after = moved(Coordinate(), Coordinate(), 0.1, Random(0))
    assert after.plane_s(Coordinate()) > 0.01


def test_who_claims_to_be_sure_weighs_no_more_than_we() -> None:
    sure, unsure = Coordinate(0.5, 0, 0, 0.0), Coordinate(0.5, 0, 0, TRUTH.error)
    assert moved(TRUTH, sure, 0.1, Random(0)) == moved(TRUTH, unsure, 0.1, Random(0))


def test_a_newcomer_comes_to_rest_where_it_is() -> None:
    own = Coordinate()
    for _ in range(8):  # as many echoes
        own = settled(own, landmarks(8), Random(3))
    off = sorted(abs(own.rtt_s(where) / TRUTH.rtt_s(where) - 1) for where, _ in landmarks(50, 7))
    assert off[25] < 0.1
    assert own.error < 0.2


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("claim_s", [-10.0, -0.1, 0.1, 10.0])
@pytest.mark.parametrize("rtt_s", [0.001, 0.1, 10.0])
def test_a_few_liars_move_an_honest_point_little(seed: int, claim_s: float, rtt_s: float) -> None:
    honest = landmarks(14, seed)
    liar = (Coordinate(claim_s, claim_s, 0.0, 0.0), rtt_s)
    own = TRUTH
    for turn in range(50):
        own = settled(own, [*honest, liar, liar], Random(turn))
    typical_s = sorted(rtt_s for _, rtt_s in honest)[7]
    assert difference_s(own, TRUTH) < 0.1 * typical_s


def test_nobody_is_surer_than_networks_allow() -> None:
    own = Coordinate()
    for turn in range(300):
        own = settled(own, landmarks(16, jitter=0.0), Random(turn))
    assert own.error == pytest.approx(MIN_ERROR, abs=0.01)
