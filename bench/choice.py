"""Choosing precision, batch and chunk from runs of other models, against every fixed choice.

python -m bench.choice [--quick]

Layers of several sizes are timed in each precision and with steps of several kinds. From these,
the time of jobs (so many sessions with prompt and answer, on one machine or four in a row) is
worked out for every choice by the formula of gennode/engine/choice/choose.py. Then each layer's
jobs are chosen for by what was recorded of all other layers alone, and judged by its own times.
Ratios of jobs are averaged geometrically, so that no size of model outweighs the others.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # before torch, as `gennode join` does

import torch

from bench._random_model import random_llama
from bench._report import report
from gennode.engine.checkpoint.weights import open_model
from gennode.engine.choice.choose import Choice, Job, choose, job_s
from gennode.engine.choice.measure import measure
from gennode.engine.choice.predict import fit
from gennode.engine.choice.runs import Layer, Run, Step, hardware, layers_of
from gennode.engine.llama.precision import available
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.seam import Precision
from gennode.wire.ids import Span
from gennode.wire.manifest import ModelShape

LAYERS = (
    Layer(128, 4, 2, 32, 344),
    Layer(192, 6, 2, 32, 512),
    Layer(256, 6, 2, 64, 688),
    Layer(384, 6, 2, 64, 1024),
    Layer(512, 8, 4, 64, 1408),
    Layer(768, 12, 4, 64, 2048),
    Layer(1024, 16, 4, 64, 2816),
    Layer(1280, 20, 4, 64, 3456),
)
"""As of models with 1 M to 320 M weights."""

STEPS = (
    Step(1, 1, 32), Step(4, 1, 32), Step(16, 1, 32), Step(64, 1, 32),
    Step(1, 1, 512), Step(4, 1, 512), Step(16, 1, 512),
    Step(1, 32, 0), Step(1, 128, 0), Step(1, 512, 0), Step(1, 128, 512),
)  # fmt: skip
BATCHES, CHUNKS = (1, 4, 16, 64), (32, 128, 512)
TASKS = ((32, 128), (512, 16), (512, 128))  # rows of a prompt, and tokens of its answer
JOBS = (
    *(Job(n, *task, hops) for hops in (1, 4) for n in (1, 4, 16) for task in TASKS),
    *(Job(64, *TASKS[0], hops) for hops in (1, 4)),
)
MEASURED_LAYERS = 2
STEP_S, QUICK_STEP_S = 0.15, 0.03
PASSES = 2  # of which the quicker counts: on a shared machine others disturb for seconds
QUICK_LAYERS = (0, 1, 2, 3, 4)
SLOW = Step(16, 1, 512)  # filling its contexts takes half of all the time
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Outcome:
    """One job: seconds with each fixed choice, what was chosen, and what would have been if
    there were one precision only."""

    layer: Layer
    job: Job
    fixed_s: Mapping[Choice, float]
    chosen: Choice | None
    alone: Mapping[Precision, Choice | None]

    def ratio(self, choice: Choice | None) -> float:
        """A choice's time over the best one's, which somebody who knew all would have taken."""
        if choice is None:
            raise RuntimeError("too few layers were measured to choose by")
        return self.fixed_s[choice] / min(self.fixed_s.values())


def run_layer(layer: Layer, folder: Path, steps: Sequence[Step], step_s: float) -> list[Run]:
    """Time each step in every precision."""
    sizes = (layer.dim, layer.heads, layer.kv_heads, layer.head_dim, layer.ffn_dim)
    random_llama(folder, ModelShape("LlamaForCausalLM", MEASURED_LAYERS, *sizes, 300, 1024), 1)
    opened = open_model(folder)
    engines: dict[Precision, LlamaShard] = {}
    for precision in available(torch.device("cpu")):
        engines[precision] = LlamaShard(opened, precision=precision, max_cache_bytes=CACHE_BYTES)
        engines[precision].load(Span(0, MEASURED_LAYERS))
    here = hardware("cpu", torch.get_num_threads())
    passes = [measure(engines, layer, steps, hardware=here, step_s=step_s) for _ in range(PASSES)]
    return [min(same, key=lambda run: run.layer_s) for same in zip(*passes, strict=True)]


def judge(runs: Sequence[Run]) -> tuple[list[Outcome], list[float]]:
    """Choose for the jobs of each layer by what the others showed; and how wrong that was.

    A node that finds its predictions wrong measures instead; here it has to choose.
    """
    known = {(run.precision, run.layer, run.step): run.layer_s for run in runs}
    precisions = sorted({run.precision for run in runs})
    candidates = [Choice(*each) for each in itertools.product(precisions, BATCHES, CHUNKS)]
    outcomes, errors = [], []
    for layer in layers_of(runs):
        predictor = fit([run for run in runs if run.layer != layer])
        errors.append(predictor.error)
        predictor = replace(predictor, error=0.0)

        def measured(precision: Precision, step: Step, layer: Layer = layer) -> float:
            return known[precision, layer, step]

        for job in JOBS:
            if (precisions[0], layer, Step(min(job.sessions, 16), 1, job.prompt)) not in known:
                continue  # a short run lacks some steps
            fixed_s = {each: job_s(job, each, measured) for each in candidates}
            chosen = choose(job, layer, candidates, predictor)
            alone = {
                one: choose(job, layer, [each for each in candidates if each.precision == one],
                            predictor)
                for one in precisions
            }  # fmt: skip
            outcomes.append(Outcome(layer, job, fixed_s, chosen, alone))
    return outcomes, errors


def over_oracle(outcomes: Sequence[Outcome], choice: Callable[[Outcome], Choice | None]) -> float:
    """The geometric mean of the jobs' times with a choice, over the best ones."""
    return math.exp(statistics.fmean(math.log(each.ratio(choice(each))) for each in outcomes))


def _same(choice: Choice, _outcome: Outcome) -> Choice:
    return choice


def _alone(precision: Precision, outcome: Outcome) -> Choice | None:
    return outcome.alone[precision]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer layers, shorter")
    quick = bool(parser.parse_args().quick)
    layers = [LAYERS[index] for index in QUICK_LAYERS] if quick else LAYERS
    steps = [step for step in STEPS if not (quick and step == SLOW)]
    step_s = QUICK_STEP_S if quick else STEP_S
    runs: list[Run] = []
    for layer in layers:
        with tempfile.TemporaryDirectory() as folder:
            runs += run_layer(layer, Path(folder) / "m", steps, step_s)
    outcomes, errors = judge(runs)
    fixed = {one: over_oracle(outcomes, partial(_same, one)) for one in outcomes[0].fixed_s}
    best = min(fixed, key=lambda one: fixed[one])
    alone = [over_oracle(outcomes, partial(_alone, one)) for one in outcomes[0].alone]
    chosen = over_oracle(outcomes, lambda each: each.chosen)
    rows = []
    for layer in layers:
        own = [each for each in outcomes if each.layer == layer]
        rows.append((
            f"dim {layer.dim}, ffn {layer.ffn_dim}",
            over_oracle(own, lambda each: each.chosen),
            over_oracle(own, lambda _: best),
            max(each.ratio(each.chosen) for each in own),
        ))  # fmt: skip
    report(
        "choice",
        {
            "choice_over_best_fixed": chosen / fixed[best],
            "choice_over_oracle": chosen,
            "best_fixed_over_oracle": fixed[best],
            "one_precision_over_oracle": min(alone),
            "held_out_error": statistics.median(errors),
            "best_fixed": f"{best.precision}, batch {best.batch}, chunk {best.chunk}",
            "jobs": len(outcomes),
        },
        columns=("layer", "choice / oracle", "best fixed / oracle", "worst job / oracle"),
        rows=rows,
    )


if __name__ == "__main__":
    main()
