"""How long a step will take, learned from the steps before it; and what fits into one."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gennode.engine.seam import Profile

STRETCH = 1.75  # times what a token takes alone; promised are 2, and forecasts err by a tenth
EFFICIENT = 0.9  # of the throughput without end that a batch of prompts should reach
MIN_ROWS = 4  # of prompts in every batch: whatever is believed of the cost, they go on
MIN_EFFICIENT_ROWS, MAX_ROWS = 32, 512  # of prompts in a batch while nobody waits for a token
PER_KIND = 8  # measurements of one kind that are kept
MAX_KINDS = 32
HALF_LIFE = 64  # steps after which a measurement counts half: machines get busy, and idle again
FIT_EVERY = 8  # new measurements, but for the first ones: it takes half a millisecond
_LEAST_TRUST = 0.1  # of a fresh measurement; more than what was believed before any
MIN_STEP_S, MAX_STEP_S = 1e-7, 600.0  # a machine that was suspended meanwhile says nothing
_ROUNDS = 3  # of reweighting; further ones changed the fits tried by less than a percent
_HUBER = 1.345  # standard deviations: 95 % as good as least squares if nothing is an outlier
_LEAST_SPREAD = 0.02  # of a measurement; less would call honest noise outliers
_PRIOR_WEIGHT = 0.03  # of a measurement, for each of what was believed before
_ROW_SHARE = 0.25  # of a further sequence's time, what a further row of the same one is taken for

_Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Load:
    """What a step holds: sequences, their rows, and how many positions those rows attend to.

    A sequence counts once for each of its inputs, which attend one by one.
    """

    sequences: int = 0
    rows: int = 0
    reads: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(
            self.sequences + other.sequences, self.rows + other.rows, self.reads + other.reads
        )

    @property
    def _numbers(self) -> tuple[float, float, float, float]:
        return 1.0, float(self.sequences), float(self.rows), float(self.reads)


NOTHING = Load()


def load_of(position: int, rows: int) -> Load:
    """One sequence's part of a step: its rows at positions from `position` on."""
    return Load(1, rows, rows * position + rows * (rows + 1) // 2)


_BELIEVED = (load_of(64, 1), Load(8, 8, 8 * 64), load_of(0, 64))
"""Loads whose times the profile states, more or less: they hold the fit where nothing is known."""


class StepCost:
    """seconds = fixed + sequences a + rows b + reads c, all of them at least zero.

    Fitted to the latest steps by least squares of relative errors, outliers weighed down (Huber
    1964): a step that took long because the machine did something else moves little. Steps of
    each kind (as many sequences and as many further rows, to a factor of two) are kept apart,
    so that an hour of single tokens does not push out what is known of prompts.
    """

    def __init__(self, profile: Profile, layers: int) -> None:
        """`layers`: how many a step goes through."""
        self.cut_rows = profile.cut_rows
        """See `Profile`."""
        further_s = max(profile.further_time_s, 1e-9) * layers
        fixed_s = max(profile.layer_time_s * layers - further_s, 0.0)
        row_s = _ROW_SHARE * further_s
        self._prior = np.array([fixed_s, further_s - row_s, row_s, 0.0])
        self._weights = self._prior
        self._kept: dict[tuple[int, int], deque[tuple[int, Load, float]]] = {}
        self._count = 0
        self._fitted = 0  # measurements when it was fitted last

    @property
    def parts_s(self) -> tuple[float, float, float, float]:
        """Seconds that are fixed, per sequence, per row and per position read."""
        self._learn()
        fixed_s, sequence_s, row_s, read_s = map(float, self._weights)
        return fixed_s, sequence_s, row_s, read_s

    def seconds(self, load: Load) -> float:
        """How long a step with this load should take."""
        self._learn()
        return float(np.dot(self._weights, load._numbers))

    # -- what fits ----------------------------------------------------------------------------

    def limit_s(self, decoding: Load, expected: Load) -> float:
        """How long the next batch may take.

        `decoding`: the single tokens in it. `expected`: those that should come soon. With
        tokens in the batch it is `STRETCH` times what they take alone. If some are only
        expected, the same of those: coming at a random moment, a token waits for half of such a
        batch, about one step of its own. Else nobody is stalled, and it is what a batch of rows
        takes that reaches `EFFICIENT` of the throughput without end: r / (fixed + r b) =
        EFFICIENT / b, so r = fixed / b * EFFICIENT / (1 - EFFICIENT).
        """
        for tokens in (decoding, expected):
            if tokens.rows:
                return STRETCH * self.seconds(tokens)
        fixed_s, sequence_s, row_s, _ = self.parts_s
        most = MAX_ROWS
        if row_s > 0:
            rows = (fixed_s + sequence_s) / row_s * EFFICIENT / (1 - EFFICIENT)
            most = round(min(max(rows, MIN_EFFICIENT_ROWS), MAX_ROWS))
        return self.seconds(load_of(0, most))

    def fitting_rows(self, limit_s: float, beside: Load, position: int, most: int) -> int:
        """How many rows, at positions from `position` on, fit beside a load; 0 to `most`."""
        few, many = 0, min(most, MAX_ROWS)
        while few < many:
            rows = (few + many + 1) // 2
            if self.seconds(beside + load_of(position, rows)) <= limit_s:
                few = rows
            else:
                many = rows - 1
        return few

    # -- learning -----------------------------------------------------------------------------

    def measured(self, load: Load, seconds: float) -> None:
        """A step with this load has taken so long."""
        if not MIN_STEP_S < seconds < MAX_STEP_S or not load.rows:
            return
        self._count += 1
        kind = load.sequences.bit_length(), (load.rows - load.sequences).bit_length()
        kept = self._kept.pop(kind, None) or deque(maxlen=PER_KIND)
        kept.append((self._count, load, seconds))
        self._kept[kind] = kept  # at the end: the kinds that were not seen for longest go first
        if len(self._kept) > MAX_KINDS:
            del self._kept[next(iter(self._kept))]

    def _learn(self) -> None:
        """Fit, if somebody asks and enough is new: single tokens alone need no forecasts."""
        new = self._count - self._fitted
        if new >= FIT_EVERY or (new and self._count <= FIT_EVERY):
            self._fitted = self._count
            self._fit()

    def _fit(self) -> None:
        kept = [one for kind in self._kept.values() for one in kind]
        loads = [load._numbers for _, load, _ in kept] + [load._numbers for load in _BELIEVED]
        believed = [float(np.dot(self._prior, load._numbers)) for load in _BELIEVED]
        times_s = np.array([seconds for _, _, seconds in kept] + believed)
        ages = np.array([self._count - when for when, _, _ in kept], dtype=np.float64)
        aged = np.maximum(0.5 ** (ages / HALF_LIFE), _LEAST_TRUST)
        trust = np.append(aged, np.full(len(believed), _PRIOR_WEIGHT))
        rows = np.array(loads) / times_s[:, None]  # so that all times are 1, errors relative
        found = _non_negative(rows, trust)
        for _ in range(_ROUNDS):
            error = np.abs(rows @ found - 1)
            spread = max(_LEAST_SPREAD, 1.4826 * float(np.median(error[: len(kept)])))
            weights = trust * np.minimum(1.0, _HUBER * spread / np.maximum(error, 1e-12))
            found = _non_negative(rows, weights)
        if np.isfinite(found).all() and float(found.sum()) > 0:
            self._weights = found


def _non_negative(rows: _Numbers, weights: _Numbers) -> _Numbers:
    """Least squares of `rows @ x = 1` with x >= 0: the best of all choices of what is not zero.

    `rows` [n, 4], `weights` [n]. Four unknowns make 15 choices, all solved in one call: what is
    left out has a one on the diagonal, and comes out as zero.
    """
    scale = np.sqrt((rows * rows).mean(axis=0))
    scale[scale == 0] = 1.0
    scaled = rows / scale
    squares, products = (scaled.T * weights) @ scaled, scaled.T @ weights
    systems = np.where(_CHOICES[:, :, None] & _CHOICES[:, None, :], squares, 0.0)
    systems += np.where(_CHOICES, 1e-12, 1.0)[:, :, None] * np.eye(len(scale))
    found = np.linalg.solve(systems, np.where(_CHOICES, products, 0.0)[:, :, None])[:, :, 0]
    errors = np.einsum("ci,ij,cj->c", found, squares, found) - 2 * found @ products
    errors[(found < 0).any(axis=1)] = np.inf
    return np.asarray(found[int(errors.argmin())] / scale)


_CHOICES = np.array([*itertools.product((True, False), repeat=4)][:-1])
