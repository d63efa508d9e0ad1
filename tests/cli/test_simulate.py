"""`gennode simulate`: one seed, one story."""

from __future__ import annotations

import json

from tests.cli.conftest import Command


def test_a_seed_tells_the_same_story_again(gennode: Command) -> None:
    first, second = (json.loads(gennode("simulate", "--seed", "7", "--json").out) for _ in "ab")
    for told in (first, second):
        assert told.pop("life_speed") > 1
        assert told.pop("life_speed_per_core") > 1
    assert first == second
    assert first["stories"] == 1
    assert first["wrong"] == 0
    assert first["told"]


def test_a_replayed_story_is_told_for_people(gennode: Command) -> None:
    ended = gennode("simulate", "--seed", "7")
    assert ended.code == 0
    figures = json.loads(gennode("simulate", "--seed", "7", "--json").out)
    assert ended.out.splitlines()[: len(figures["told"])] == figures["told"]
    assert f"{figures['right']} of {figures['prompts']} answers identical" in ended.out
    assert figures["digest"][:16] in ended.out
    assert gennode("simulate", "--seed", "7", "--first", "2").code == 2


def test_several_seeds_are_told_from_a_first_one(gennode: Command) -> None:
    chosen = ("simulate", "--first", "20", "--seeds", "3", "--jobs", "1")
    figures = json.loads(gennode(*chosen, "--json").out)
    assert figures["stories"] == 3
    ended = figures["right"] + figures["refused"] + figures["abandoned"]
    assert ended == figures["prompts"]
    told = gennode(*chosen).out
    assert told.startswith("3 stories, ")
    assert figures["digest"][:16] in told


SWARM = ("simulate", "swarm", "--peers", "10", "--minutes", "1", "--model", "8b")


def test_a_swarm_is_told_for_people_and_for_programs(gennode: Command) -> None:
    told = gennode(*SWARM, "--load", "0.1", "--churn", "0.5")
    assert told.code == 0
    words = [line.split()[0] for line in told.out.splitlines()]
    assert words[0] == "sessions"
    assert {"failovers", "throughput", "coverage", "moves", "speed"} <= set(words)
    figures = json.loads(gennode(*SWARM, "--load", "0.1", "--churn", "0.5", "--json").out)
    assert figures["asked"] == sum(
        figures[name] for name in ("answered", "refused", "lost", "running")
    )
    assert f"{figures['asked']} asked, {figures['answered']} answered" in told.out
    assert figures["digest"][:16] in told.out
    assert figures["scenario"]["peers"] == 10


def test_what_a_swarm_cannot_be_ends_with_a_word_and_code_2(gennode: Command) -> None:
    for wrong in (
        ("--peers", "5001"),
        ("--minutes", "1441"),
        ("--churn", "3"),
        ("--regions", "6"),
        ("--arrivals", "weekly"),
        ("--chart", "chart.gif"),
    ):
        ended = gennode(*SWARM, *wrong)
        assert ended.code == 2, wrong
        assert ended.out == ""
        assert "chart" in ended.err or wrong[0] in ended.err


def test_options_of_stories_are_not_taken_for_a_swarms(gennode: Command) -> None:
    ended = gennode("simulate", "--seed", "3", "swarm")
    assert ended.code == 2
    assert "gennode simulate swarm --seed 7" in ended.err
