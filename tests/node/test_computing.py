"""The engine's thread: results come back to the loop, calls run between batches, it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from gennode.engine.seam import States, StepInput
from gennode.engine.toy import ToyShard
from gennode.errors import ModelError
from gennode.node.actions import (
    CloseJob,
    Exported,
    ExportJob,
    Job,
    OpenJob,
    Outcome,
    RestoreJob,
)
from gennode.node.computing import Computing
from gennode.node.worker import Worker
from tests.node.conftest import LAYERS, MODEL, OWNER
from tests.node.test_batches import WHOLE, Recorder, alone, key, step

WAIT_S = 20.0


class Gated(Recorder):
    """Waits in each step until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.gate = threading.Event(), threading.Event()

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        return super().step(batch)


class Stage:
    """A thread, what it told, and a way to wait for so many outcomes."""

    def __init__(self, engine: ToyShard) -> None:
        engine.load(WHOLE)
        self.worker = Worker(engine, LAYERS, LAYERS)
        self.told: list[tuple[Job, Outcome]] = []
        self.crashes: list[BaseException] = []
        self.news = asyncio.Event()
        self.computing = Computing(self._done, self._crash)

    def _done(self, job: Job, outcome: Outcome) -> None:
        self.told.append((job, outcome))
        self.news.set()

    def _crash(self, error: BaseException) -> None:
        self.crashes.append(error)
        self.news.set()

    def submit(self, job: Job) -> None:
        self.computing.submit(self.worker, job)

    async def until(self, outcomes: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(self.told) < outcomes and not self.crashes:
                self.news.clear()
                await self.news.wait()


def opening(number: int) -> OpenJob:
    return OpenJob(MODEL, key(number), 0, WHOLE, 4096, OWNER)


async def test_parts_of_caches_come_back_as_other_jobs_do() -> None:
    stage = Stage(Recorder())
    for number in (1, 2):
        stage.submit(opening(number))
    await stage.until(2)
    stage.submit(step(key(1), 0, 0, 9))
    await stage.until(3)
    stage.submit(ExportJob(MODEL, key(1), 0, 0, 1 << 22))
    await stage.until(4)
    part = stage.told[-1][1]
    assert isinstance(part, Exported)
    stage.submit(RestoreJob(MODEL, key(2), 0, part.layout, 0, part.end, part.payload))
    stage.submit(step(key(2), 1, 9, 1))
    await stage.until(6)
    assert stage.told[-2][1] == b""
    assert stage.told[-1][1] == alone([step(key(1), 0, 0, 9), step(key(1), 1, 9, 1)])[1]
    stage.computing.close()


async def test_jobs_come_back_in_the_loop_and_calls_run_in_the_thread() -> None:
    stage = Stage(Recorder())
    jobs = [step(key(1), number, number, 1) for number in range(5)]
    stage.submit(opening(1))
    for job in jobs:
        await stage.until(1)
        stage.submit(job)
    await stage.until(6)
    assert [out for _, out in stage.told] == [b"", *alone(jobs)]
    here = threading.get_ident()
    assert await stage.computing.call(threading.get_ident) != here

    def broken() -> None:
        raise ModelError("a file is damaged")

    with pytest.raises(ModelError, match="damaged"):
        await stage.computing.call(broken)
    assert await stage.computing.call(lambda: 7) == 7
    stage.computing.close()
    stage.computing.close()


async def test_a_session_that_ends_meanwhile_costs_one_batch_and_no_more() -> None:
    engine = Gated()
    stage = Stage(engine)
    stage.submit(opening(1))
    await stage.until(1)
    for number in range(20):
        stage.submit(step(key(1), number, 128 * number, 128))
    assert await asyncio.to_thread(engine.entered.wait, WAIT_S)
    stage.submit(CloseJob(MODEL, key(1)))
    engine.gate.set()
    await stage.until(21)
    assert len(engine.batches) == 1
    assert stage.worker.used_layers() == frozenset()
    stage.computing.close()


async def test_what_comes_during_a_batch_is_computed_together() -> None:
    engine = Gated()
    stage = Stage(engine)
    for number in range(1, 9):
        stage.submit(opening(number))
    await stage.until(8)
    stage.submit(step(key(1), 0, 0, 1))
    assert await asyncio.to_thread(engine.entered.wait, WAIT_S)
    for number in range(2, 9):
        stage.submit(step(key(number), 0, 0, 1))
    engine.gate.set()
    await stage.until(16)
    assert [len(batch) for batch in engine.batches] == [1, 7]
    stage.computing.close()


async def test_closing_waits_for_the_batch_that_runs_and_cancels_calls() -> None:
    engine = Gated()
    stage = Stage(engine)
    stage.submit(opening(1))
    await stage.until(1)
    stage.submit(step(key(1), 0, 0, 1))
    assert await asyncio.to_thread(engine.entered.wait, WAIT_S)
    late = asyncio.create_task(stage.computing.call(lambda: 7))
    closing = asyncio.create_task(asyncio.to_thread(stage.computing.close))
    assert await asyncio.to_thread(stage.computing._over.wait, WAIT_S)
    engine.gate.set()
    await closing
    with pytest.raises(asyncio.CancelledError):
        await late
    with pytest.raises(asyncio.CancelledError):
        await stage.computing.call(lambda: 7)
    assert len(engine.batches) == 1


class Broken(ToyShard):
    """Fails as no engine may."""

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        raise ZeroDivisionError


async def test_a_bug_in_an_engine_is_told_and_ends_the_thread() -> None:
    stage = Stage(Broken(Recorder()._manifest))
    stage.submit(opening(1))
    await stage.until(1)
    stage.submit(step(key(1), 0, 0, 1))
    await stage.until(2)
    assert [type(error) for error in stage.crashes] == [ZeroDivisionError]
    stage.computing.close()
