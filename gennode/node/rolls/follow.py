"""A live worker that follows a line of releases: does what its roll machine decides."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from gennode.errors import GennodeError
from gennode.node.live import LiveNode
from gennode.node.rolls.roll import Drop, Fetch, Hosted, Load, Retire, RollAction, RollMachine, View
from gennode.node.worker import Worker
from gennode.wire.ids import ModelId, Span
from gennode.wire.release import Line

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Means:
    """How a follower gets at versions.

    `fetch` has the files of a span here when it returns. `open` makes a worker of them that has
    loaded nothing yet; it may block. `gained` and `dropped` are told of models that are hosted
    from now on, and no longer.
    """

    fetch: Callable[[ModelId, Span], Awaitable[None]]
    open: Callable[[ModelId, Span], Worker]
    gained: Callable[[ModelId], None]
    dropped: Callable[[ModelId], None]


class Following:
    """Follows one line with all that a node hosts. `capacity_layers`: what its memory holds."""

    def __init__(self, node: LiveNode, line: Line, means: Means, *, capacity_layers: int) -> None:
        self._node = node
        self._line = line
        self._means = means
        self._capacity_layers = capacity_layers
        self._roll = RollMachine(node.machine.peer)
        self._waits_for = ""
        node.machine.releases.follow(line)

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            for action in self._roll.tick(time.monotonic(), self._view()):
                await self._do(action)
            if self._roll.waits_for != self._waits_for:
                self._waits_for = self._roll.waits_for
                if self._waits_for:
                    log.info("roll_waits line=%s why=%s", self._line, self._waits_for)
            await asyncio.sleep(LOOK_INTERVAL_S)

    def _view(self) -> View:
        machine = self._node.machine
        hosted = [
            Hosted(model, worker.layers, _hull(worker), machine.sessions_of(model))
            for model, worker in self._node.workers.items()
        ]
        room = self._capacity_layers - sum(one.span.layers for one in hosted)
        return View(machine.releases.newest(self._line), self._node.live(), hosted, room)

    async def _do(self, action: RollAction) -> None:
        log.info("roll line=%s action=%s", self._line, action)
        match action:
            case Retire():
                self._node.machine.retire(action.model)
            case Drop():
                await self._node.drop(action.model)
                self._means.dropped(action.model)
            case _:
                await self._try(action)

    async def _try(self, action: Fetch | Load) -> None:
        try:
            if isinstance(action, Fetch):
                await self._means.fetch(action.model, action.span)
            else:
                await self._load(action)
        except GennodeError as error:
            log.warning("roll_failed line=%s action=%s why=%s", self._line, action, error)
            self._roll.done(action, time.monotonic(), succeeded=False)
        else:
            self._roll.done(action, time.monotonic(), succeeded=True)

    async def _load(self, action: Load) -> None:
        """Layer by layer, for sessions of the old version step in between."""
        worker = self._node.workers.get(action.model)
        if worker is None:
            worker = await asyncio.to_thread(self._means.open, action.model, action.span)
        engine = worker.engine
        for layer in range(action.span.start, action.span.end):
            await self._node.in_engine_thread(partial(engine.load, Span(layer, layer + 1)))
        await self._node.serve(worker)
        self._means.gained(action.model)


def _hull(worker: Worker) -> Span:
    spans = worker.engine.spans()
    return Span(spans[0].start, spans[-1].end)
