"""What one engine thread does, job by job and batch by batch: no threads and no waiting here.

Steps of all sessions of a model wait in one queue and are computed in batches
(`engine/batch/`). Models take turns, by the time that each has had. Opening and closing come at
once, between two batches; layers that a session needs are loaded one per turn, and so are parts
of caches given out and taken in.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from gennode.engine.batch.cost import NOTHING, StepCost
from gennode.engine.batch.queue import Slice, StepQueue, Work
from gennode.engine.batch.shares import Shares
from gennode.engine.seam import States, StepInput
from gennode.errors import GennodeError, ResourceError
from gennode.node.actions import (
    ExportJob,
    HopKey,
    Job,
    OpenJob,
    Outcome,
    RestoreJob,
    StepJob,
)
from gennode.node.transfers import Transfers
from gennode.node.worker import Worker
from gennode.wire.activations import codec
from gennode.wire.ids import ModelId, PeerId, Span

Done = tuple[Job, Outcome]
"""A job and what came of it: a step's output, or what its session's owner is to be told."""

T = TypeVar("T")

LEAST_TURN_S = 1e-6  # a turn that no clock saw counts all the same


class Batches:
    """All that waits for one engine thread. Every step and opening has one outcome."""

    def __init__(self, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._now_s = now_s
        self._lanes: dict[ModelId, _Lane] = {}
        self._turns: Shares[ModelId] = Shares()
        self._busy: set[ModelId] = set()
        self._loads: deque[tuple[Worker, OpenJob]] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to work at."""
        return not self._busy and not self._loads

    def add(self, worker: Worker, job: Job) -> list[Done]:
        """Take a job on; closes at once, and tells of steps that need not be computed now."""
        lane = self._lanes.get(job.model)
        if lane is None or lane.worker is not worker:
            lane = self._lanes[job.model] = _Lane(worker, self._now_s)
        if isinstance(job, StepJob | ExportJob | RestoreJob):
            outcomes = lane.add(job)
        else:
            self._loads = deque(one for one in self._loads if one[1].key != job.key)
            outcomes = lane.drop(job.key)
            if isinstance(job, OpenJob):
                self._loads.append((worker, job))
            else:
                worker.close(job.key)
        self._note(job.model)
        return outcomes

    def work(self) -> list[Done]:
        """Open what can be opened, and compute one batch of the model whose turn it is.

        Where a worker has to rest first it only rests: who calls may have new jobs by then.
        """
        outcomes = self._open()
        if not self._busy:
            return outcomes
        model = self._turns.least()
        lane = self._lanes[model]
        pause_s = lane.rested_s - self._now_s()
        if pause_s > 0:
            lane.worker.rest(pause_s)
            return outcomes
        outcomes += lane.batch()
        self._turns.serve(model, max(lane.last_s, LEAST_TURN_S))
        self._note(model)
        return outcomes

    def forget(self, model: ModelId) -> list[Done]:
        """A model is hosted no longer: none of its steps will be computed."""
        lane = self._lanes.pop(model, None)
        self._loads = deque(one for one in self._loads if one[1].model != model)
        outcomes = lane.drop_all() if lane else []
        self._note(model)
        return outcomes

    def _note(self, model: ModelId) -> None:
        lane = self._lanes.get(model)
        is_busy = lane is not None and not lane.is_empty
        if is_busy and model not in self._busy:
            self._busy.add(model)
            self._turns.join(model)
        elif not is_busy and model in self._busy:
            self._busy.discard(model)
            self._turns.leave(model)

    def _open(self) -> list[Done]:
        """Each opening gets one layer, or begins; those that need none do not wait for others."""
        outcomes: list[Done] = []
        for worker, job in [*self._loads]:
            missing = not any(have.covers(job.span) for have in worker.engine.spans())
            if missing and self._loads[0][1] is not job:
                continue
            outcome = _attempt(partial(worker.open, job))
            if outcome is False:
                continue
            self._loads.remove((worker, job))
            if isinstance(outcome, GennodeError):
                outcomes.append((job, outcome))
            else:
                self._lanes[job.model].owners[job.key] = job.owner
                outcomes.append((job, b""))
        return outcomes


@dataclass
class _Frame:
    """A step that waits: its states are decoded when it begins, and come out slice by slice."""

    job: StepJob
    states: States | None = None
    output: States | None = None


class _Lane:
    """One model's worker, what waits for it, and what its steps cost."""

    def __init__(self, worker: Worker, now_s: Callable[[], float]) -> None:
        self.worker = worker
        self.owners: dict[HopKey, PeerId] = {}
        self.rested_s = float("-inf")
        """When the next batch may begin."""
        self.last_s = 0.0
        """How long the last batch took."""
        self._now_s = now_s
        self._queue = StepQueue()
        self._transfers = Transfers()
        self._cost: StepCost | None = None
        self._frames: dict[int, _Frame] = {}
        self._attempts: dict[HopKey, int] = {}
        self._numbers = itertools.count()
        self._fresh: dict[HopKey, None] = {}  # whose next step may be one that was seen before
        self._open: Mapping[HopKey, Span] = worker.usage.sequences

    @property
    def is_empty(self) -> bool:
        return self._queue.is_empty and self._transfers.is_empty

    # -- what waits ---------------------------------------------------------------------------

    def add(self, job: StepJob | ExportJob | RestoreJob) -> list[Done]:
        if job.key not in self.worker.usage.sequences:
            return [(job, ResourceError("these layers have left this worker"))]
        if isinstance(job, StepJob):
            return [] if self._transfers.holds(job) else self._enqueue(job)
        self._transfers.add(job)
        return []

    def _enqueue(self, job: StepJob) -> list[Done]:
        outcomes: list[Done] = []
        if job.attempt > self._attempts.get(job.key, 0):
            # the session goes on at this position: what an older attempt has waiting from there
            # on would be overwritten at once
            outcomes = self._dropped(self._queue.cancel(job.key, job.position), _overtaken())
        self._attempts[job.key] = job.attempt
        number = next(self._numbers)
        self._frames[number] = _Frame(job)
        if self._queue.head(job.key) is None:
            self._fresh[job.key] = None
        owner = self.owners.get(job.key)
        is_awaited = job.reply_rows > 0 and not job.rebuild
        self._queue.add(Work(job.key, owner, number, job.position, job.rows, is_awaited))
        return outcomes

    def drop(self, key: HopKey) -> list[Done]:
        """A sequence ends, or begins anew: its steps are not computed."""
        self.owners.pop(key, None)
        self._attempts.pop(key, None)
        return self._end(key, _overtaken())

    def drop_all(self) -> list[Done]:
        return [one for key in self._keys() for one in self._end(key, _overtaken())]

    def _end(self, key: HopKey, error: GennodeError) -> list[Done]:
        """Nothing of a sequence is done any more."""
        return [*self._fail(key, error), *((job, error) for job in self._transfers.drop(key))]

    def _keys(self) -> list[HopKey]:
        stepping = dict.fromkeys(frame.job.key for frame in self._frames.values())
        return [*(stepping | dict.fromkeys(self._transfers.keys()))]

    def _fail(self, key: HopKey, error: GennodeError) -> list[Done]:
        """One step of a sequence has failed: those behind it would leave a gap."""
        self._fresh.pop(key, None)
        return self._dropped(self._queue.cancel(key), error)

    def _dropped(self, numbers: Sequence[int], error: GennodeError) -> list[Done]:
        return [(self._frames.pop(number).job, error) for number in numbers]

    # -- computing ----------------------------------------------------------------------------

    def batch(self) -> list[Done]:
        """Move one part of a cache, answer what is known, then compute one batch."""
        start_s = self._now_s()
        outcomes = self._drop_closed() + self._transfer() + self._answer_known()
        if self._cost is None:
            spans = self.worker.engine.spans()
            layers = max((span.layers for span in spans), default=1)
            self._cost = StepCost(self.worker.engine.profile(), layers)
        if not self._queue.is_empty:
            outcomes += self._step(self._queue.next(self._cost), self._cost)
        end_s = self._now_s()
        self.last_s = end_s - start_s
        self.rested_s = end_s + self.last_s * (1 / self.worker.share - 1)
        return outcomes

    def _drop_closed(self) -> list[Done]:
        """What was unloaded took its sequences with it."""
        now_open = self.worker.usage.sequences
        if now_open is self._open:
            return []
        self._open = now_open
        gone = [key for key in self._keys() if key not in now_open]
        error = ResourceError("these layers have left this worker")
        return [one for key in gone for one in self._end(key, error)]

    def _transfer(self) -> list[Done]:
        job = self._transfers.next(lambda key: self._queue.head(key) is not None)
        if job is None:
            return []
        if isinstance(job, ExportJob):
            outcomes: list[Done] = [(job, _attempt(partial(self.worker.export, job)))]
        else:
            outcomes = [(job, _attempt(partial(self.worker.take_in, job)))]
        for step in self._transfers.released():
            outcomes += self._enqueue(step)
        return outcomes

    def _answer_known(self) -> list[Done]:
        """Steps that an earlier session of the same owner has sent are not computed again."""
        outcomes: list[Done] = []
        while self._fresh:
            key, _ = self._fresh.popitem()
            while (number := self._queue.head(key)) is not None:
                job = self._frames[number].job
                output = _attempt(partial(self.worker.prefixes.answer, job))
                if isinstance(output, GennodeError):
                    outcomes += self._fail(key, output)
                elif output is None:
                    break
                else:
                    self._queue.skip(key)
                    del self._frames[number]
                    outcomes.append((job, output))
        return outcomes

    def _step(self, batch: Sequence[Slice], cost: StepCost) -> list[Done]:
        """Compute slices; a step that fails takes those behind it along."""
        begin_s = time.perf_counter()
        inputs, errors = self._inputs(batch)
        start_s, clock_s = time.perf_counter(), self._now_s()
        outputs, is_clean = self._compute(inputs)
        stop_s, clock_s = time.perf_counter(), self._now_s() - clock_s
        computed = [one for one in batch if one.number not in errors]
        results = errors | dict(zip((one.number for one in computed), outputs, strict=True))
        if is_clean:
            cost.measured(sum((one.load for one in computed), NOTHING), clock_s)
        self._queue.done()
        outcomes: list[Done] = []
        failed: dict[Hashable, GennodeError] = {}
        for one in batch:
            done = self._finish(one, failed.get(one.key, results[one.number]))
            bad = [out for _, out in done if isinstance(out, GennodeError)]
            if bad:
                failed[one.key] = bad[0]
            outcomes += done
        work = self.worker.work
        work.compute_s += stop_s - start_s
        work.codec_s += start_s - begin_s + time.perf_counter() - stop_s
        return outcomes

    def _inputs(
        self, batch: Sequence[Slice]
    ) -> tuple[list[StepInput], dict[int, States | GennodeError]]:
        """Decoded slices, and the errors of those that can't be, or lie behind one that can't."""
        inputs: list[StepInput] = []
        errors: dict[int, States | GennodeError] = {}
        broken: dict[Hashable, GennodeError] = {}
        begun: set[Hashable] = set()
        for one in batch:
            frame = self._frames[one.number]
            if one.key in begun:
                self.worker.prefixes.follow(frame.job)
            begun.add(one.key)
            if frame.states is None and one.key not in broken:
                decoded = _attempt(partial(self._decode, frame.job))
                if isinstance(decoded, GennodeError):
                    broken[one.key] = decoded
                else:
                    frame.states = decoded
            if one.key in broken or frame.states is None:
                errors[one.number] = broken[one.key]
                continue
            rows = frame.states[one.first_row : one.first_row + one.rows]
            inputs.append(StepInput(one.key, one.position, rows))
        return inputs, errors

    def _decode(self, job: StepJob) -> States:
        return codec(job.codec).decode(job.payload, self.worker.engine.dim, job.rows)

    def _compute(self, inputs: list[StepInput]) -> tuple[list[States | GennodeError], bool]:
        """What came of each, and whether all were computed together at the first try.

        Kept prefixes give way first; then each is tried alone, so that only those fail for
        which there is no memory.
        """
        if not inputs:
            return [], False
        is_clean = True
        while True:
            outputs = _attempt(partial(self.worker.engine.step, inputs))
            if not isinstance(outputs, GennodeError):
                return list(outputs), is_clean
            is_clean = False
            if not isinstance(outputs, ResourceError) or not self.worker.prefixes.relieve():
                break
        if len(inputs) == 1:
            return [outputs], False
        results: list[States | GennodeError] = []
        failed: dict[Hashable, GennodeError] = {}
        for each in inputs:
            if each.sequence not in failed:
                [found], _ = self._compute([each])
                if isinstance(found, GennodeError):
                    failed[each.sequence] = found
            results.append(failed.get(each.sequence, found))
        return results, False

    def _finish(self, one: Slice, result: States | GennodeError) -> list[Done]:
        """Put a slice's output to its frame's; encode that if it is whole."""
        frame = self._frames.get(one.number)
        if frame is None:  # it went with one before it that failed
            return []
        key = frame.job.key
        if isinstance(result, GennodeError):
            failed = self._dropped([one.number] if one.is_last else [], result)
            return failed + self._fail(key, result)
        if one.rows < frame.job.rows:
            if frame.output is None:
                frame.output = np.empty((frame.job.rows, result.shape[1]), np.float32)
            frame.output[one.first_row : one.first_row + one.rows] = result
            result = frame.output
        if not one.is_last:
            return []
        del self._frames[one.number]
        payload = _attempt(partial(self.worker.encode, frame.job, result))
        if isinstance(payload, GennodeError):
            return [(frame.job, payload), *self._fail(key, payload)]
        self.worker.work.steps += 1
        self.worker.prefixes.computed(frame.job, payload)
        if self._queue.head(key) is not None:
            self._fresh[key] = None
        return [(frame.job, payload)]


def _overtaken() -> GennodeError:
    return ResourceError("the session went on elsewhere, or ended")


def _attempt(call: Callable[[], T]) -> T | GennodeError:
    """What a call gives; what goes wrong is its outcome, for the session's owner to hear."""
    try:
        return call()
    except GennodeError as error:
        return error
    except MemoryError:
        return ResourceError("out of memory")
