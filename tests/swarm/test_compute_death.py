"""A worker's compute process is killed in the middle of an answer: the answer is the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gennode.engine.checkpoint.weights import find_model, open_model
from gennode.engine.child.shard import ChildShard
from gennode.engine.engines import owner_engine, shard_engine
from gennode.engine.options import EngineOptions
from gennode.engine.sample import Sampling
from gennode.node.alone import Alone
from gennode.node.worker import Worker
from gennode.wire.ids import Span
from tests.node.toys import staged, tokens_of

PROMPT = "count from 12 to 40 ="
SAMPLING = Sampling(max_tokens=40)
OPTIONS = EngineOptions(precision="fp32", max_cache_bytes=64 * 1024**2)
FOLDER = open_model(find_model("gennode-small"))
WHOLE = Span(0, FOLDER.manifest.shape.layers)


@contextmanager
def isolated() -> Iterator[ChildShard]:
    """An engine in a process of its own."""
    engine = ChildShard(FOLDER, OPTIONS)
    try:
        engine.load(WHOLE)
        engine.profile()
        yield engine
    finally:
        engine.shutdown()


async def truth() -> list[int]:
    """What one machine answers."""
    engine = shard_engine(FOLDER, OPTIONS)
    engine.load(WHOLE)
    return await tokens_of(PROMPT, owner_engine(FOLDER), Alone(engine, [WHOLE]), SAMPLING)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [0, 1])
async def test_the_answer_is_the_same_and_the_worker_serves_again(replicas: int) -> None:
    """Without a replica, the answer waits for the worker's next process; with one, for nothing."""
    with isolated() as engine:
        workers = [Worker(engine, WHOLE.layers, WHOLE.layers)]
        for _ in range(replicas):
            other = shard_engine(FOLDER, OPTIONS)
            other.load(WHOLE)
            workers.append(Worker(other, WHOLE.layers, WHOLE.layers, share=0.1))  # second choice
        async with staged(workers) as cast:
            owner, killed = owner_engine(FOLDER), engine.pid

            def hurt(count: int) -> None:
                if count == 8:
                    os.kill(engine.pid, signal.SIGKILL)

            expected = await truth()
            assert len(expected) > 10
            told = await tokens_of(PROMPT, owner, cast.owner, SAMPLING, at_token=hurt)
            assert told == expected
            assert cast.repairs
            assert cast.on_route() == [replicas]
            assert await tokens_of(PROMPT, owner, cast.owner, SAMPLING) == expected
            assert engine.pid != killed
