"""A made-up machine whose times are known, for choosing without measuring."""

from __future__ import annotations

import itertools

import numpy as np

from gennode.engine.choice.runs import Layer, Run, Step
from gennode.engine.seam import Precision

HERE = "made-up; 2 threads; cpu; torch 0"
LAYERS = tuple(Layer(dim, dim // 64, 2, 64, 11 * dim // 4) for dim in (128, 256, 512, 1024, 2048))
STEPS = tuple(
    Step(*each) for each in itertools.chain(
        itertools.product((1, 4, 16, 64), (1,), (32, 512)), itertools.product((1,), (32, 512), (0,))
    )
)  # fmt: skip
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")


def truth_s(precision: Precision, layer: Layer, step: Step) -> float:
    """8 bits are read and multiplied faster, and cost more to begin with."""
    start_s, byte_s, product_s = {
        "fp32": (100e-6, 4 * 0.1e-9, 10e-12),
        "bf16": (200e-6, 2 * 0.1e-9, 5e-12),
        "int8": (350e-6, 1 * 0.1e-9, 3e-12),
    }[precision]
    rows = step.sequences * step.rows
    attention_s = rows * (step.context + step.rows / 2) * layer.kv_heads * layer.head_dim * 1e-10
    return start_s + layer.weights * (byte_s + rows * product_s) + rows * 2e-6 + attention_s


def runs(noise: float = 0.0, seed: int = 0, layers: tuple[Layer, ...] = LAYERS) -> list[Run]:
    """Every step in every layer and precision; `noise` of a natural logarithm."""
    chance = np.random.default_rng(seed)
    return [
        Run(HERE, precision, layer, step,
            truth_s(precision, layer, step) * float(np.exp(noise * chance.standard_normal())))
        for precision, layer, step in itertools.product(PRECISIONS, layers, STEPS)
    ]  # fmt: skip
