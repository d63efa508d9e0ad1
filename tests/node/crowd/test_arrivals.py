"""Arrivals are as bursty and sessions as long as they claim to be."""

from __future__ import annotations

import random
import statistics

import pytest

from gennode.node.crowd.arrivals import (
    BURSTY_CV,
    GAPS,
    MAX_ANSWER_TOKENS,
    MAX_PROMPT_TOKENS,
    PROMPT_WEIGHT,
    draw_lengths,
    mean_work,
)


@pytest.mark.parametrize(("name", "cv"), [("poisson", 1.0), ("bursty", BURSTY_CV)])
def test_gaps_have_the_mean_and_the_spread_asked_for(name: str, cv: float) -> None:
    rng = random.Random(1)
    gaps_s = [GAPS[name](rng, 0.5) for _ in range(40_000)]
    mean_s = statistics.fmean(gaps_s)
    assert mean_s == pytest.approx(0.5, rel=0.05)
    assert statistics.pstdev(gaps_s) / mean_s == pytest.approx(cv, rel=0.1)


def test_lengths_are_bounded_skewed_and_never_empty() -> None:
    rng = random.Random(2)
    drawn = [draw_lengths(rng) for _ in range(20_000)]
    prompts = [one.prompt for one in drawn]
    answers = [one.answer for one in drawn]
    assert min(prompts) >= 1
    assert min(answers) >= 1
    assert max(prompts) == MAX_PROMPT_TOKENS  # the tail is long enough to be cut
    assert max(answers) <= MAX_ANSWER_TOKENS
    assert statistics.fmean(prompts) > 1.3 * statistics.median(prompts)
    work = statistics.fmean(PROMPT_WEIGHT * one.prompt + one.answer for one in drawn)
    assert mean_work() == pytest.approx(work, rel=0.05)
