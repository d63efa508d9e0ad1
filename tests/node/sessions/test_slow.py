"""Sessions whose tokens take much longer than before lose the hop that makes them."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest

from gennode.node.actions import Rerouted
from gennode.node.sessions.slow import (
    ANSWER_S,
    MIN_GROWTH_S,
    PAUSE_S,
    SLOW_FACTOR,
    SLOW_STEPS,
    USUAL_STEPS,
    Slowness,
)
from gennode.wire.messages import Feed
from tests.node.conftest import FIRST, SECOND, THIRD
from tests.node.sessions.company import Company
from tests.node.sessions.scouts import Directory, nobody


def after(*runs: tuple[int, float]) -> Slowness:
    """After so many steps of so many seconds each, and so on."""
    slowness = Slowness()
    for steps, step_s in runs:
        for _ in range(steps):
            slowness.timed(step_s)
    return slowness


def test_many_slow_steps_in_a_row_are_noticed() -> None:
    usual, slow = (SLOW_STEPS, 0.1), 0.1 * SLOW_FACTOR + 0.01
    assert after(usual, (SLOW_STEPS, slow)).growth_s == pytest.approx(slow - 0.1)
    assert after(usual, (SLOW_STEPS - 1, slow)).growth_s == 0
    assert after(usual, (SLOW_STEPS - 1, slow), (1, 0.1), (SLOW_STEPS - 1, slow)).growth_s == 0


def test_nothing_is_slow_before_the_usual_is_known() -> None:
    assert after((SLOW_STEPS - 1, 0.1), (SLOW_STEPS, 10.0)).growth_s == 0


def test_a_difference_that_nobody_feels_is_none() -> None:
    tiny_s = MIN_GROWTH_S / 10
    assert after((SLOW_STEPS, tiny_s), (SLOW_STEPS, 5 * tiny_s)).growth_s == 0


def test_the_usual_follows_what_grows_slowly() -> None:
    slowness = Slowness()
    times_s = [0.05 * 1.01**step for step in range(600)]  # four hundred times as long in the end
    for step_s in times_s:
        slowness.timed(step_s)
        assert slowness.growth_s == 0
    for _ in range(SLOW_STEPS):
        slowness.timed(10 * times_s[-1])
    usual_s = statistics.median(times_s[-USUAL_STEPS:])
    assert slowness.growth_s == pytest.approx(10 * times_s[-1] - usual_s, rel=0.1)


def test_hops_are_asked_once_before_and_once_after() -> None:
    slowness = after((SLOW_STEPS, 0.1))
    assert slowness.asks(0.0)
    assert not slowness.asks(0.1)
    for _ in range(SLOW_STEPS):
        slowness.timed(1.0)
    assert slowness.asks(1.0)
    assert not slowness.asks(1.1)
    assert slowness.judges(1.1, all_answered=False) == 0
    assert slowness.judges(1.0 + ANSWER_S + 0.1, all_answered=False) == pytest.approx(0.9)


def test_judgements_are_far_apart() -> None:
    slowness = after((SLOW_STEPS, 0.1))
    judged = []
    for tenth in range(1200):
        now_s = tenth / 10
        slowness.timed(1.0)
        slowness.asks(now_s)
        if slowness.judges(now_s, all_answered=True):
            judged.append(now_s)
    assert len(judged) == 4
    assert min(b - a for a, b in pairwise(judged)) >= PAUSE_S


# -- a whole session ----------------------------------------------------------------------------


def paced(directory: Directory | None = None) -> Company:
    """A session that has gone on at its usual pace for a while."""
    company = Company(directory=directory) if directory else Company()
    company.job_s = dict.fromkeys((FIRST, SECOND, THIRD), 0.01)
    company.submit(50)
    company.settle()
    for _ in range(2 * SLOW_STEPS):
        company.say(1)
        company.tick(0.05)
    return company


def drag(company: Company, steps: int = 2 * SLOW_STEPS) -> None:
    for _ in range(steps):
        company.say(1)
        company.tick(0.05)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_hop_that_became_slow_is_handed_over_by_frames(place: int) -> None:
    company = paced()
    slow = (FIRST, SECOND, THIRD)[place]
    company.job_s[slow] = 0.3
    drag(company)
    company.check()
    [event] = [one for one in company.events if isinstance(one, Rerouted)]
    assert (event.is_planned, event.reason, event.lost) == (True, "became slow", (slow,))
    feeds = [letter[2] for letter in company.heard(Feed)]
    assert [feed.cache for feed in feeds if isinstance(feed, Feed)] == [False] * (place > 0)


def test_a_slow_hop_that_nobody_can_replace_is_kept() -> None:
    company = paced(Directory(nobody))
    company.job_s[SECOND] = 0.3
    drag(company, 4 * SLOW_STEPS)
    company.check()
    assert not [one for one in company.events if isinstance(one, Rerouted)]


def test_all_hops_alike_at_a_slower_pace_costs_one_of_them_its_place_at_most() -> None:
    company = paced()
    company.job_s = dict.fromkeys(company.engines, 0.05)  # as where contexts have grown
    drag(company, 10 * SLOW_STEPS)
    company.check()
    assert len([one for one in company.events if isinstance(one, Rerouted)]) <= 1
