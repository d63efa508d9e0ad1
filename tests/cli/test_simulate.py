"""`gennode simulate`: one seed, one story."""

from __future__ import annotations

import json

from tests.cli.conftest import Command


def test_a_seed_tells_the_same_story_again(gennode: Command) -> None:
    first, second = (json.loads(gennode("simulate", "--seed", "7", "--json").out) for _ in "ab")
    assert first.pop("life_speed") > 1
    assert second.pop("life_speed") > 1
    assert first == second
    assert first["stories"] == 1
    assert first["wrong"] == 0


def test_faults_of_a_replayed_story_are_told(gennode: Command) -> None:
    for seed in range(20):
        ended = gennode("simulate", "--seed", str(seed))
        assert ended.code == 0
        if " of worker " in ended.err:
            return
    raise AssertionError("twenty stories without a fault")
