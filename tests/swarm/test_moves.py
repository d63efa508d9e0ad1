"""Workers join, leave, crash and move in simulated swarms: answers are right and layers covered."""

from __future__ import annotations

import pytest

from gennode.node.moves.move_story import COVER_LIMIT_S, tell_move

SEEDS, QUICK, BATCH = 102, 12, 30


def _hold(first: int, end: int) -> None:
    stories = [tell_move(seed) for seed in range(first, end)]
    assert all(story.holds for story in stories), [one for one in stories if not one.holds]
    covered_s = [cover_s for story in stories for cover_s in story.cover_s]
    assert len(covered_s) >= len(stories) / 4  # gaps there were
    in_time = sum(cover_s <= COVER_LIMIT_S for cover_s in covered_s)
    assert in_time >= 0.9 * len(covered_s), covered_s
    assert sum(story.moves for story in stories) >= 2 * len(stories)
    assert any(story.moved_by_join for story in stories)


def test_no_prompt_is_lost_while_workers_come_and_go_and_move() -> None:
    _hold(0, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(QUICK, SEEDS, BATCH))
def test_no_prompt_is_lost_in_many_swarms(first: int) -> None:
    _hold(first, first + BATCH)


def test_a_seed_replays() -> None:
    assert tell_move(5) == tell_move(5)
