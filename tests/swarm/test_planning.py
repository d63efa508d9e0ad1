"""Swarms plan together: one plan everywhere, whoever is silent, lies or can't be reached."""

from __future__ import annotations

from random import Random

import pytest

from gennode.node.witness import PACE
from gennode.wire.ids import PeerId
from gennode.wire.proposal import place_in_line
from tests.node.planners import EPOCH_ZERO_S, KEYS, MODEL, Planners, Weather, announced

FIRST_TURN_S = 15.0  # when the epoch begins in which the first plan is due


def swarm(seed: int, weather: Weather, peers: int | None = None) -> Planners:
    """Peers that have just come and host nothing yet, so that a plan is due."""
    rng = Random(seed)
    count = peers or rng.choice([5, 6, 8, 10, 12, 16, 20, 30])
    start_s = EPOCH_ZERO_S + 1000 * seed * PACE.epoch_s - FIRST_TURN_S
    made = Planners(rng, weather, start_s=start_s)
    for key in rng.sample(KEYS, count):
        made.join(key, capacity=rng.randint(5, 12))
    return made


def line(made: Planners) -> list[PeerId]:
    """The publishers of the first plan, in order."""
    epoch = int((made.start_s + FIRST_TURN_S + 1) // PACE.epoch_s)
    return sorted(made.planners, key=lambda peer: place_in_line(MODEL, epoch, peer))


def agree(made: Planners) -> bool:
    """Whether all follow one plan of one publisher."""
    plans = {one.plan for one in made.live()}
    return len(plans) == 1 and None not in plans


def settle(made: Planners, limit_s: float) -> float:
    """Seconds from the first turn until all agree."""
    made.run(FIRST_TURN_S + limit_s, done=lambda: agree(made))
    assert agree(made), [(one.plan, one.refused) for one in made.live()]
    return made.now_s - FIRST_TURN_S


@pytest.mark.parametrize("first", range(0, 100, 50))
def test_all_follow_the_first_in_line(first: int) -> None:
    for seed in range(first, first + 50):
        made = swarm(seed, Weather())
        settle(made, 15.0)
        assert made.live()[0].accepted[-1][1].publisher == line(made)[0], seed
        assert not any(one.refused for one in made.live()), seed


ROUGH = Weather(loss=0.15, skew_s=3.0, news_s=6.0, decide_s=1.0)


def test_lost_messages_and_wrong_clocks_delay_a_plan_by_seconds() -> None:
    took_s = []
    for seed in range(100):
        made = swarm(seed, ROUGH)
        took_s.append(settle(made, 30.0))
    assert sorted(took_s)[50] < 8.0
    print(sorted(took_s)[50], sorted(took_s)[95], max(took_s))


@pytest.mark.parametrize("kind", ["mute", "crashed"])
def test_the_next_in_line_takes_over_from_the_silent(kind: str) -> None:
    took_s = []
    for seed in range(60):
        made = swarm(seed, Weather(skew_s=3.0), peers=8 + seed % 20)
        silent = line(made)[: 1 + seed % 3]
        for peer in silent:
            if kind == "mute":
                made.planners[peer].is_mute = True
            else:
                at_s = FIRST_TURN_S - made.rng.uniform(1.0, 9.0)
                made.after(at_s, lambda made=made, peer=peer: made.crash(peer))  # type: ignore[misc]
        took_s.append(settle(made, 25.0) - PACE.takeover_s * len(silent))
    print(sorted(took_s)[30], max(took_s))


def test_two_halves_that_meet_again_follow_the_plan_of_who_is_first_in_line() -> None:
    differed = 0
    for seed in range(40):
        made = swarm(seed, Weather(skew_s=1.0, news_s=1.0), peers=8 + seed % 12)
        made.run(2.0)
        first, second = line(made)[:2]
        groups = {peer: made.rng.randrange(2) for peer in sorted(made.planners)}
        made.split({**groups, first: 0, second: 1})
        made.announce(announced(second, capacity=1, sequence=2))
        made.run(FIRST_TURN_S + 12.0)
        one, other = made.planners[first].plan, made.planners[second].plan
        assert one is not None
        assert other is not None
        differed += one[2] != other[2]
        made.join_up()
        settle(made, 40.0)
        assert made.planners[second].plan == one, seed
    assert differed >= 30
