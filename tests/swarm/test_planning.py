"""Swarms plan together: one plan everywhere, whoever is silent, lies or can't be reached."""

from __future__ import annotations

from random import Random

import pytest

from gennode.node.witness import PACE
from gennode.wire.ids import PeerId
from gennode.wire.proposal import place_in_line
from tests.node.planners import EPOCH_ZERO_S, KEYS, MODEL, Planners, Weather

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
    """Whether all follow the same plan, and one at all."""
    plans = {one.plan for one in made.live()}
    return len(plans) == 1 and plans != {b""}


def settle(made: Planners, limit_s: float) -> float:
    """Seconds from the first turn until all agree."""
    made.run(FIRST_TURN_S + limit_s, done=lambda: agree(made))
    assert agree(made), [(one.plan[:4], one.refused) for one in made.live()]
    return made.now_s - FIRST_TURN_S


@pytest.mark.parametrize("first", range(0, 100, 50))
def test_all_follow_the_first_in_line(first: int) -> None:
    for seed in range(first, first + 50):
        made = swarm(seed, Weather())
        settle(made, 15.0)
        assert made.live()[0].accepted[-1][1].publisher == line(made)[0], seed
        assert not any(one.refused for one in made.live()), seed
