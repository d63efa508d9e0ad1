"""What layers, caches and machines weigh, and how long layers take: the one accounting of both.

The same functions decide (`layers_that_fit`, `layer_cost`, `demand_of`) and report (`account`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec

from gennode.wire.activations import codec
from gennode.wire.announcement import Machine
from gennode.wire.manifest import ModelShape
from gennode.wire.snapshot import Demand, LayerCost

FLOAT32_BYTES = 4
PLANNED_SESSIONS = 4  # whose caches are set aside before layers are counted
PLANNED_POSITIONS = 2048  # of each of them
FRAME_HEAD_BYTES = 73  # of a step with one row, measured at width 2048: 2,249 bytes in all

# What a machine may claim: several times what the largest reach. Beyond, it is a liar or a slip.
MAX_FLOPS_PER_S = 1e17
MAX_MEMORY_BYTES_PER_S = 1e15
SLOWEST_S = 1e6  # as long as a time in a snapshot may be: eleven days

# A cost in two parameters is exact for passes over so many tokens.
FEW_TOKENS, MANY_TOKENS = 1, 32

_MAX_BYTES = 1 << 50  # as large as a size in a demand may be

Bound = Literal["compute", "memory bandwidth"]


def layer_bytes(shape: ModelShape, *, weight_bytes: float = FLOAT32_BYTES) -> int:
    """Bytes of one transformer layer's weights.

    `weight_bytes` is the mean per weight; a fraction for formats with a scale per block.
    """
    return math.ceil(shape.layer_parameters * weight_bytes)


def position_bytes(shape: ModelShape, *, number_bytes: float = FLOAT32_BYTES) -> int:
    """Bytes that the KV cache of one layer takes for one position of one session.

    `number_bytes` is the mean per number, as `weight_bytes` is per weight.
    """
    return math.ceil(shape.position_elements * number_bytes)


def cache_bytes(
    shape: ModelShape, *, sessions: int, positions: int, number_bytes: float = FLOAT32_BYTES
) -> int:
    """Bytes of one layer's KV cache with `sessions` sessions of `positions` positions each."""
    return sessions * positions * position_bytes(shape, number_bytes=number_bytes)


def hosting_bytes(
    shape: ModelShape,
    layers: int,
    *,
    sessions: int,
    positions: int,
    weight_bytes: float = FLOAT32_BYTES,
    number_bytes: float = FLOAT32_BYTES,
) -> int:
    """Bytes that hosting `layers` layers takes: their weights and their full KV caches."""
    cache = cache_bytes(shape, sessions=sessions, positions=positions, number_bytes=number_bytes)
    return layers * (layer_bytes(shape, weight_bytes=weight_bytes) + cache)


def layers_that_fit(
    shape: ModelShape,
    memory_bytes: int,
    *,
    sessions: int,
    positions: int,
    weight_bytes: float = FLOAT32_BYTES,
    number_bytes: float = FLOAT32_BYTES,
) -> int:
    """The most layers of this model, 0 to all of them, whose hosting fits in `memory_bytes`."""
    each = hosting_bytes(
        shape,
        1,
        sessions=sessions,
        positions=positions,
        weight_bytes=weight_bytes,
        number_bytes=number_bytes,
    )
    return min(shape.layers, max(0, memory_bytes) // each)


def sessions_that_fit(
    shape: ModelShape,
    memory_bytes: int,
    *,
    layers: int,
    positions: int,
    weight_bytes: float = FLOAT32_BYTES,
    number_bytes: float = FLOAT32_BYTES,
) -> int:
    """The most sessions of `positions` positions that fit beside the weights of `layers` layers.

    `layers` and `positions` are at least 1.
    """
    left_bytes = memory_bytes - layers * layer_bytes(shape, weight_bytes=weight_bytes)
    session_bytes = layers * positions * position_bytes(shape, number_bytes=number_bytes)
    return max(0, left_bytes) // session_bytes


@dataclass(frozen=True, slots=True)
class LayerTime:
    """What one layer asks of a machine for one pass; the slower of the two decides."""

    compute_s: float
    memory_s: float

    @property
    def time_s(self) -> float:
        """Seconds of the pass, as if arithmetic and reading overlapped wholly."""
        return min(max(self.compute_s, self.memory_s), SLOWEST_S)

    @property
    def bound_by(self) -> Bound:
        """What would have to be faster for the pass to be."""
        return "compute" if self.compute_s > self.memory_s else "memory bandwidth"


def layer_time(
    shape: ModelShape,
    machine: Machine,
    *,
    batch: int,
    weight_bytes: float = FLOAT32_BYTES,
    number_bytes: float = FLOAT32_BYTES,
    positions: int = PLANNED_POSITIONS,
) -> LayerTime:
    """The roofline of one layer over `batch` ≥ 1 tokens of as many sessions of `positions` each.

    Two operations per weight that a token passes, four per query element and position attended
    to; weights are read once, each session's cache too, and of experts those that some token
    uses. Figures of the machine that can't be true are bounded. Never raises for them.

    Sources: Williams, Waterman, Patterson, "Roofline", Communications of the ACM 52(4), 2009;
    the terms per layer are Parallax's (GradientHQ/parallax, src/scheduling/model_info.py),
    with experts and positions counted for a batch.
    """
    attended = 4 * shape.heads * shape.head_dim * positions
    operations = batch * (2 * shape.used_parameters + attended)
    cache_read_bytes = batch * positions * shape.position_elements * number_bytes
    read = shape.common_parameters + expected_experts(shape, batch) * shape.expert_parameters
    return LayerTime(
        compute_s=operations / within(machine.flops_per_s, 1.0, MAX_FLOPS_PER_S),
        memory_s=(read * weight_bytes + cache_read_bytes)
        / within(machine.memory_bytes_per_s, 1.0, MAX_MEMORY_BYTES_PER_S),
    )


def layer_cost(
    shape: ModelShape,
    machine: Machine,
    *,
    weight_bytes: float = FLOAT32_BYTES,
    number_bytes: float = FLOAT32_BYTES,
    positions: int = PLANNED_POSITIONS,
) -> LayerCost:
    """`layer_time` as a line through its values for 1 and 32 tokens, which are exact.

    It holds for an engine that computes the tokens of a pass together. In between it is at
    most 1.7 times too slow (where reading decides for few tokens and arithmetic for many) and,
    with experts, of which the first tokens read most, at least 0.44 of the truth. Beyond 32
    tokens it knows nothing of arithmetic that overtakes reading there.
    """
    few_s, many_s = (
        layer_time(
            shape,
            machine,
            batch=batch,
            weight_bytes=weight_bytes,
            number_bytes=number_bytes,
            positions=positions,
        ).time_s
        for batch in (FEW_TOKENS, MANY_TOKENS)
    )
    token_s = max(0.0, (many_s - few_s) / (MANY_TOKENS - FEW_TOKENS))
    return LayerCost(fixed_s=max(0.0, few_s - token_s), token_s=token_s)


def expected_experts(shape: ModelShape, tokens: int) -> float:
    """How many distinct experts of a layer `tokens` tokens use together, on average.

    E · (1 − (1 − k / E)^tokens) for k of E experts, as if each token drew its k by chance
    (GradientHQ/parallax, src/scheduling/model_info.py). The power is made of products alone,
    so that its bits are the same everywhere.
    """
    if not shape.experts:
        return 0.0
    unused, factor, left = 1.0, 1 - shape.experts_used / shape.experts, tokens
    while left:
        if left % 2:
            unused *= factor
        factor *= factor
        left //= 2
    return shape.experts * (1 - unused)


def demand_of(
    shape: ModelShape,
    *,
    weight_bytes: float = FLOAT32_BYTES,
    number_bytes: float = FLOAT32_BYTES,
    positions: int = PLANNED_POSITIONS,
    step_limit_s: float = 0.2,
) -> Demand:
    """What a model asks of a pool, for sessions of `positions` or as many as the model has.

    Frames are those of the default codec. Sizes that no machine has (a manifest may state any)
    are cut to the largest that a snapshot carries.
    """
    planned = min(positions, shape.max_positions)
    session = cache_bytes(shape, sessions=1, positions=planned, number_bytes=number_bytes)
    return Demand(
        layers=shape.layers,
        layer_bytes=min(layer_bytes(shape, weight_bytes=weight_bytes), _MAX_BYTES),
        session_bytes=min(max(1, session), _MAX_BYTES),
        frame_bytes=codec("int8-outlier").row_bytes(shape.dim) + FRAME_HEAD_BYTES,
        step_limit_s=step_limit_s,
    )


class Account(msgspec.Struct, frozen=True):
    """What a machine can do for a model, as `account` finds it; for people and for JSON.

    `fitting_layers` of `layers` fit, each taking `layer_bytes` with the caches of the planned
    sessions. Their weights take `weights_bytes`; `caches_bytes` are left for caches, and hold
    `sessions` of `positions` each. `layer_time_s`: of one token, and `bound_by` what; None if
    the machine was not measured.
    """

    layers: int
    fitting_layers: int
    memory_bytes: int
    layer_bytes: int
    weights_bytes: int
    caches_bytes: int
    sessions: int
    positions: int
    layer_time_s: float | None = None
    bound_by: Bound | None = None

    @property
    def words(self) -> str:
        """The same in a sentence or two."""
        memory = _size(self.memory_bytes)
        if not self.fitting_layers:
            return f"{memory} hold no layer: each takes {_size(self.layer_bytes)} with its caches"
        text = (
            f"{memory} hold {self.fitting_layers} of {self.layers} layers: "
            f"{_size(self.weights_bytes)} of weights, {_size(self.caches_bytes)} for caches, "
            f"enough for {self.sessions} sessions of {self.positions} positions"
        )
        if self.layer_time_s is None:
            return text
        return (
            f"{text}; a token should take {self.layer_time_s * 1e3:.3g} ms per layer, "
            f"bound by {self.bound_by}"
        )


def account(
    shape: ModelShape,
    memory_bytes: int,
    machine: Machine | None = None,
    *,
    layers: int | None = None,
    sessions: int = PLANNED_SESSIONS,
    positions: int = PLANNED_POSITIONS,
    weight_bytes: float = FLOAT32_BYTES,
    number_bytes: float = FLOAT32_BYTES,
) -> Account:
    """What `memory_bytes` are good for; `layers` hosts fewer than fit, so that caches get more."""
    planned = min(positions, shape.max_positions)
    each = hosting_bytes(
        shape,
        1,
        sessions=sessions,
        positions=planned,
        weight_bytes=weight_bytes,
        number_bytes=number_bytes,
    )
    fitting = layers_that_fit(
        shape,
        memory_bytes,
        sessions=sessions,
        positions=planned,
        weight_bytes=weight_bytes,
        number_bytes=number_bytes,
    )
    fitting = fitting if layers is None else min(layers, fitting)
    weights = fitting * layer_bytes(shape, weight_bytes=weight_bytes)
    time = machine and layer_time(
        shape,
        machine,
        batch=1,
        weight_bytes=weight_bytes,
        number_bytes=number_bytes,
        positions=planned,
    )
    return Account(
        layers=shape.layers,
        fitting_layers=fitting,
        memory_bytes=memory_bytes,
        layer_bytes=each,
        weights_bytes=weights,
        caches_bytes=memory_bytes - weights if fitting else 0,
        sessions=sessions_that_fit(
            shape,
            memory_bytes,
            layers=fitting,
            positions=planned,
            weight_bytes=weight_bytes,
            number_bytes=number_bytes,
        )
        if fitting
        else 0,
        positions=planned,
        layer_time_s=time.time_s if time else None,
        bound_by=time.bound_by if time else None,
    )


def within(value: float, low: float, high: float) -> float:
    """The nearest number to `value` from `low` to `high`; `low` if it is none."""
    return min(value, high) if value > low else low


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
