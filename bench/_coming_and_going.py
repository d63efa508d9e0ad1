"""Worker processes that go and are replaced all the while, and readers who ask them."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path

from bench._swarm_processes import WorkerProcesses
from gennode.engine.checkpoint.weights import find_model, open_model
from gennode.engine.engines import owner_engine
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.sample import Sampling
from gennode.errors import GennodeError
from gennode.node.alone import Alone
from gennode.node.ask import Asker, Failover, asking
from gennode.node.prompt import answer
from gennode.node.testnet import WorkerOptions
from gennode.wire.fields import CodecName
from gennode.wire.ids import Span

MODEL = "gennode-small"
CODEC: CodecName = "int8-outlier"
THIRDS = (Span(0, 1), Span(1, 2), Span(2, 3))  # of its layers
FIRST, COUNT, PROMPTS = 10, 28, 40  # "count from 10 to 38 =" …: some 60 tokens each
READ_S = 0.05  # a reader takes a token in so long: an answer lasts for 3 s, as with large models
READERS = 4
RETRY_S = 0.5  # who was refused asks again after this
ANSWER_LIMIT_S = 120.0  # whatever happens, an answer or an error comes sooner
LEAVES = (signal.SIGKILL, signal.SIGTERM)
SAMPLING = Sampling(max_tokens=96)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How many workers there are, which share of them leaves in a minute, and for how long."""

    workers: int
    leave_per_minute: float
    duration_s: float

    @property
    def leaves(self) -> int:
        """How many leave in all."""
        return round(self.workers * self.leave_per_minute * self.duration_s / 60)


@dataclass
class Told:
    """What came of all that was asked, and what happened meanwhile."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    failovers: int = 0
    longest_gap_s: float = 0.0
    left: Counter[str] = field(default_factory=Counter)
    came: int = 0

    @property
    def asked(self) -> int:
        """All answers, whole or not."""
        return self.right + len(self.wrong) + len(self.refused) + len(self.hung)


class Coming:
    """The workers: who is there, who goes, who comes instead."""

    def __init__(
        self, workers: WorkerProcesses, told: Told, chance: random.Random, say: Say
    ) -> None:
        self._workers = workers
        self._told = told
        self._chance = chance
        self._say = say
        self._numbers = itertools.count(1)
        self._signals = itertools.cycle(LEAVES)
        self._here: dict[str, Span] = {}

    async def begin(self, count: int) -> None:
        """As many workers, evenly over the thirds."""
        self._here = {self._name(): THIRDS[index % len(THIRDS)] for index in range(count)}
        await self._workers.start_all(self._here)

    async def go_on(self, count: int, duration_s: float) -> None:
        """At as many random moments one goes, and at once another begins in its stead."""
        start_s = time.monotonic()
        moments = sorted(self._chance.uniform(0, duration_s) for _ in range(count))
        async with asyncio.TaskGroup() as group:
            for at_s in moments:
                await asyncio.sleep(start_s + at_s - time.monotonic())
                self._leave()
                group.create_task(self._come())

    def _leave(self) -> None:
        serving = sorted(self._here.keys() & self._workers.running.keys())
        name, number = self._chance.choice(serving), next(self._signals)
        self._say(f"{number.name} to {name}, which has layers {self._here.pop(name)}")
        self._workers.send(name, number)
        self._told.left[number.name] += 1

    async def _come(self) -> None:
        """A newcomer with the third that fewest have, those counted who are about to."""
        has = list(self._here.values())
        name, span = self._name(), min(THIRDS, key=has.count)
        self._here[name] = span
        await self._workers.start(name, span)
        self._told.came += 1

    def _name(self) -> str:
        return f"worker-{next(self._numbers)}"


class Reader:
    """Asks one prompt after the other, reads each answer at leisure, and compares its tokens."""

    def __init__(
        self, asker: Asker, truths: dict[str, list[int]], told: Told, chance: random.Random
    ) -> None:
        self._asker = asker
        self._truths = truths
        self._told = told
        self._chance = chance

    async def read(self, until_s: float) -> None:
        """Answers that have begun in time are read to their end."""
        while time.monotonic() < until_s:
            prompt, truth = self._chance.choice(list(self._truths.items()))
            try:
                async with asyncio.timeout(ANSWER_LIMIT_S):
                    tokens = await self._tokens(prompt)
            except GennodeError as error:
                self._told.refused.append(f"{prompt} {type(error).__name__}: {error}")
                await asyncio.sleep(RETRY_S)
            except TimeoutError:
                self._told.hung.append(prompt)
            else:
                self._told.right += tokens == truth
                if tokens != truth:
                    self._told.wrong.append(f"{prompt} {tokens}, not {truth}")

    async def _tokens(self, prompt: str) -> list[int]:
        tokens: list[int] = []
        stream = answer(prompt, self._asker.owner, self._asker.node, SAMPLING)
        async with aclosing(stream):
            asked_s = time.perf_counter()
            async for token in stream:
                if tokens:
                    wait_s = time.perf_counter() - asked_s
                    self._told.longest_gap_s = max(self._told.longest_gap_s, wait_s)
                tokens.append(token)
                await asyncio.sleep(READ_S)
                asked_s = time.perf_counter()
        return tokens


async def watch(plan: Plan, folder: Path, seed: int, say: Say) -> Told:
    """Raise the workers, and read while they come and go."""
    told = Told()
    options = WorkerOptions(MODEL, memory="64M", threads=1, precision="fp32")
    truths = await _truths()
    async with AsyncExitStack() as stack:
        workers = await stack.enter_async_context(WorkerProcesses(folder, options))
        coming = Coming(workers, told, random.Random(seed), say)
        say(f"starting {plan.workers} workers …")
        await coming.begin(plan.workers)

        def repaired(failover: Failover) -> None:
            told.failovers += 1
            say(f"repaired: {failover.reason}")

        asker = await stack.enter_async_context(
            asking(MODEL, workers.addresses(), codec_name=CODEC, on_failover=repaired)
        )
        say(f"reading for {plan.duration_s:.0f} s …")
        until_s = time.monotonic() + plan.duration_s
        async with asyncio.TaskGroup() as group:
            for number in range(READERS):
                reader = Reader(asker, truths, told, random.Random(seed + number))
                group.create_task(reader.read(until_s))
            group.create_task(coming.go_on(plan.leaves, plan.duration_s))
    return told


async def _truths() -> dict[str, list[int]]:
    """What one process answers to each prompt, by the same spans and codec."""
    folder = open_model(find_model(MODEL))
    engine, owner = LlamaShard(folder), owner_engine(folder)
    engine.load(Span(THIRDS[0].start, THIRDS[-1].end))
    alone = Alone(engine, THIRDS, CODEC)
    truths = {}
    for first in range(FIRST, FIRST + PROMPTS):
        prompt = f"count from {first} to {first + COUNT} ="
        truths[prompt] = [token async for token in answer(prompt, owner, alone, SAMPLING)]
    return truths
