"""Stories told by several processes are those told by one, in the same order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gennode.errors import LocalError
from gennode.node.stories.telling import Tally, Told, tell_all

SEEDS = range(4, 10)


def test_several_processes_tell_the_same_stories_in_order() -> None:
    alone = [told.story for told in tell_all(SEEDS, 1)]
    assert [story.seed for story in alone] == list(SEEDS)
    assert [told.story for told in tell_all(SEEDS, 2)] == alone


def test_a_story_that_does_not_hold_is_named_with_its_seed() -> None:
    [told] = tell_all([5], 1)
    tally = Tally()
    tally.add(told)
    before = tally.digest
    assert (tally.stories, tally.prompts) == (1, told.story.prompts)
    with pytest.raises(LocalError, match="seed 5: the sky fell") as caught:
        tally.add(Told(replace(told.story, broken="the sky fell"), 1.0))
    assert caught.value.hint == "gennode simulate --seed 5"
    assert tally.digest == before


def test_whoever_stops_listening_ends_the_telling() -> None:
    stories = tell_all(range(10_000), 2)
    assert next(stories).story.seed == 0
    stories.close()  # type: ignore[attr-defined]
