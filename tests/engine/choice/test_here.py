"""The first models are measured, later ones chosen for without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from gennode.engine.choice.choose import Choice, Job
from gennode.engine.choice.here import USUAL, candidates, choose_here
from gennode.engine.choice.runs import Layer, Run, RunFile, Step
from gennode.engine.seam import Precision, ShardEngine, States, StepInput
from gennode.engine.toy import ToyShard, toy_manifest
from gennode.errors import LocalError
from gennode.wire.ids import Span
from tests.engine.choice.layers import HERE, LAYERS, PRECISIONS, runs

OPTIONS = candidates(PRECISIONS)


class Counted(ToyShard):
    """A toy that counts its steps."""

    def __init__(self) -> None:
        super().__init__(toy_manifest(1))
        self.load(Span(0, 1))
        self.steps: set[Step] = set()

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        self.steps.add(Step(len(batch), len(batch[0].states), batch[0].position))
        return super().step(batch)


def no_engines() -> Mapping[Precision, ShardEngine]:
    raise LocalError("nothing was to be measured")


def test_what_is_known_of_other_layers_needs_no_engine(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "runs.jsonl")
    file.add(runs(layers=LAYERS[:4]))
    found = choose_here(USUAL, LAYERS[4], OPTIONS, no_engines, runs=file, hardware=HERE)
    assert (found.precision, found.batch) == ("int8", 16)
    with pytest.raises(LocalError, match="nothing was to be measured"):
        choose_here(USUAL, LAYERS[4], OPTIONS, no_engines, runs=file, hardware="another")


def test_a_first_model_is_measured_and_recorded(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "runs.jsonl")
    engines = {precision: Counted() for precision in PRECISIONS}
    options = [*OPTIONS, Choice("int8", 64, 512)]
    found = choose_here(
        USUAL, LAYERS[0], options, lambda: engines, runs=file, hardware=HERE, step_s=0.0
    )
    assert found in options
    wanted = {Step(1, 32, 0), Step(1, 128, 0)} | {Step(batch, 1, 128) for batch in (1, 4, 16)}
    recorded = file.read(HERE)
    assert {(run.precision, run.layer, run.step) for run in recorded} == {
        (precision, LAYERS[0], step) for precision in PRECISIONS for step in wanted
    }
    for engine in engines.values():
        assert wanted <= engine.steps


def test_after_a_few_models_no_more_is_measured(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "runs.jsonl")
    job = Job(4, 32, 16)
    measured: list[Layer] = []
    truth = {(run.precision, run.layer, run.step): run for run in runs()}

    for layer in LAYERS:

        def engines(layer: Layer = layer) -> Mapping[Precision, ShardEngine]:
            measured.append(layer)
            return {precision: Counted() for precision in PRECISIONS}

        choose_here(job, layer, OPTIONS, engines, runs=file, hardware=HERE, step_s=0.0)
        if measured and measured[-1] == layer:  # in place of what toys take: known times
            (tmp_path / "runs.jsonl").unlink()
            file.add(known(truth, measured))
    assert measured == list(LAYERS[:4])


def known(truth: Mapping[tuple[Precision, Layer, Step], Run], layers: list[Layer]) -> list[Run]:
    return [run for run in truth.values() if run.layer in layers]
