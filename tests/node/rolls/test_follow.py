"""A live swarm goes over to a new version while it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gennode.engine.toy import ToyOwner, ToyShard, toy_manifest
from gennode.errors import NetworkError
from gennode.node.alone import Alone
from gennode.node.live import LiveNode
from gennode.node.rolls import follow, roll
from gennode.node.rolls.follow import Following, Means
from gennode.node.worker import Worker
from gennode.wire.ids import ModelId, Span
from gennode.wire.release import Line, sign_release
from gennode.wire.signing import Key
from tests.node.toys import LAYERS, MANIFEST, SAMPLING, THIRDS, Cast, staged, tokens_of, toy_worker

OLDER, NEWER = MANIFEST, toy_manifest(LAYERS, version=1)
PUBLISHER = Key(bytes([99]) * 32)
LINE = Line(PUBLISHER.peer, "toy")
WAIT_S = 30.0


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LOOK_INTERVAL_S", 0.01)
    monkeypatch.setattr(roll, "SETTLE_S", 0.2)
    monkeypatch.setattr(roll, "RETRY_S", 0.1)


class Shelf:
    """Where followers fetch versions from; the first fetch of each of them fails."""

    def __init__(self) -> None:
        self.tried: list[Span] = []
        self.gained: list[ModelId] = []
        self.dropped: list[ModelId] = []

    async def fetch(self, model: ModelId, span: Span) -> None:
        assert model == NEWER.model
        self.tried.append(span)
        if self.tried.count(span) == 1:
            raise NetworkError("nobody has it yet")

    def open(self, model: ModelId, span: Span) -> Worker:
        assert model == NEWER.model
        return Worker(ToyShard(NEWER), LAYERS, span.layers)

    @property
    def means(self) -> Means:
        return Means(self.fetch, self.open, self.gained.append, self.dropped.append)


@asynccontextmanager
async def following(capacities: list[int]) -> AsyncIterator[tuple[Cast, Shelf]]:
    """A swarm of which each worker follows the line; a third of the layers each, in turn."""
    shelf = Shelf()
    workers = [toy_worker(THIRDS[index % 3]) for index in range(len(capacities))]
    async with staged(workers) as cast, asyncio.TaskGroup() as group:
        cast.owner.machine.releases.follow(LINE)
        tasks = [
            group.create_task(Following(node, LINE, shelf.means, capacity_layers=capacity).run())
            for node, capacity in zip(cast.workers, capacities, strict=True)
        ]
        yield cast, shelf
        for task in tasks:
            task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - several nodes change it
            await asyncio.sleep(0)


async def rolled(nodes: list[LiveNode]) -> None:
    """Until all workers host the new version alone."""
    await until(lambda: all(list(node.workers) == [NEWER.model] for node in nodes))


async def right_answers() -> dict[ModelId, list[int]]:
    whole, answers = Span(0, LAYERS), {}
    for manifest in (OLDER, NEWER):
        engine = ToyShard(manifest)
        engine.load(whole)
        alone = Alone(engine, [whole])
        answers[manifest.model] = await tokens_of("a prompt", ToyOwner(manifest), alone)
    return answers


@pytest.mark.parametrize("capacities", [[4, 4, 4], [2, 2, 2, 2, 2, 2]])
async def test_workers_go_over_while_prompts_are_answered(capacities: list[int]) -> None:
    right = await right_answers()
    async with following(capacities) as (cast, shelf):
        assert await cast.ask("a prompt") == right[OLDER.model]
        release = sign_release(PUBLISHER, LINE.name, 1, NEWER.model, OLDER.model, LAYERS)
        assert cast.owner.release(release) == len(capacities)
        done = asyncio.create_task(rolled(cast.workers))
        asked = []
        while not done.done():
            newest = cast.owner.machine.releases.newest(LINE)
            assert newest is not None
            model = roll.choose_version(newest, cast.owner.live())
            owner = ToyOwner(OLDER if model == OLDER.model else NEWER)
            assert await tokens_of("a prompt", owner, cast.owner, SAMPLING) == right[model]
            asked.append(model)
        await done
        assert asked[0] == OLDER.model
        assert sorted(shelf.dropped) == [OLDER.model] * len(capacities)
        assert sorted(shelf.gained) == [NEWER.model] * len(capacities)
        assert await tokens_of("a prompt", ToyOwner(NEWER), cast.owner) == right[NEWER.model]


async def test_a_fork_is_logged_once_and_followed_by_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with following([4, 4, 4]) as (cast, shelf):
        for model in (NEWER.model, ModelId("c" * 64)):
            cast.owner.machine.releases.publish(
                sign_release(PUBLISHER, LINE.name, 1, model, None, LAYERS)
            )
        await until(lambda: caplog.text.count("release_forked") == 4)  # one line of each node
        boards = [node.machine.releases for node in (cast.owner, *cast.workers)]
        assert [board.newest(LINE) for board in boards] == [None] * 4
        assert shelf.tried == []
