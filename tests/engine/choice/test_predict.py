"""Times of layers that were never measured come out of those that were."""

from __future__ import annotations

import math

import pytest

from gennode.engine.choice.predict import MIN_LAYERS, MIN_RUNS, fit
from gennode.engine.choice.runs import Layer, Step
from tests.engine.choice.layers import LAYERS, PRECISIONS, STEPS, runs, truth_s

BETWEEN = Layer(768, 12, 2, 64, 2112)
LARGER = Layer(3072, 48, 2, 64, 8448)


@pytest.mark.parametrize("layer", [BETWEEN, LARGER], ids=["between", "larger"])
def test_a_sum_of_costs_is_found_again(layer: Layer) -> None:
    predictor = fit(runs())
    assert predictor.error < 0.05
    for precision in PRECISIONS:
        for step in (*STEPS, Step(8, 1, 200), Step(1, 100, 300)):
            found = predictor.layer_s(precision, layer, step)
            assert found == pytest.approx(truth_s(precision, layer, step), rel=0.15)


def test_noise_shows_in_the_error_and_hardly_moves_a_prediction() -> None:
    predictor = fit(runs(noise=0.1))
    assert 0.03 < predictor.error < 0.2
    found = predictor.layer_s("int8", BETWEEN, Step(4, 1, 32))
    assert found == pytest.approx(truth_s("int8", BETWEEN, Step(4, 1, 32)), rel=0.15)


def test_what_no_sum_explains_is_learned_from_its_neighbours() -> None:
    jump = 3.0  # of all steps with sixteen sequences, as of a kernel that is bad at it

    def odd(step: Step) -> float:
        return jump if step.sequences == 16 else 1.0

    changed = [
        type(run)(run.hardware, run.precision, run.layer, run.step, run.layer_s * odd(run.step))
        for run in runs()
        if run.layer != LAYERS[2]
    ]
    predictor = fit(changed)
    for step in (Step(16, 1, 32), Step(1, 1, 32)):
        wrong = predictor.layer_s("fp32", LAYERS[2], step)
        wrong /= truth_s("fp32", LAYERS[2], step) * odd(step)
        assert 0.6 < wrong < 1.6


def test_too_little_is_known_to_tell() -> None:
    assert fit([]).error == math.inf
    two = fit(runs(layers=LAYERS[: MIN_LAYERS - 1]))
    assert two.error == math.inf
    assert not two.fits
    assert fit(runs(layers=LAYERS[:MIN_LAYERS])).error == math.inf  # nothing to hold out
    few = [run for run in runs() if run.precision != "bf16" or run.step == STEPS[0]]
    assert len([run for run in few if run.precision == "bf16"]) < MIN_RUNS
    assert set(fit(few).fits) == {"fp32", "int8"}
