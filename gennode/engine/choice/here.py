"""The choice for a model on this machine: by what was recorded, or else by measuring it now."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from gennode.engine.choice.choose import Choice, Job, best, choose, steps_of
from gennode.engine.choice.measure import measure
from gennode.engine.choice.predict import fit
from gennode.engine.choice.runs import Layer, Run
from gennode.engine.seam import Precision, ShardEngine

USUAL = Job(sessions=16, prompt=128, answer=128)  # a worker that is well asked, but not flooded
BATCHES, CHUNKS = (1, 4, 16), (32, 128)
STEP_S = 0.1  # of measuring each of some five steps


class Record(Protocol):
    """Where runs are kept, such as a `RunFile`."""

    def read(self, hardware: str) -> Sequence[Run]:
        """The runs on this hardware."""

    def add(self, runs: Sequence[Run]) -> None:
        """Keep these as well."""


def candidates(
    precisions: Iterable[Precision],
    batches: Iterable[int] = BATCHES,
    chunks: Iterable[int] = CHUNKS,
) -> list[Choice]:
    """Every combination, in a fixed order."""
    return [Choice(*each) for each in itertools.product(sorted(precisions), batches, chunks)]


def choose_here(
    job: Job,
    layer: Layer,
    options: Iterable[Choice],
    engines: Callable[[], Mapping[Precision, ShardEngine]],
    *,
    runs: Record,
    hardware: str,
    step_s: float = STEP_S,
    worth: float = 1.0,
) -> Choice:
    """The quickest of `options`, and whatever had to be measured for that is recorded.

    `engines` makes one for each precision of the options, with the same span loaded; it is
    called only if what was recorded of other layers does not suffice. Then this layer's runs
    are added, so that after a few models no more is measured. `worth`: see `best`. Raises what
    engines raise, and ResourceError if the record can't be written.
    """
    options = list(options)
    recorded = runs.read(hardware)
    chosen = choose(job, layer, options, fit(recorded), worth=worth)
    if chosen is not None:
        return chosen
    steps = sorted({step for option in options for step in steps_of(job, option)})
    fresh = measure(engines(), layer, steps, hardware=hardware, step_s=step_s)
    runs.add(fresh)
    known = {(run.precision, run.step): run.layer_s for run in fresh}
    return best(job, options, lambda *step: known[step], worth)
