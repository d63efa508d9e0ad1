"""When sessions are asked for, and how long their prompts and answers are.

The kinds of distributions follow Xiang et al., "ServeGen: Workload Characterization and
Generation of Large Language Model Serving in Production", arXiv 2505.09999: gaps between
requests are bursty and better described by Gamma or Weibull than by a Poisson process; prompt
lengths by a log-normal with a Pareto tail; answer lengths by an exponential. The parameters are
ours: round figures of a chat, not taken from that paper.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

BURSTY_CV = 2.5  # of the gaps; 1 is Poisson
PROMPT_MEDIAN_TOKENS = 400
PROMPT_SIGMA = 1.0  # of the logarithm
TAIL_SHARE = 0.05  # of the prompts: documents
TAIL_FROM_TOKENS = 1200
TAIL_EXPONENT = 1.5
ANSWER_MEAN_TOKENS = 500
MAX_PROMPT_TOKENS = 4096
MAX_ANSWER_TOKENS = 4096
# What a token of a prompt costs workers, in tokens of answers: chunks of a prompt read the
# weights once for many tokens. About right for the 70B shape on consumer cards.
PROMPT_WEIGHT = 0.25

_SAMPLES = 4000  # for the mean length, which clipping puts out of reach of a formula


@dataclass(frozen=True)
class Lengths:
    """Tokens of one session."""

    prompt: int
    answer: int

    @property
    def work(self) -> float:
        """What it costs workers, in tokens of answers."""
        return PROMPT_WEIGHT * self.prompt + self.answer


def draw_lengths(rng: random.Random) -> Lengths:
    """The lengths of one session, both at least 1 and clipped."""
    if rng.random() < TAIL_SHARE:
        prompt = TAIL_FROM_TOKENS * rng.paretovariate(TAIL_EXPONENT)
    else:
        prompt = PROMPT_MEDIAN_TOKENS * rng.lognormvariate(0.0, PROMPT_SIGMA)
    answer = rng.expovariate(1 / ANSWER_MEAN_TOKENS)
    return Lengths(
        min(MAX_PROMPT_TOKENS, 1 + int(prompt)),
        min(MAX_ANSWER_TOKENS, 1 + int(answer)),
    )


def mean_work() -> float:
    """What a session costs workers in the mean, in tokens of answers; found by drawing many."""
    rng = random.Random("mean length")
    return sum(draw_lengths(rng).work for _ in range(_SAMPLES)) / _SAMPLES


def _poisson_s(rng: random.Random, mean_s: float) -> float:
    return rng.expovariate(1 / mean_s)


def _bursty_s(rng: random.Random, mean_s: float) -> float:
    shape = 1 / BURSTY_CV**2
    return rng.gammavariate(shape, mean_s / shape)


GAPS: dict[str, Callable[[random.Random, float], float]] = {
    "poisson": _poisson_s,
    "bursty": _bursty_s,
}
"""Seconds to the next session, drawn by a process of this name with a given mean."""
