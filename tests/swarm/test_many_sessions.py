"""Many sessions at once on the bundled model: the same tokens as alone, though a worker dies."""

from __future__ import annotations

import asyncio

import pytest

from gennode.engine.checkpoint.weights import find_model, open_model
from gennode.engine.engines import owner_engine, shard_engine
from gennode.engine.options import EngineOptions
from gennode.engine.sample import Sampling
from gennode.node.alone import Alone
from gennode.node.worker import Worker
from gennode.sharding.plan.plan import split
from gennode.wire.ids import Span
from tests.node.toys import staged, tokens_of

SAMPLING = Sampling(max_tokens=24)
SESSIONS = 8
WAIT_S = 120.0


@pytest.mark.parametrize("dies", [False, True])
async def test_batched_answers_are_those_of_one_machine(dies: bool) -> None:
    folder = open_model(find_model("gennode-small"))
    layers, owner = folder.manifest.shape.layers, owner_engine(folder)
    options = EngineOptions(precision="fp32")

    def worker(span: Span) -> Worker:
        engine = shard_engine(folder, options)
        engine.load(span)
        return Worker(engine, layers, capacity_layers=span.layers)

    whole = Span(0, layers)
    alone = shard_engine(folder, options)
    alone.load(whole)
    prompts = [
        f"count from {number} to {number + 9 * (number % 3)} =" for number in range(SESSIONS)
    ]
    truths = [await tokens_of(one, owner, Alone(alone, [whole]), SAMPLING) for one in prompts]
    halves = split(layers, [1.0, 1.0], [layers, layers])
    async with staged([worker(span) for span in [*halves, *halves]]) as cast:
        crashed: list[int] = []

        def hurt(count: int) -> None:
            if dies and count == 4 and not crashed:
                crashed.append(cast.on_route()[0])
                cast.crash(crashed[0])

        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
            asking = [
                group.create_task(tokens_of(one, owner, cast.owner, SAMPLING, at_token=hurt))
                for one in prompts
            ]
        assert [task.result() for task in asking] == truths
        assert bool(cast.repairs) is dies
