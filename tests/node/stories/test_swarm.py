"""Processes of a simulated swarm die, come back, freeze, and have clocks of their own."""

from __future__ import annotations

import pytest

from gennode.engine.sample import Sampling
from gennode.engine.toy import ToyOwner, ToyShard
from gennode.errors import LocalError
from gennode.node.prompt import answer
from gennode.node.stories.swarm import Clock, SimulatedSwarm
from gennode.node.stories.truth import undisturbed
from gennode.node.worker import Worker
from gennode.wire.ids import PeerId, Span
from tests.node.toys import LAYERS, MANIFEST, THIRDS

SAMPLING = Sampling(max_tokens=40)


def worker(span: Span) -> Worker:
    engine = ToyShard(MANIFEST)
    engine.load(span)
    return Worker(engine, LAYERS, span.layers)


def ask(swarm: SimulatedSwarm, owner: PeerId) -> list[int]:
    tokens: list[int] = []

    async def read() -> None:
        async for token in answer("hello", ToyOwner(MANIFEST), swarm.owner(owner), SAMPLING):
            tokens.append(token)

    swarm.spawn(read())
    return tokens


def test_clocks_that_differ_by_a_day_and_run_at_other_rates_change_no_token() -> None:
    swarm = SimulatedSwarm(1)
    for index, span in enumerate(THIRDS):
        swarm.add(worker(span), clock=Clock(index * 86_400.0, 1.0 + index / 100))
    owner = swarm.add(clock=Clock(5e5, 0.97))
    swarm.run(3.0)
    tokens = ask(swarm, owner)
    swarm.run(30.0)
    assert tokens == undisturbed(MANIFEST, "hello", SAMPLING)


def test_a_worker_that_died_is_back_with_nothing_and_the_answer_goes_on() -> None:
    swarm = SimulatedSwarm(2)
    workers = [swarm.add(worker(span)) for span in THIRDS]
    owner = swarm.add()
    swarm.run(3.0)
    tokens = ask(swarm, owner)
    swarm.run(60.0, done=lambda: len(tokens) >= 10)
    swarm.crash(workers[1])
    with pytest.raises(LocalError, match="only a process that is dead"):
        swarm.restart(workers[0])
    swarm.after(2.0, lambda: swarm.restart(workers[1], worker(THIRDS[1])))
    swarm.run(swarm.now_s + 30.0)
    assert tokens == undisturbed(MANIFEST, "hello", SAMPLING)
    assert swarm.peers[owner].events


def test_a_slow_worker_takes_longer() -> None:
    took_s = []
    for slowness in (1.0, 10.0):
        swarm = SimulatedSwarm(3)
        workers = [swarm.add(worker(span)) for span in THIRDS]
        owner = swarm.add()
        swarm.run(3.0)
        swarm.slow(workers[2], slowness, 60.0)
        tokens = ask(swarm, owner)
        swarm.run(60.0, done=lambda tokens=tokens: len(tokens) == 40)  # type: ignore[misc]
        took_s.append(swarm.now_s)
    assert took_s[1] > took_s[0] + 2.0
