"""Counts, percentiles and the timeline of a run."""

from __future__ import annotations

import random

import pytest

from gennode.node.crowd.tally import Histogram, Tally


def test_percentiles_are_right_to_a_per_cent() -> None:
    rng = random.Random(3)
    values = sorted(rng.lognormvariate(-2, 1.5) for _ in range(5000))
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    for share in (0.01, 0.5, 0.99):
        assert histogram.percentile_s(share) == pytest.approx(values[int(share * 5000)], rel=0.03)


def test_a_weight_counts_as_often_and_nothing_has_no_percentile() -> None:
    histogram = Histogram()
    assert histogram.percentile_s(0.5) == 0
    histogram.add(1.0, 99)
    histogram.add(10.0)
    assert histogram.percentile_s(0.5) == pytest.approx(1.0, rel=0.01)
    assert histogram.percentile_s(0.995) == pytest.approx(10.0, rel=0.02)
    histogram.add(0.0)
    assert histogram.count == 101


def test_sessions_are_spread_over_the_timeline() -> None:
    tally = Tally(duration_s=100.0, slices=10)
    tally.under_way(5.0, 32.0)
    tally.under_way(95.0, 100.0)
    held = [one.session_s for one in tally.timeline]
    assert held == [5.0, 10.0, 10.0, 2.0, 0, 0, 0, 0, 0, 5.0]


def test_coverage_is_weighed_by_time() -> None:
    tally = Tally(duration_s=10.0, slices=1)
    tally.covered(0.0, [2, 4])
    tally.covered(5.0, [9, 9])
    tally.covered(5.0, [1, 1])  # at the same moment: only what it ends with counts
    assert len(tally.coverage) == 2
    assert tally.mean_coverage() == (1, 1.5, 2.0)


def test_the_digest_knows_order_time_and_words() -> None:
    digests = set()
    for events in ([(1.0, "a"), (2.0, "b")], [(1.0, "b"), (2.0, "a")], [(1.0, "a"), (2.5, "b")]):
        tally = Tally(duration_s=10.0, slices=1)
        for at_s, what in events:
            tally.trace(at_s, what, 1)
        digests.add(tally.digest)
    assert len(digests) == 3
