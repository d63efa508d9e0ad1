"""What is timed is the step that was asked for, in each engine in turn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from gennode.engine.choice.measure import MAX_ROUNDS, MIN_ROUNDS, measure
from gennode.engine.choice.runs import Layer, Step
from gennode.engine.seam import Precision, ShardEngine, States, StepInput
from gennode.engine.toy import TOY_DIM, ToyShard, toy_manifest
from gennode.errors import LocalError
from gennode.wire.ids import Span
from tests.engine.choice.layers import HERE

LAYER = Layer(TOY_DIM, 1, 1, TOY_DIM, TOY_DIM)
STEPS = [Step(1, 1, 0), Step(3, 1, 600), Step(1, 40, 7)]


class Watch:
    """A clock that stands still, but for what an engine's steps move it by."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Timed(ToyShard):
    """A toy whose rows take a known time, and all of its steps are remembered."""

    def __init__(self, watch: Watch, row_s: Sequence[float]) -> None:
        super().__init__(toy_manifest(4))
        self.load(Span(0, 2))
        self._watch, self._row_s = watch, itertools.cycle(row_s)
        self.steps: list[tuple[int, int, int]] = []

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        rows = sum(len(item.states) for item in batch)
        self.steps.append((len(batch), len(batch[0].states), batch[0].position))
        self._watch.now_s += rows * next(self._row_s)
        return super().step(batch)


def test_each_engine_gets_each_step_in_turns_and_its_time_per_layer() -> None:
    watch = Watch()
    slow, fast = Timed(watch, [0.2]), Timed(watch, [0.1])
    found = measure({"fp32": slow, "int8": fast}, LAYER, STEPS,
                    hardware=HERE, step_s=0.0, clock=watch)  # fmt: skip
    assert [(run.precision, run.step) for run in found] == [
        (precision, step) for step in STEPS for precision in ("fp32", "int8")
    ]
    for run in found:
        rows = run.step.sequences * run.step.rows
        assert run.layer_s == pytest.approx(rows * (0.2 if run.precision == "fp32" else 0.1) / 2)
    assert slow.steps == fast.steps
    wanted = [(3, 1, 600)] * (1 + MIN_ROUNDS)
    filled = [(1, 512, 0), (1, 88, 512)] * 3
    start = slow.steps.index((1, 512, 0))
    assert slow.steps[start : start + len(filled) + len(wanted)] == filled + wanted
    for sequence in slow._sequences:
        pytest.fail(f"{sequence} was left open")


def test_disturbed_rounds_do_not_count_and_rounds_have_a_limit() -> None:
    watch = Watch()
    engine = Timed(watch, [0.1, 5.0, 7.0, 0.1])
    run = measure({"fp32": engine}, LAYER, [Step(1, 1, 0)], hardware=HERE, step_s=1e9, clock=watch)
    assert run[0].layer_s == pytest.approx(0.1 / 2)
    assert len(engine.steps) == 1 + MAX_ROUNDS


def test_engines_with_other_layers_are_not_compared() -> None:
    watch = Watch()
    other = Timed(watch, [0.1])
    other.load(Span(3, 4))
    engines: dict[Precision, ShardEngine] = {"fp32": Timed(watch, [0.1]), "int8": other}
    with pytest.raises(LocalError):
        measure(engines, LAYER, STEPS, hardware=HERE, step_s=0.0, clock=watch)
