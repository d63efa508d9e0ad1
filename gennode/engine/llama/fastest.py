"""Which precision computes a model's layers in the least time here, tried on its own shapes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gennode.engine.llama.linear import Linear
from gennode.engine.llama.precision import Arithmetic, arithmetic, available
from gennode.engine.seam import Precision
from gennode.wire.manifest import ModelShape

# Layers below 16 MiB in fp32 are as quick that way: calling for a product takes longer than it.
MIN_LAYER_PARAMETERS = 1 << 22

# Weights that are read in turn: more than processors keep at hand, and half a second to pack.
TRIAL_BYTES = 40 * 1024**2
MAX_TRIAL_WEIGHTS = 10 * 1024**2  # of one product: of larger ones a part is tried
TRIAL_ROWS = (1, 8)  # one sequence's token, and those of a few
TRIAL_S = 0.08  # for each precision and number of rows
MIN_REPEATS = 3

# Rounding is a price; less than this is no reason to pay it.
WORTH = 1.25

_ON_ACCELERATORS: tuple[Precision, ...] = ("bf16", "fp16")


@dataclass(frozen=True)
class Trial:
    """Seconds that products with `rows` rows take for each of a layer's parameters."""

    precision: Precision
    rows: int
    parameter_s: float


def fastest(shape: ModelShape, device: torch.device) -> Precision:
    """The quickest precision for these layers: fp32 unless another is 1.25 times as quick.

    On a CPU it is measured, in a second at most; small layers stay in fp32. On accelerators it
    is the one that they are made for.
    """
    if device.type != "cpu":
        is_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return _ON_ACCELERATORS[0 if is_bf16 else 1]
    if shape.layer_parameters < MIN_LAYER_PARAMETERS:
        return "fp32"
    return choose(try_out(shape, device))


def choose(trials: list[Trial]) -> Precision:
    """The precision with the least time over all numbers of rows, a row of each as important."""

    def row_s(precision: Precision) -> float:
        return sum(trial.parameter_s / trial.rows for trial in trials
                   if trial.precision == precision)  # fmt: skip

    best = min({trial.precision for trial in trials}, key=lambda each: (row_s(each), each))
    return best if row_s(best) * WORTH <= row_s("fp32") else "fp32"


@torch.inference_mode()
def try_out(
    shape: ModelShape, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> list[Trial]:
    """Time the model's largest product in each precision that is possible here."""
    trials = []
    for precision in available(device):
        how = arithmetic(precision, device)
        products = _products(shape, how)
        parameters = math.prod(_trial_size(shape)) * len(products)
        for rows in TRIAL_ROWS:
            states = torch.ones((rows, shape.dim))
            taken_s = _median_s(products, states, clock)
            trials.append(Trial(precision, rows, taken_s / parameters))
    return trials


def _trial_size(shape: ModelShape) -> tuple[int, int]:
    """Outputs and inputs of gate and up together, or of as many outputs as are tried."""
    return min(2 * shape.ffn_dim, max(1, MAX_TRIAL_WEIGHTS // shape.dim)), shape.dim


def _products(shape: ModelShape, how: Arithmetic) -> list[Linear]:
    """Different weights of one shape, as many as no processor keeps at hand."""
    size = _trial_size(shape)
    count = -(-TRIAL_BYTES // (size[0] * size[1] * how.weight_bytes))
    # Written, for pages that nobody wrote to are all the same one.
    weight = torch.full(size, 0.5, dtype=how.weight_dtype)
    return [how.linear(weight.clone(), None) for _ in range(count)]


def _median_s(products: list[Linear], states: torch.Tensor, clock: Callable[[], float]) -> float:
    """Seconds to run all of them once."""
    times_s: list[float] = []
    end_s = clock() + TRIAL_S
    while len(times_s) <= MIN_REPEATS or clock() < end_s:
        start_s = clock()
        for product in products:
            product(states)
        times_s.append(clock() - start_s)
    return statistics.median(times_s[1:])
