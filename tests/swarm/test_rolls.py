"""A new version rolls through simulated swarms: answers are whole, and there is always a route."""

from __future__ import annotations

import pytest

from gennode.node.rolls.roll_story import PROMPTS, tell_roll

SEEDS, QUICK = 200, 12


def _hold(first: int, end: int) -> None:
    stories = [tell_roll(seed) for seed in range(first, end)]
    assert all(story.holds for story in stories), [one for one in stories if not one.holds]
    assert sum(story.of_old for story in stories) >= len(stories)  # prompts fall into all of it
    assert sum(story.of_new for story in stories) >= len(stories)
    assert {story.both_fit for story in stories} >= {2, 3}  # of six: some of either kind


def test_an_answer_is_one_versions_as_a_whole() -> None:
    _hold(0, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(QUICK, SEEDS, 47))
def test_an_answer_is_one_versions_as_a_whole_in_many_swarms(first: int) -> None:
    _hold(first, first + 47)


def test_a_seed_replays() -> None:
    assert tell_roll(7) == tell_roll(7)
    assert tell_roll(7).of_old + tell_roll(7).of_new == PROMPTS
