"""How long steps take in engines that differ in precision alone: all in turns, so none is lucky."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gennode.engine.choice.runs import Layer, Run, Step
from gennode.engine.seam import Precision, ShardEngine, StepInput
from gennode.errors import LocalError
from gennode.wire.ids import Span

MIN_ROUNDS, MAX_ROUNDS = 3, 40
FILL_ROWS = 512  # of a context at once


def measure(
    engines: Mapping[Precision, ShardEngine],
    layer: Layer,
    steps: Sequence[Step],
    *,
    hardware: str,
    step_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Run]:
    """Runs of each step in each engine; some `step_s` are taken for each step.

    The engines have the same span loaded. What counts is the quicker quarter: on a busy machine
    others make some rounds longer, and nothing makes one shorter than it should be.
    """
    spans = {engine.spans() for engine in engines.values()}
    if len(spans) != 1 or len(found := spans.pop()) != 1:
        raise LocalError("engines that are compared have the same one span")
    span = found[0]
    runs = []
    for step in steps:
        batches = {name: _begin(engine, span, step) for name, engine in engines.items()}
        times_s: dict[Precision, list[float]] = {name: [] for name in engines}
        end_s = clock() + step_s
        for count in range(MAX_ROUNDS):
            if count >= MIN_ROUNDS and clock() > end_s:
                break
            for name, engine in engines.items():
                start_s = clock()
                engine.step(batches[name])
                times_s[name].append(clock() - start_s)
        for name, engine in engines.items():
            for item in batches[name]:
                engine.close(item.sequence)
            layer_s = max(sorted(times_s[name])[len(times_s[name]) // 4] / span.layers, 1e-9)
            runs.append(Run(hardware, name, layer, step, layer_s))
    return runs


def _begin(engine: ShardEngine, span: Span, step: Step) -> list[StepInput]:
    """A step that was taken once, and may be repeated; after a context of noise."""
    chance = np.random.default_rng(0)

    def noise(rows: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return chance.standard_normal((rows, engine.dim), dtype=np.float32)

    batch = []
    for _ in range(step.sequences):
        sequence = object()
        engine.open(sequence, span, step.context + step.rows)
        for start in range(0, step.context, FILL_ROWS):
            rows = min(FILL_ROWS, step.context - start)
            engine.step([StepInput(sequence, start, noise(rows))])
        batch.append(StepInput(sequence, step.context, noise(step.rows)))
    engine.step(batch)
    return batch
