"""The precision, batch and chunk that a job is likely to be quickest with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gennode.engine.choice.predict import Predictor
from gennode.engine.choice.runs import Layer, Step
from gennode.engine.seam import Precision

# A wrong choice costs about twice what a prediction is wrong by; above this, measuring pays.
MAX_ERROR = 0.3


@dataclass(frozen=True)
class Job:
    """What a span is wanted for: so many sessions at once, each with a prompt and an answer.

    `hops`: how many machines share the layers; each step passes all of them in turn.
    """

    sessions: int
    prompt: int
    answer: int
    hops: int = 1


@dataclass(frozen=True)
class Choice:
    """How to run: weights in a precision, sessions in a step, rows of a prompt in a step."""

    precision: Precision
    batch: int
    chunk: int


LayerTime = Callable[[Precision, Step], float]
"""Seconds of one layer for a step in a precision."""


def job_s(job: Job, choice: Choice, layer_s: LayerTime) -> float:
    """Seconds of a job on hops of one layer each.

    Chunks of prompts follow one another down the hops, so the last is through after as many
    steps as there are chunks, and one for each hop but the first. So do batches of sessions,
    and a session's next token waits until its last one has passed all hops.
    """
    prompt, token = steps_of(job, choice)
    chunks = job.sessions * -(-job.prompt // prompt.rows)
    prompts_s = (chunks + job.hops - 1) * layer_s(choice.precision, prompt)
    turns = max(-(-job.sessions // token.sequences), job.hops)
    return prompts_s + job.answer * turns * layer_s(choice.precision, token)


def steps_of(job: Job, choice: Choice) -> tuple[Step, Step]:
    """What passes the layers: a chunk of a prompt, and a batch of tokens."""
    chunk, batch = min(choice.chunk, job.prompt), min(choice.batch, job.sessions)
    return Step(1, chunk, 0), Step(batch, 1, job.prompt)


def best(job: Job, candidates: Iterable[Choice], layer_s: LayerTime, worth: float) -> Choice:
    """The quickest candidate; rounded weights have to be `worth` times as quick as fp32."""

    def price_s(choice: Choice) -> float:
        return job_s(job, choice, layer_s) * (1.0 if choice.precision == "fp32" else worth)

    return min(candidates, key=price_s)


def choose(
    job: Job,
    layer: Layer,
    candidates: Iterable[Choice],
    predictor: Predictor,
    *,
    worth: float = 1.0,
) -> Choice | None:
    """The quickest candidate; None if it is better measured, for too little is known.

    Candidates in a precision that was never measured make that None as well. `worth`: see
    `best`.
    """
    options = list(candidates)
    if not options or not predictor.error <= MAX_ERROR or math.isnan(predictor.error):
        return None
    if any(option.precision not in predictor.fits for option in options):
        return None

    def layer_s(precision: Precision, step: Step) -> float:
        return predictor.layer_s(precision, layer, step)

    return best(job, options, layer_s, worth)
