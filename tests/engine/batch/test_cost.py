"""What is learned of a step's time, and that no measurement leaves nothing to be done."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gennode.engine.batch.cost import (
    EFFICIENT,
    MAX_KINDS,
    MAX_ROWS,
    NOTHING,
    PER_KIND,
    STRETCH,
    Load,
    StepCost,
    load_of,
)
from gennode.engine.seam import Profile
from gennode.wire.ids import ModelId

LAYERS = 10
PROFILE = Profile(ModelId("0" * 64), "toy", 2e-3, 0.1, 1e-3)
TRUE = (0.1, 2e-3, 5e-3, 1e-6)  # seconds: fixed, per sequence, per row, per position read

seconds = st.floats(allow_nan=True, allow_infinity=True)
loads = st.builds(load_of, st.integers(0, 4096), st.integers(1, 512))


def true_s(load: Load) -> float:
    return TRUE[0] + load.sequences * TRUE[1] + load.rows * TRUE[2] + load.reads * TRUE[3]


def tokens(count: int, position: int = 200) -> Load:
    return sum((load_of(position + 7 * number, 1) for number in range(count)), NOTHING)


def taught(noise: float = 0.0, outliers: float = 0.0, seed: int = 1) -> StepCost:
    """A cost model that has seen mixed steps of a machine, some of them disturbed."""
    rng, cost = random.Random(seed), StepCost(PROFILE, LAYERS)
    for _ in range(200):
        load = tokens(rng.randrange(0, 9), rng.randrange(900))
        for _ in range(rng.randrange(0, 3)):
            load += load_of(rng.randrange(2000), rng.randrange(1, 200))
        taken_s = true_s(load) * (1 + noise * rng.random())
        cost.measured(load, taken_s * (10 if rng.random() < outliers else 1))
    return cost


def test_before_anything_is_measured_the_profile_counts() -> None:
    cost = StepCost(PROFILE, LAYERS)
    assert cost.seconds(Load(1, 1, 0)) == pytest.approx(0.02)
    assert cost.seconds(Load(3, 3, 0)) == pytest.approx(0.04)


def test_the_parts_of_a_steps_time_are_found() -> None:
    cost = taught()
    for load in (tokens(1), tokens(8), load_of(0, 512), tokens(4) + load_of(1500, 64)):
        assert cost.seconds(load) == pytest.approx(true_s(load), rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_steps_that_were_disturbed_move_little(seed: int) -> None:
    cost = taught(noise=0.05, outliers=0.1, seed=seed)
    for load in (tokens(1), tokens(8), load_of(0, 512)):
        assert cost.seconds(load) == pytest.approx(true_s(load), rel=0.15)


def test_a_machine_that_gets_slower_is_followed() -> None:
    cost = taught()
    for number in range(64):
        cost.measured(tokens(1 + number % 4), 3 * true_s(tokens(1 + number % 4)))
    assert cost.seconds(tokens(2)) == pytest.approx(3 * true_s(tokens(2)), rel=0.3)


def test_an_hour_of_tokens_does_not_push_out_what_is_known_of_prompts() -> None:
    cost = taught()
    for number in range(2000):
        cost.measured(tokens(1 + number % 4), true_s(tokens(1 + number % 4)))
    assert cost.seconds(load_of(0, 256)) == pytest.approx(true_s(load_of(0, 256)), rel=0.3)


def test_prompts_beside_tokens_stretch_them_no_further_than_allowed() -> None:
    cost = taught()
    for count in (1, 4, 16):
        alone = tokens(count)
        limit_s = cost.limit_s(alone, tokens(5))
        rows = cost.fitting_rows(limit_s, alone, 1000, 4096)
        assert 1 <= rows < MAX_ROWS
        assert true_s(alone + load_of(1000, rows)) == pytest.approx(
            STRETCH * true_s(alone), rel=0.1
        )


def test_a_batch_without_tokens_is_efficient_or_short_if_one_is_expected() -> None:
    cost = taught()
    rows = cost.fitting_rows(cost.limit_s(NOTHING, NOTHING), NOTHING, 0, 4096)
    fixed_s = TRUE[0] + TRUE[1]
    assert rows * TRUE[2] / (fixed_s + rows * TRUE[2]) == pytest.approx(EFFICIENT, abs=0.03)
    short = cost.fitting_rows(cost.limit_s(NOTHING, tokens(1)), NOTHING, 0, 4096)
    assert true_s(load_of(0, short)) == pytest.approx(STRETCH * true_s(tokens(1)), rel=0.1)


@given(st.lists(st.tuples(loads, seconds), max_size=40), loads, loads)
@settings(deadline=None)
def test_whatever_is_measured_times_stay_sane(
    steps: list[tuple[Load, float]], small: Load, more: Load
) -> None:
    cost = StepCost(PROFILE, LAYERS)
    for load, taken_s in steps:
        cost.measured(load, taken_s)
    assert all(part >= 0 for part in cost.parts_s)
    assert 0 < cost.seconds(small) <= cost.seconds(small + more) < float("inf")
    for limit_s in (cost.limit_s(small, NOTHING), cost.limit_s(NOTHING, NOTHING)):
        assert 0 < limit_s < float("inf")
    assert 0 <= cost.fitting_rows(cost.limit_s(small, NOTHING), small, 0, 100) <= 100


def test_what_is_kept_is_bounded() -> None:
    rng, cost = random.Random(1), StepCost(PROFILE, LAYERS)
    for _ in range(1000):
        load = tokens(rng.randrange(0, 300)) + load_of(0, rng.randrange(1, 5000))
        cost.measured(load, true_s(load))
    assert sum(map(len, cost._kept.values())) <= MAX_KINDS * PER_KIND
