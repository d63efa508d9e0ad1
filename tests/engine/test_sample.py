"""Tokens are drawn as the probabilities say, and the same way every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.engine.sample import MAX_SEED, Sampling, choose, random_unit
from gennode.errors import RemoteError, UsageError
from gennode.wire.messages import MAX_POSITIONS

PROBABILITIES = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = np.log(PROBABILITIES).astype(np.float32)
DRAWS = 4000


def draw(sampling: Sampling) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    tokens = [choose(LOGITS, sampling, position) for position in range(DRAWS)]
    return np.bincount(tokens, minlength=len(LOGITS)) / DRAWS


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert choose(np.array([1, 3, 3, 2], dtype=np.float32), Sampling(), 0) == 1


@pytest.mark.parametrize("order", [[0.0, -0.0, -1.0], [-0.0, 0.0, -1.0]])
def test_zeros_of_either_sign_are_equal(order: list[float]) -> None:
    logits = np.array([-2.0, *order], dtype=np.float32)
    assert choose(logits, Sampling(), 0) == 1


def finite_logits() -> st.SearchStrategy[list[float]]:
    """Few values, so that many are equal, and some that are far apart."""
    return st.lists(st.sampled_from([-3e38, -5.0, 0.0, 1.0, 1.25, 7.0, 3e38]), min_size=1)


@given(finite_logits())
def test_greedy_takes_the_lowest_id_of_all_that_are_largest(values: list[float]) -> None:
    logits = np.array(values, dtype=np.float32)
    largest = [token for token, value in enumerate(logits) if value == logits.max()]
    assert choose(logits, Sampling(), 3) == largest[0]


@given(
    finite_logits(),
    st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        top_p=st.sampled_from([1e-9, 0.5, 0.9, 1.0]),
        seed=st.integers(0, MAX_SEED),
    ),
    st.integers(0, MAX_POSITIONS),
    st.integers(1, 15),
)
def test_a_choice_is_the_same_wherever_the_logits_lie_and_whatever_came_before(
    values: list[float], sampling: Sampling, position: int, offset: int
) -> None:
    logits = np.array(values, dtype=np.float32)
    token = choose(logits, sampling, position)
    assert 0 <= token < len(logits)
    memory = np.zeros(offset + 4 * len(logits), dtype=np.uint8)
    elsewhere = memory[offset:].view(np.float32)  # not aligned
    elsewhere[:] = logits
    strided = np.zeros((len(logits), 3), dtype=np.float32)[:, 1]
    strided[:] = logits
    for other in (elsewhere, strided):
        choose(other[::-1], replace(sampling, seed=0), position + 1)
        other.flags.writeable = False
        assert choose(other, sampling, position) == token
    np.testing.assert_array_equal(logits, np.array(values, dtype=np.float32))


def test_draws_among_equals_go_by_id() -> None:
    equal = np.zeros(50, dtype=np.float32)
    for position in range(200):
        token = choose(equal, Sampling(temperature=1, top_p=0.999, seed=8), position)
        assert token == int(random_unit(8, position) * 50)


def test_draws_follow_the_probabilities() -> None:
    np.testing.assert_allclose(draw(Sampling(temperature=1)), PROBABILITIES, atol=0.025)


def test_temperature_sharpens() -> None:
    expected = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    np.testing.assert_allclose(draw(Sampling(temperature=0.5, seed=4)), expected, atol=0.025)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    expected = np.array([0, 0.4, 0, 0.3, 0]) / 0.7
    np.testing.assert_allclose(draw(Sampling(temperature=1, top_p=0.65)), expected, atol=0.025)
    assert set(np.nonzero(draw(Sampling(temperature=1, top_p=0.75)))[0]) == {1, 3, 4}
    assert set(np.nonzero(draw(Sampling(temperature=2, top_p=1e-9)))[0]) == {1}


def test_top_p_among_equals_prefers_low_ids() -> None:
    flat = np.zeros(1000, dtype=np.float32)
    sampling = Sampling(temperature=1, top_p=0.01)
    assert {choose(flat, sampling, position) for position in range(200)} <= set(range(11))


def test_a_choice_depends_on_seed_and_position_alone() -> None:
    sampling = Sampling(temperature=1.5, top_p=0.9, seed=3)
    tokens = [choose(LOGITS, sampling, position) for position in range(64)]
    assert tokens == [choose(LOGITS, sampling, position) for position in range(64)]
    other = Sampling(temperature=1.5, top_p=0.9, seed=4)
    assert tokens != [choose(LOGITS, other, position) for position in range(64)]
    assert random_unit(1, 2) == 0.7850124452457962  # fixed for ever: replays depend on it
    assert random_unit(1, 2) != random_unit(12, 0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_the_workers_fault(wrong: float, temperature: float) -> None:
    logits = np.array([0, wrong], dtype=np.float32)
    with pytest.raises(RemoteError):
        choose(logits, Sampling(temperature=temperature), 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 1 << 64},
        {"max_tokens": 0},
        {"max_tokens": (1 << 20) + 1},
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(settings: dict[str, float]) -> None:
    [name] = settings
    with pytest.raises(UsageError, match=name) as caught:
        Sampling(**settings)  # type: ignore[arg-type]
    assert caught.value.hint
