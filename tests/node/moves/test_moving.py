"""Live workers change places while they answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from gennode.engine.toy import ToyShard
from gennode.errors import NetworkError
from gennode.node.live import LiveNode
from gennode.node.moves import move, moving
from gennode.node.moves.moving import Moving
from gennode.node.worker import Worker
from gennode.wire.ids import Hop, Span
from tests.node.toys import LAYERS, MANIFEST, THIRDS, Cast, staged, truth

WAIT_S = 30.0


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "LOOK_INTERVAL_S", 0.01)
    for name in ("SETTLE_S", "GAP_SETTLE_S", "GAP_DRAIN_S", "RETRY_S"):
        monkeypatch.setattr(move, name, 0.2)
    monkeypatch.setattr(move, "DRAIN_LIMIT_S", 0.5)


class Files:
    """Where movers fetch layers from; the first fetch fails."""

    def __init__(self) -> None:
        self.tried: list[Span] = []

    async def fetch(self, span: Span) -> None:
        self.tried.append(span)
        if len(self.tried) == 1:
            raise NetworkError("nobody has it yet")


def holder(span: Span, capacity_layers: int) -> Worker:
    engine = ToyShard(MANIFEST)
    engine.load(span)
    return Worker(engine, LAYERS, capacity_layers, loads_on_request=False)


def hosted(node: LiveNode) -> tuple[Span, ...]:
    """What a node announces of the model."""
    return node.machine.hosting[0].spans


@asynccontextmanager
async def moved(
    workers: Sequence[Worker],
) -> AsyncIterator[tuple[Cast, list[Moving], list[Hop], Files]]:
    """A swarm whose workers move; the list of hops is the plan that all accept."""
    files, plan = Files(), list[Hop]()
    async with staged(workers) as cast, asyncio.TaskGroup() as group:
        movers = [
            Moving(node, worker, MANIFEST.shape, fetch=files.fetch, plan=lambda: plan)
            for node, worker in zip(cast.workers, workers, strict=True)
        ]
        tasks = [group.create_task(mover.run()) for mover in movers]
        async with asyncio.timeout(WAIT_S):
            yield cast, movers, plan, files
        for task in tasks:
            task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - several nodes change it
            await asyncio.sleep(0)


async def test_workers_trade_places_by_a_plan_while_prompts_are_answered() -> None:
    right = await truth("a prompt")
    workers = [holder(span, 2) for span in (*THIRDS, THIRDS[0])]
    async with moved(workers) as (cast, movers, plan, files):
        assert await cast.ask("a prompt") == right
        spans = (THIRDS[1], THIRDS[0], THIRDS[2], THIRDS[1])
        plan += [
            Hop(node.machine.peer, span) for node, span in zip(cast.workers, spans, strict=True)
        ]
        there = asyncio.create_task(
            until(lambda: [hosted(node) for node in cast.workers] == [(span,) for span in spans])
        )
        while not there.done():
            assert await cast.ask("a prompt") == right
        await there
        assert await cast.ask("a prompt") == right
        assert len(files.tried) > 1
        assert [mover.target for mover in movers] == list(spans)
        await until(lambda: all(mover.waits_for == "" for mover in movers))


async def test_a_gap_is_closed_and_the_running_prompt_goes_on() -> None:
    right = await truth("a prompt")
    workers = [holder(span, capacity) for span, capacity in zip(THIRDS, (2, 4, 2), strict=True)]
    async with moved(workers) as (cast, _movers, _plan, _files):

        def crash_soon(tokens: int) -> None:
            if tokens == 5:
                cast.crash(2)

        assert await cast.ask("a prompt", at_token=crash_soon) == right
        assert hosted(cast.workers[1]) == (Span(2, 6),)
        assert hosted(cast.workers[0]) == (THIRDS[0],)
        assert cast.repairs
        assert set(cast.on_route()) == {0, 1}


async def test_a_worker_whose_model_is_retired_stays() -> None:
    workers = [holder(THIRDS[0], 2), holder(THIRDS[1], 6), holder(THIRDS[2], 6)]
    async with moved(workers) as (cast, movers, _plan, _files):
        cast.workers[1].machine.retire(MANIFEST.model)
        cast.crash(0)
        await until(lambda: hosted(cast.workers[2]) == (Span(0, LAYERS),))
        assert movers[1].target is None
        assert workers[1].engine.spans() == (THIRDS[1],)
