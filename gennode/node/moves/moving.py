"""A live worker that moves: does what its move machine decides, and serves all the while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from gennode.errors import GennodeError
from gennode.node.live import LiveNode
from gennode.node.moves.move import (
    Fetch,
    Load,
    MoveAction,
    MoveMachine,
    Pool,
    Restore,
    Unload,
    Withdraw,
    view_of,
)
from gennode.node.worker import Worker
from gennode.wire.ids import Hop, Span
from gennode.wire.manifest import ModelShape

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.25  # a gap stops every prompt


class Moving:
    """Moves one worker of a node to where plans and gaps want it.

    `plan`: who hosts what by the plan that is accepted now; empty if there is none. `fetch` has
    the files of a span here, and open to the worker's engine, when it returns; it is cancelled
    where another span is needed first. Nothing moves while the model is not announced, such as
    when it is retired for a newer version.
    """

    def __init__(
        self,
        node: LiveNode,
        worker: Worker,
        shape: ModelShape,
        *,
        fetch: Callable[[Span], Awaitable[None]],
        plan: Callable[[], Sequence[Hop]] = tuple,
    ) -> None:
        self._node = node
        self._worker = worker
        self._fetch = fetch
        self._plan = plan
        self._model = worker.engine.model
        self._pool = Pool(self._model, shape)
        self._move = MoveMachine(node.machine.peer, self._model)
        self._fetching: asyncio.Task[None] | None = None
        self._told = ""

    @property
    def target(self) -> Span | None:
        """Where the worker is going, or is; None if nothing asks it to be anywhere."""
        return self._move.target

    @property
    def waits_for(self) -> str:
        """Why the move does not go on, in words; empty if it does, or if there is none."""
        return self._move.waits_for

    async def run(self) -> None:
        """Move until cancelled."""
        try:
            while True:
                if any(hosting.model == self._model for hosting in self._node.machine.hosting):
                    await self._look()
                await asyncio.sleep(LOOK_INTERVAL_S)
        finally:
            await self._stop_fetching()

    async def _look(self) -> None:
        now_s = time.monotonic()
        live = self._node.machine.present(now_s)
        view = view_of(self._worker, self._pool.snapshot(live), live, self._plan())
        for action in self._move.tick(now_s, view):
            await self._do(action)
        if self._move.waits_for != self._told:
            self._told = self._move.waits_for
            if self._told:
                log.info("move_waits target=%s why=%s", self._move.target, self._told)

    async def _do(self, action: MoveAction) -> None:
        log.info("move target=%s action=%s", self._move.target, action)
        match action:
            case Fetch():
                await self._stop_fetching()
                self._fetching = self._node.tasks.create_task(self._get(action))
            case Withdraw():
                self._worker.withdraw(action.span)
                self._announce()
            case Restore():
                self._worker.restore(action.span)
                self._announce()
            case Load():
                await self._try(action, self._change(action))
            case Unload():
                await self._try(action, self._change(action))

    async def _get(self, action: Fetch) -> None:
        await self._try(action, self._fetch(action.span))

    async def _change(self, action: Load | Unload) -> None:
        """A layer more or some less, between the steps of sessions."""
        engine, worker = self._worker.engine, self._worker
        loads = isinstance(action, Load)
        call = partial(engine.load if loads else worker.unload, action.span)
        await self._node.in_engine_thread(call)
        self._announce()

    async def _try(self, action: Fetch | Load | Unload, work: Awaitable[None]) -> None:
        try:
            await work
        except GennodeError as error:
            log.warning("move_failed action=%s why=%s", action, error)
            self._move.done(action, time.monotonic(), succeeded=False)
        else:
            self._move.done(action, time.monotonic(), succeeded=True)

    def _announce(self) -> None:
        self._node.machine.learn(self._worker.hosting())

    async def _stop_fetching(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})
            self._fetching = None
