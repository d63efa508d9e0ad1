"""The engine's thread: batches of steps, and whatever else needs the engine, one at a time."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from gennode.node.actions import Job, Outcome
from gennode.node.batches import Batches, Done
from gennode.node.worker import Worker
from gennode.wire.ids import ModelId

T = TypeVar("T")


@dataclass(frozen=True)
class _Take:
    worker: Worker
    job: Job


@dataclass(frozen=True)
class _Forget:
    model: ModelId


@dataclass(frozen=True)
class _Call:
    call: Callable[[], Any]
    future: Future[Any]


class Computing:
    """A thread that works until it is stopped. Used from one event loop.

    Between two batches it takes in all that has come: so an ended session is forgotten, and a
    new token joins, at the latest when the batch that runs is over.
    """

    def __init__(
        self,
        on_done: Callable[[Job, Outcome], None],
        on_crash: Callable[[BaseException], None],
    ) -> None:
        """`on_done` and `on_crash` are called in the event loop of whoever makes this."""
        self._loop = asyncio.get_running_loop()
        self._on_done = on_done
        self._on_crash = on_crash
        self._inbox: queue.SimpleQueue[_Take | _Forget | _Call | None] = queue.SimpleQueue()
        self._batches = Batches()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, worker: Worker, job: Job) -> None:
        """Have a job done; `on_done` is told of it, unless it is a closing."""
        self._inbox.put(_Take(worker, job))

    def forget(self, model: ModelId) -> None:
        """Compute nothing more of a model."""
        self._inbox.put(_Forget(model))

    async def call(self, call: Callable[[], T]) -> T:
        """Run something in the thread, between two batches; what it gives or raises.

        Cancelled if the thread is closed before.
        """
        future: Future[T] = Future()
        if self._over.is_set():
            future.cancel()
        self._inbox.put(_Call(call, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread when its batch or call is over, and wait for it. Idempotent."""
        self._over.set()
        self._inbox.put(None)  # wakes it
        self._thread.join()
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, _Call):
                item.future.cancel()

    def _run(self) -> None:
        try:
            while self._take():
                self._tell(self._batches.work())
        except BaseException as error:  # noqa: BLE001 - task root: the thread's
            self._loop.call_soon_threadsafe(self._on_crash, error)

    def _take(self) -> bool:
        """Take in what has come, or wait for something; whether to go on."""
        while True:
            try:
                item = self._inbox.get(block=self._batches.is_idle)
            except queue.Empty:
                return True
            if self._over.is_set():
                self._inbox.put(item)  # to be cancelled, if it is a call
                return False
            match item:
                case _Take():
                    self._tell(self._batches.add(item.worker, item.job))
                case _Forget():
                    self._tell(self._batches.forget(item.model))
                case _Call():
                    _answer(item)

    def _tell(self, outcomes: list[Done]) -> None:
        if outcomes:
            self._loop.call_soon_threadsafe(self._spread, outcomes)

    def _spread(self, outcomes: list[Done]) -> None:
        for job, outcome in outcomes:  # each apart: what one of them raises stops no other
            self._loop.call_soon(self._on_done, job, outcome)


def _answer(item: _Call) -> None:
    if not item.future.set_running_or_notify_cancel():
        return
    try:
        result = item.call()
    except BaseException as error:  # noqa: BLE001 - task root: who called hears of it
        item.future.set_exception(error)
    else:
        item.future.set_result(result)
