"""Made-up swarms: the same again from a seed, nothing unaccounted for, moves that leave no gap."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from gennode.errors import UsageError
from gennode.node.crowd.simulation import Outcome, Scenario, Swarm, simulate
from gennode.wire.ids import Span

CHURNING = Scenario(peers=16, minutes=2.0, seed=5, load=0.05, churn=0.5, model="8b", regions=2)
IN_A_PROCESS = """
from gennode.node.crowd.simulation import Scenario, simulate
print(simulate(Scenario(peers=12, minutes=1.0, seed=3, load=0.03, churn=1.0, model="8b"))
      .tally.digest)
"""


def accounted(outcome: Outcome) -> int:
    tally = outcome.tally
    return tally.answered + tally.refused + tally.lost + outcome.running


def test_a_seed_gives_the_same_run_and_another_seed_another() -> None:
    first, second = simulate(CHURNING), simulate(CHURNING)
    assert first.tally.digest == second.tally.digest
    assert first.tally.token_s.percentile_s(0.99) == second.tally.token_s.percentile_s(0.99)
    assert first.events == second.events > 500
    other = simulate(Scenario(**{**vars(CHURNING), "seed": 6}))
    assert other.tally.digest != first.tally.digest


def test_a_run_does_not_depend_on_how_python_hashes_strings() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", IN_A_PROCESS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


@pytest.mark.parametrize(
    "scenario",
    [
        CHURNING,
        Scenario(peers=8, minutes=2.0, seed=1, load=3.0, churn=1.0, model="70b", regions=1),
        Scenario(peers=30, minutes=2.0, seed=2, load=0.5, churn=2.0, arrivals="bursty"),
    ],
)
def test_every_session_is_accounted_for(scenario: Scenario) -> None:
    outcome = simulate(scenario)
    tally = outcome.tally
    assert accounted(outcome) == tally.asked > 0
    assert sum(one.tokens for one in tally.timeline) == tally.tokens
    assert sum(one.failovers for one in tally.timeline) == tally.failovers
    assert tally.lost_covered <= tally.lost
    assert tally.failed_over <= min(tally.asked, tally.failovers)
    assert outcome.utilisation >= 0
    assert all(0 <= one.weakest <= one.mean for one in tally.coverage)


def test_a_quiet_swarm_at_half_its_load_loses_and_refuses_nothing() -> None:
    outcome = simulate(Scenario(peers=24, minutes=4.0, seed=4, load=0.5, regions=2))
    tally = outcome.tally
    assert tally.answered > 20
    assert (tally.lost, tally.refused, tally.failovers) == (0, 0, 0)
    assert tally.mean_coverage()[0] >= 1


def test_under_churn_sessions_are_carried_on_while_there_are_spare_copies() -> None:
    outcome = simulate(
        Scenario(peers=30, minutes=3.0, seed=8, load=0.05, churn=0.2, model="8b", regions=2)
    )
    tally = outcome.tally
    assert tally.crashes + tally.leaves > 10
    assert tally.failed_over > 3
    assert tally.mean_coverage()[0] > 3
    assert tally.lost == 0
    assert tally.answered > 0.8 * (tally.asked - outcome.running)


@pytest.mark.parametrize("seed", range(3))
def test_planned_moves_leave_no_layer_bare_and_lose_nobody(seed: int) -> None:
    """All workers are sent to other layers at once, again and again, while they serve."""
    swarm = Swarm(Scenario(peers=16, minutes=8.0, seed=seed, load=0.01, regions=1, model="8b"))
    rng = random.Random(seed)
    layers = 32

    def send_everybody() -> None:
        for member in swarm.members.values():
            width = member.candidate.capacity_layers
            start = rng.randrange(layers - width + 1) if width < layers else 0
            swarm.changes.move(member, Span(start, min(layers, start + max(1, width // 2))))

    for at_s in (30.0, 150.0, 270.0):
        swarm.after(at_s, send_everybody)
    tally = swarm.run().tally
    assert tally.moves > 8
    assert tally.layers_moved > tally.moves
    assert tally.mean_coverage()[0] >= 1
    assert tally.lost == 0


def test_a_pool_that_holds_no_copy_says_so_and_answers_nobody() -> None:
    outcome = simulate(Scenario(peers=1, minutes=1.0, model="70b", seed=0))
    assert outcome.missing
    assert outcome.tally.asked == 0
    assert outcome.planned_token_s == 0


@pytest.mark.parametrize(
    "field",
    [
        {"peers": 0},
        {"peers": 5001},
        {"minutes": 1441},
        {"load": 0.0},
        {"churn": 2.1},
        {"regions": 6},
        {"arrivals": "weekly"},
        {"model": "9000b"},
    ],
)
def test_what_makes_no_sense_is_named(field: dict[str, float | str]) -> None:
    name = next(iter(field))
    with pytest.raises(UsageError, match=f"^{name} is "):
        Scenario(**field).check()  # type: ignore[arg-type]
