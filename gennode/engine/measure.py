"""How long an engine's steps take, with one sequence and with several."""

from __future__ import annotations

import statistics
import time
from collections.abc import Hashable, Sequence

import numpy as np

from gennode.engine.seam import ShardEngine, States, StepInput
from gennode.errors import ModelError
from gennode.wire.ids import Span

PROFILE_POSITIONS = 64  # a short prompt: what a token costs is nearly all weights there
PROFILE_STEPS = 9
PROFILE_BATCH = 16  # sequences in a step, to see what the second and later ones add
PROFILE_BATCHES = 5
PROFILE_BYTES = 256 * 1024**2  # of weights, for that: more than processors keep at hand
_WARM_UP_STEPS = 2


def measure_layer_time_s(engine: ShardEngine, span: Span) -> float:
    """Seconds per layer of a step with one token: the median of some."""
    scratch = object()
    steps = _WARM_UP_STEPS + PROFILE_STEPS
    engine.open(scratch, span, PROFILE_POSITIONS + steps)
    [states] = engine.step([StepInput(scratch, 0, _states(PROFILE_POSITIONS, engine.dim))])
    check_finite(states)
    times_s = [
        time_step_s(engine, [scratch], position)
        for position in range(PROFILE_POSITIONS, PROFILE_POSITIONS + steps)
    ]
    engine.close(scratch)
    return statistics.median(times_s[_WARM_UP_STEPS:]) / span.layers


def check_finite(states: States) -> None:
    """ModelError if a layer gives what no layer should: each answer would fail with it."""
    if not np.isfinite(states).all():
        raise ModelError("the layers give numbers that are not finite",
                         hint="its weights are damaged: download the model again")  # fmt: skip


def measure_further_s(engine: ShardEngine, span: Span, layer_bytes: int, most: int) -> float:
    """What each sequence after the first adds to a step, per layer; over part of the span.

    Both are measured in turns, so that whatever else runs here slows both down. There is room
    for `most` sequences; where that is one, none is ever added.
    """
    sequences = min(PROFILE_BATCH, most)
    if sequences < 2:
        return 0.0
    layers = min(span.layers, 1 + PROFILE_BYTES // layer_bytes)
    batch = [object() for _ in range(sequences)]
    steps = _WARM_UP_STEPS + PROFILE_BATCHES
    for scratch in batch:
        engine.open(scratch, Span(span.start, span.start + layers), steps)
    added_s = []
    for position in range(steps):
        alone_s = time_step_s(engine, batch[:1], position)
        added_s.append(time_step_s(engine, batch, position) - alone_s)
    for scratch in batch:
        engine.close(scratch)
    added = statistics.median(added_s[_WARM_UP_STEPS:])
    return max(0.0, added) / (sequences - 1) / layers


def time_step_s(engine: ShardEngine, sequences: Sequence[Hashable], position: int) -> float:
    """Seconds of a step with one token of each."""
    token = _states(1, engine.dim)
    batch = [StepInput(sequence, position, token) for sequence in sequences]
    start_s = time.perf_counter()
    engine.step(batch)
    return time.perf_counter() - start_s


def _states(rows: int, dim: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """States as those of a prompt might be: zeros would take a way of their own."""
    return np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)
