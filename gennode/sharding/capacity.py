"""What layers, caches and machines weigh: the one accounting of memory, used everywhere."""

from __future__ import annotations

import math

from gennode.wire.manifest import ModelShape

FLOAT32_BYTES = 4


def layer_bytes(shape: ModelShape, *, weight_bytes: float = FLOAT32_BYTES) -> int:
    """Bytes of one transformer layer's weights.

    `weight_bytes` is the mean per weight; a fraction for formats with a scale per block.
    """
    return math.ceil(shape.layer_parameters * weight_bytes)


def position_bytes(shape: ModelShape, *, number_bytes: int = FLOAT32_BYTES) -> int:
    """Bytes that the KV cache of one layer takes for one position of one session."""
    return shape.position_elements * number_bytes


def cache_bytes(
    shape: ModelShape, *, sessions: int, positions: int, number_bytes: int = FLOAT32_BYTES
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
    number_bytes: int = FLOAT32_BYTES,
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
    number_bytes: int = FLOAT32_BYTES,
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
    number_bytes: int = FLOAT32_BYTES,
) -> int:
    """The most sessions of `positions` positions that fit beside the weights of `layers` layers.

    `layers` and `positions` are at least 1.
    """
    left_bytes = memory_bytes - layers * layer_bytes(shape, weight_bytes=weight_bytes)
    session_bytes = layers * positions * position_bytes(shape, number_bytes=number_bytes)
    return max(0, left_bytes) // session_bytes
