"""Seconds that a layer takes for a step, in each precision: learned from runs of other layers.

A roofline gives the form, seconds = Σ weight × feature with no weight below zero, and the ratio
of what was measured to that is smoothed between neighbours: caches and kernels jump where no
formula says so. (To choose by a model of recorded runs is the idea of Du et al. 2024,
arXiv:2410.21340. Theirs knows machines and models by embeddings, ours one machine by sizes.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gennode.engine.choice.runs import Layer, Run, Step, layers_of
from gennode.engine.seam import Precision

MIN_LAYERS = 3  # kinds of layers: fewer say nothing of how time grows with their size
MIN_RUNS = 12  # of a precision: as many again as there are features
_SWEEPS = 400  # of coordinate descent; fits changed by less than 1e-3 after 200
_NEAR = 0.7  # of a natural logarithm: runs at half or twice the size count for 0.6
_SHRINK = 0.5  # of a run: how many say that the roofline alone is right

_Numbers = npt.NDArray[np.float64]


def features(layer: Layer, step: Step) -> _Numbers:
    """What time is spent on: a call, sequences, rows, weights read, products, states, attention."""
    rows = step.sequences * step.rows
    seen = rows * (step.context + step.rows / 2)
    wide = layer.dim + layer.ffn_dim
    return np.array([
        1.0, step.sequences, rows, layer.weights, layer.weights * rows, wide * rows,
        seen * layer.kv_heads * layer.head_dim, seen * layer.heads,
    ])  # fmt: skip


def _place(layer: Layer, step: Step) -> _Numbers:
    """Where a run lies among the others, in logarithms."""
    rows = step.sequences * step.rows
    return np.log([layer.weights**0.5, step.sequences, rows, step.context + step.rows])


@dataclass(frozen=True)
class _Fit:
    """One precision's: weights of the features, and logarithms of what they leave unexplained."""

    weights: _Numbers
    places: _Numbers
    residuals: _Numbers

    def log_s(self, layer: Layer, step: Step) -> float:
        base = math.log(float(features(layer, step) @ self.weights))
        apart = ((self.places - _place(layer, step)) ** 2).sum(1)
        near = np.exp(-apart / (2 * _NEAR**2))
        return base + float(near @ self.residuals) / (float(near.sum()) + _SHRINK)


@dataclass(frozen=True)
class Predictor:
    """Times in the precisions that were measured often enough.

    `error`: what it is wrong by on layers that it did not see, as the median of |ln(predicted /
    measured)|; infinite if too few were measured to tell.
    """

    fits: Mapping[Precision, _Fit]
    error: float

    def layer_s(self, precision: Precision, layer: Layer, step: Step) -> float:
        """Seconds of one layer. KeyError for a precision that was not measured."""
        return math.exp(self.fits[precision].log_s(layer, step))


def fit(runs: Sequence[Run]) -> Predictor:
    """Learn from runs on one hardware, and find out how good that is."""
    return Predictor(_fits(runs), _held_out_error(runs))


def _fits(runs: Sequence[Run]) -> dict[Precision, _Fit]:
    by_precision: dict[Precision, list[Run]] = {}
    for run in runs:
        by_precision.setdefault(run.precision, []).append(run)
    return {
        precision: _fit_one(each)
        for precision, each in by_precision.items()
        if len(each) >= MIN_RUNS and len(layers_of(each)) >= MIN_LAYERS
    }


def _fit_one(runs: Sequence[Run]) -> _Fit:
    seconds = np.array([run.layer_s for run in runs])
    # Divided by the time, so that errors count relative to it.
    table = np.stack([features(run.layer, run.step) for run in runs]) / seconds[:, None]
    scale = table.max(0)
    weights = _not_negative(table / scale, np.ones(len(runs))) / scale
    residuals = -np.log(table @ weights)
    return _Fit(weights, np.stack([_place(run.layer, run.step) for run in runs]), residuals)


def _not_negative(table: _Numbers, wanted: _Numbers) -> _Numbers:
    """Least squares without negative weights, by coordinate descent from the average."""
    gram, aim = table.T @ table, table.T @ wanted
    weights = np.full(table.shape[1], 1.0 / max(float(table.sum(1).mean()), 1e-12))
    for _ in range(_SWEEPS):
        for index in range(len(weights)):
            rest = aim[index] - gram[index] @ weights + gram[index, index] * weights[index]
            weights[index] = max(1e-9, rest / gram[index, index])
    return weights


def _held_out_error(runs: Sequence[Run]) -> float:
    """Each kind of layer predicted from the others."""
    errors = []
    for layer in layers_of(runs):
        fits = _fits([run for run in runs if run.layer != layer])
        for run in runs:
            if run.layer == layer and run.precision in fits:
                predicted = fits[run.precision].log_s(run.layer, run.step)
                errors.append(abs(predicted - math.log(run.layer_s)))
    return float(np.median(errors)) if errors else math.inf
