"""Answers in whose middle a worker is killed, stopped or told to leave, with the times taken."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench._swarm_processes import Running, WorkerProcesses, room_for
from gennode.engine.checkpoint.weights import open_model
from gennode.engine.sample import Sampling
from gennode.errors import LocalError
from gennode.node.ask import Asker, Failover, asking
from gennode.node.control import ask_status
from gennode.node.prompt import answer
from gennode.node.testnet import WorkerOptions
from gennode.wire.ids import Hop, Span

REPLICAS = ("second", "third")  # of one half of the layers; the first worker has the other
PROMPT_LETTERS = 100  # a token each
MARGIN_TOKENS = 8  # before the fault, to know a usual token's time; and after it
UNDISTURBED_TRIES = 3  # the first may still meet whoever was hurt
LIMIT_S = 60.0  # for owners to hear of a worker that serves again
LOOK_S = 0.05

Fault = Literal["kill", "stop", "leave"]
SIGNALS: dict[Fault, signal.Signals] = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "leave": signal.SIGTERM,
}


@dataclass(frozen=True)
class Plan:
    """How much to measure: faults in the order in which they come, tokens per answer, and how
    often to ask again instead."""

    layers: int
    tokens: int
    faults: tuple[Fault, ...]
    repeats: int
    threads: int


@dataclass(frozen=True)
class Trial:
    """What came of one fault, after `at_token` tokens. `replay_s`: what the other worker computed
    to catch up. `same_tokens`: how many came before the first wrong one; None if none was wrong."""

    fault: Fault
    at_token: int
    gap_s: float
    replay_s: float
    token_s: float
    same_tokens: int | None
    reason: str

    @property
    def is_same(self) -> bool:
        """Whether all tokens are those of an undisturbed session."""
        return self.same_tokens is None


class Telling:
    """One answer as it comes: its tokens, their times, and the repairs on the way."""

    def __init__(self, asker: Asker) -> None:
        self.tokens: list[int] = []
        self.times_s: list[float] = []
        self.struck_s = float("inf")
        self._asker = asker
        self._repairs_before = len(asker.failovers)

    @property
    def repairs(self) -> Sequence[Failover]:
        """What was repaired since this answer began."""
        return self._asker.failovers[self._repairs_before :]

    @property
    def route(self) -> tuple[Hop, ...]:
        """Its hops of now."""
        return self.repairs[-1].after if self.repairs else self._asker.route

    def token_s(self) -> float:
        """The usual time between two tokens before the fault."""
        calm = [end for end in self.times_s if end < self.struck_s]
        return statistics.median(b - a for a, b in itertools.pairwise(calm))

    def gap_s(self) -> float:
        """The longest wait for a token that came after the fault."""
        pairs = itertools.pairwise(self.times_s)
        return max(end - start for start, end in pairs if end > self.struck_s)

    async def tokens_of(
        self, prompt: str | Sequence[int], sampling: Sampling
    ) -> AsyncIterator[int]:
        """Yield how many tokens there are, with each that comes."""
        stream = answer(prompt, self._asker.owner, self._asker.node, sampling)
        async with aclosing(stream):
            async for token in stream:
                self.times_s.append(time.perf_counter())
                self.tokens.append(token)
                self._asker.tokens_given = len(self.tokens)
                yield len(self.tokens)

    async def run(self, prompt: str | Sequence[int], sampling: Sampling) -> None:
        """Nothing happens meanwhile."""
        async for _ in self.tokens_of(prompt, sampling):
            pass


class Stage:
    """Workers, the owner whose answers are disturbed, and one whose answers are not: workers
    keep caches for an owner, so a second one gets nothing that the first one's sessions left."""

    def __init__(
        self,
        workers: WorkerProcesses,
        owner: Asker,
        judge: Asker,
        plan: Plan,
        chance: random.Random,
    ) -> None:
        self._workers = workers
        self._owner, self._judge = owner, judge
        self._plan = plan
        self._chance = chance
        self._gone: Running | None = None

    async def warm_up(self) -> None:
        """Everybody's first step is slow."""
        for worker in self._workers.running.values():
            await self._until_known(worker)
        for asker in (self._owner, self._judge):
            await Telling(asker).run(self._prompt(), Sampling(max_tokens=4))

    async def trial(self, number: int, fault: Fault) -> Trial:
        """Hurt who serves, once all serve again, and take the times."""
        await self._mend()
        prompt, sampling = self._prompt(), self._sampling(number)
        at_token = self._chance.randrange(MARGIN_TOKENS, self._plan.tokens - MARGIN_TOKENS)
        fraction = self._chance.random()
        before_s = {name: await self._compute_s(name) for name in REPLICAS}
        told = Telling(self._owner)
        victim: Running | None = None

        def strike() -> None:
            assert victim is not None
            told.struck_s = time.perf_counter()
            self._workers.send(victim.name, SIGNALS[fault])

        caught_up_s: float | None = None
        async for count in told.tokens_of(prompt, sampling):
            if count == at_token:
                victim = self._workers.of(told.route[-1].peer)
                asyncio.get_running_loop().call_later(fraction * told.token_s(), strike)
            if victim and told.repairs and caught_up_s is None:
                [other] = set(REPLICAS) - {victim.name}
                caught_up_s = await self._compute_s(other) - before_s[other]
        assert victim is not None
        if fault == "stop":
            self._workers.send(victim.name, signal.SIGCONT)
        else:
            self._gone = victim
        truth = await self._undisturbed(prompt, sampling)
        pairs = enumerate(itertools.zip_longest(told.tokens, truth))
        return Trial(
            fault=fault,
            at_token=at_token,
            gap_s=told.gap_s(),
            replay_s=caught_up_s or 0.0,
            token_s=told.token_s(),
            same_tokens=next((index for index, (one, other) in pairs if one != other), None),
            reason="; ".join(f"{one.after_tokens}: {one.reason}" for one in told.repairs)
            or "nobody noticed",
        )

    async def ask_again(self) -> float:
        """How long a new session takes to get where a broken one was, in the middle."""
        tokenize = self._owner.owner.tokenize
        written = [*tokenize(self._prompt()), *tokenize(self._prompt())[: self._plan.tokens // 2]]
        start_s = time.perf_counter()
        told = Telling(self._owner)
        await told.run(written, Sampling(max_tokens=1))
        return told.times_s[0] - start_s

    async def _compute_s(self, name: str) -> float:
        """What a worker has computed in its life."""
        return (await ask_status(self._workers.running[name].card.control)).compute_s

    async def _undisturbed(self, prompt: str, sampling: Sampling) -> list[int]:
        """What the other owner is told, from a route on which nothing had to be repaired."""
        for _ in range(UNDISTURBED_TRIES):
            told = Telling(self._judge)
            await told.run(prompt, sampling)
            if not told.repairs:
                return told.tokens
        raise LocalError("the route is repaired though nobody hurts it")

    async def _mend(self) -> None:
        """Have all workers serve, and the owners know."""
        if self._gone is not None:
            await self._workers.ended(self._gone.name)
            await self._until_known(await self._workers.again(self._gone.name))
            self._gone = None

    async def _until_known(self, worker: Running) -> None:
        async with asyncio.timeout(LIMIT_S):
            for asker in (self._owner, self._judge):
                while not _is_known(worker, asker):  # noqa: ASYNC110 - nobody tells of it
                    await asyncio.sleep(LOOK_S)

    def _prompt(self) -> str:
        """Of a fixed length, and like no other one: nobody has its caches."""
        return "".join(self._chance.choice("abcdefghij ") for _ in range(PROMPT_LETTERS - 1))

    def _sampling(self, number: int) -> Sampling:
        """Greedy and drawn from a seed in turns."""
        return Sampling(temperature=float(number % 2), seed=number, max_tokens=self._plan.tokens)


def _is_known(worker: Running, asker: Asker) -> bool:
    """Whether an owner has heard of what this process of a worker hosts."""
    return any(
        one.peer == worker.card.peer and one.instance >= worker.born_ms and one.hosting
        for one in asker.node.live()
    )


async def measure(
    model: Path, folder: Path, plan: Plan, chance: random.Random, say: Callable[[str], None]
) -> tuple[list[Trial], list[float]]:
    """One trial per fault, and the waits of asking again instead."""
    half, end = plan.layers // 2, plan.layers
    shape = open_model(model).manifest.shape
    options = WorkerOptions(
        str(model),
        memory=str(room_for(end - half, shape)),
        threads=plan.threads,
        precision="int8",
    )
    async with AsyncExitStack() as stack:
        workers = await stack.enter_async_context(WorkerProcesses(folder, options))
        say("starting workers …")
        replicas = dict.fromkeys(REPLICAS, Span(half, end))
        await workers.start_all({"first": Span(0, half), **replicas})
        bootstrap = workers.addresses()
        owner = await stack.enter_async_context(asking(str(model), bootstrap))
        judge = await stack.enter_async_context(asking(str(model), bootstrap))
        stage = Stage(workers, owner, judge, plan, chance)
        await stage.warm_up()
        trials = []
        for number, fault in enumerate(plan.faults):
            trials.append(trial := await stage.trial(number, fault))
            said = "all" if trial.is_same else trial.same_tokens
            say(
                f"{number + 1} of {len(plan.faults)}, {fault} at {trial.at_token}: "
                f"gap {trial.gap_s:.2f} s, replay {trial.replay_s:.2f} s, "
                f"token {trial.token_s:.3f} s, {said} tokens right ({trial.reason})"
            )
        say("asking again instead …")
        return trials, [await stage.ask_again() for _ in range(plan.repeats)]
