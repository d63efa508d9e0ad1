"""From logits to one token, the same one whenever a position is sampled again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from gennode.engine.seam import Logits
from gennode.errors import RemoteError, UsageError
from gennode.wire.messages import MAX_POSITIONS

MAX_TEMPERATURE = 2.0  # beyond, answers are noise; the usual bound of public APIs
MAX_SEED = (1 << 64) - 1

_RANDOM_BITS = 53  # those that a float64 holds exactly


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop; UsageError if a value is out of its bounds.

    Temperature 0 is greedy. Otherwise tokens are drawn from the smallest set of the likeliest
    whose probability reaches `top_p` (Holtzman et al. 2019, arXiv:1904.09751).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 256

    def __post_init__(self) -> None:
        for name, holds, bounds in (
            ("temperature", 0 <= self.temperature <= MAX_TEMPERATURE, f"0 to {MAX_TEMPERATURE}"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("seed", 0 <= self.seed <= MAX_SEED, f"0 to {MAX_SEED}"),
            ("max_tokens", 1 <= self.max_tokens <= MAX_POSITIONS, f"1 to {MAX_POSITIONS}"),
        ):
            if not holds:
                raise UsageError(f"{name} is {getattr(self, name)}", hint=f"it may be {bounds}")


def choose(logits: Logits, sampling: Sampling, position: int) -> int:
    """The token for `position`: a pure function of its arguments, whatever was asked before and
    wherever the logits lie. So a replay to the same bits gives the same tokens.

    Ties: greedy takes the lowest id of those with the largest logit, 0 and −0 being equal; the
    set of the likeliest takes lower ids first, and draws go through them in that order.
    RemoteError if a logit is not finite: the states that it was computed from came from workers.
    """
    if not np.isfinite(logits).all():
        raise RemoteError("the workers' states lead to logits that are not finite numbers")
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    scaled = (logits.astype(np.float64) - float(logits.max())) / sampling.temperature
    weights = np.exp(scaled)
    weights /= weights.sum()
    tokens = np.arange(len(weights))
    if sampling.top_p < 1:
        # Those below this share together weigh less than 1 − top_p, so none is in the set:
        # only the few others need sorting.
        (tokens,) = np.nonzero(weights >= (1 - sampling.top_p) / len(weights))
        tokens = tokens[np.argsort(-weights[tokens], kind="stable")]
        reached = np.cumsum(weights[tokens])
        tokens = tokens[: int(np.searchsorted(reached, sampling.top_p)) + 1]
    reached = np.cumsum(weights[tokens])
    target = random_unit(sampling.seed, position) * reached[-1]
    index = int(np.searchsorted(reached, target, side="right"))
    return int(tokens[min(index, len(tokens) - 1)])


def random_unit(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the position."""
    digest = hashlib.sha256(f"gennode/sample/{seed}/{position}".encode()).digest()
    return float((int.from_bytes(digest[:8], "big") >> (64 - _RANDOM_BITS)) * 2.0**-_RANDOM_BITS)
