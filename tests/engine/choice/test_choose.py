"""The choice follows the job, and is left to measuring where too little is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from gennode.engine.choice.choose import MAX_ERROR, Choice, Job, choose, job_s
from gennode.engine.choice.predict import fit
from gennode.engine.choice.runs import Layer, Step
from gennode.engine.seam import Precision
from tests.engine.choice.layers import LAYERS, PRECISIONS, runs, truth_s

CANDIDATES = [
    Choice(*each) for each in itertools.product(PRECISIONS, (1, 4, 16, 64), (32, 128, 512))
]
JOBS = [
    Job(n, p, a, hops) for n in (1, 16, 64) for p, a in ((32, 64), (512, 16)) for hops in (1, 4)
]


def test_a_jobs_time_is_that_of_its_steps() -> None:
    def layer_s(precision: Precision, step: Step) -> float:
        return {Step(1, 128, 0): 10.0, Step(2, 1, 200): 3.0, Step(5, 1, 200): 5.0}[step]

    # Two chunks for each of five prompts; three batches in turn for each of 7 tokens.
    assert job_s(Job(5, 200, 7), Choice("fp32", 2, 128), layer_s) == 10 * 10 + 7 * 3 * 3
    # On four hops the last chunk is through three steps later, and a token passes four.
    assert job_s(Job(5, 200, 7, 4), Choice("fp32", 2, 128), layer_s) == 13 * 10 + 7 * 4 * 3
    # No batch has more than all sessions, and no chunk more than the prompt.
    assert job_s(Job(5, 200, 7), Choice("fp32", 64, 128), layer_s) == 10 * 10 + 7 * 5


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_choices_for_an_unseen_layer_beat_every_fixed_one(noise: float) -> None:
    chosen: list[float] = []
    fixed: dict[Choice, list[float]] = {each: [] for each in CANDIDATES}
    for layer in LAYERS:
        predictor = fit([run for run in runs(noise) if run.layer != layer])

        def layer_s(precision: Precision, step: Step, layer: Layer = layer) -> float:
            return truth_s(precision, layer, step)

        for job in JOBS:
            times_s = {each: job_s(job, each, layer_s) for each in CANDIDATES}
            choice = choose(job, layer, CANDIDATES, predictor)
            assert choice is not None
            chosen.append(math.log(times_s[choice] / min(times_s.values())))
            for each in CANDIDATES:
                fixed[each].append(math.log(times_s[each] / min(times_s.values())))
    assert sum(chosen) < 0.2 * min(sum(each) for each in fixed.values())


def test_small_layers_and_large_ones_get_other_precisions() -> None:
    predictor = fit(runs())
    found = [choose(Job(1, 32, 64), layer, CANDIDATES, predictor) for layer in LAYERS]
    assert found[0] is not None
    assert found[-1] is not None
    assert (found[0].precision, found[-1].precision) == ("fp32", "int8")


def test_rounded_weights_have_to_be_worth_it() -> None:
    predictor = fit(runs())
    job, layer = Job(1, 32, 64), LAYERS[-1]
    for worth, expected in ((1.0, "int8"), (1.25, "int8"), (100.0, "fp32")):
        found = choose(job, layer, CANDIDATES, predictor, worth=worth)
        assert found is not None
        assert found.precision == expected


def test_too_little_knowledge_means_to_measure() -> None:
    predictor = fit(runs())
    job, layer = Job(1, 32, 64), LAYERS[1]
    assert choose(job, layer, CANDIDATES, predictor) is not None
    assert choose(job, layer, [], predictor) is None
    for error in (MAX_ERROR * 1.01, math.inf, math.nan):
        assert choose(job, layer, CANDIDATES, replace(predictor, error=error)) is None
    unknown = replace(predictor, fits={"fp32": predictor.fits["fp32"]})
    assert choose(job, layer, CANDIDATES, unknown) is None
