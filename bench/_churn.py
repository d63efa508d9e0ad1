"""Answers while a fifth of all workers goes every minute: the product's machines, token by token.

The swarm is `node.simulated`'s: real announcements, routes, sessions and repairs on a heap of
events, with engines in whole numbers whose tokens change if a layer is skipped or a cache is
stale. Half of those who go say goodbye and end 2 s later, whatever runs on them; the others
vanish, and of those half without a sign. Each is replaced by a newcomer, 1 s later, that hosts
the third of the layers which fewest have.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from gennode.engine.sample import Sampling
from gennode.engine.toy import ToyOwner, ToyShard, toy_manifest
from gennode.errors import GennodeError
from gennode.node.prompt import answer
from gennode.node.stories.story import undisturbed
from gennode.node.stories.swarm import SimulatedSwarm
from gennode.node.worker import Worker
from gennode.wire.ids import PeerId, Span

LAYERS, THIRDS = 6, 3
MANIFEST = toy_manifest(LAYERS)
CHURN_PER_S = 0.2 / 60
OWNERS = 4
SPREAD_S = 5.0  # for the directory to spread before anything happens
GOODBYE_S, NEWCOMER_S = 2.0, 1.0
LENGTHS = (8, 24, 24, 60, 120)  # tokens
PATIENCE_S = 120.0  # for the last answers


@dataclass
class Churned:
    """Tokens that were asked for, came right in a whole answer, came wrong; what happened."""

    asked_tokens: int = 0
    good_tokens: int = 0
    wrong_tokens: int = 0
    answers: int = 0
    broken: list[str] = field(default_factory=list)
    departures: int = 0
    failovers: int = 0

    @property
    def goodput(self) -> float:
        """The share of the tokens that came right, in answers that came whole."""
        return self.good_tokens / self.asked_tokens


class Story:
    """One seeded run."""

    def __init__(self, seed: int, workers: int) -> None:
        self.rng = random.Random(seed)
        self.swarm = SimulatedSwarm(self.rng.getrandbits(64))
        self.told = Churned()
        self.thirds: dict[PeerId, int] = {}
        self._asked: list[tuple[str, Sampling]] = []
        self._given: list[list[int]] = []
        self._ends: list[str | None] = []
        for _ in range(workers):
            self._join()
        self._owners = [self.swarm.add() for _ in range(OWNERS)]

    def run(self, until_s: float, prompts_per_s: float) -> Churned:
        """Churn and ask until a time, and wait for the last answers."""
        swarm = self.swarm
        gone_per_s = CHURN_PER_S * len(self.thirds)
        swarm.run(SPREAD_S)
        for at_s in self._moments(gone_per_s, until_s):
            swarm.after(at_s, self._depart)
        for at_s in self._moments(prompts_per_s, until_s):
            swarm.after(at_s, self._ask)
        swarm.run(SPREAD_S + until_s)
        done: Callable[[], bool] = lambda: all(end is not None for end in self._ends)  # noqa: E731
        swarm.run(swarm.now_s + PATIENCE_S, done)
        self._judge()
        return self.told

    def _moments(self, rate_per_s: float, until_s: float) -> Iterator[float]:
        at_s = self.rng.expovariate(rate_per_s)
        while at_s < until_s:
            yield at_s
            at_s += self.rng.expovariate(rate_per_s)

    def _join(self) -> None:
        covers = list(self.thirds.values())
        third = min(range(THIRDS), key=covers.count)
        engine, layers = ToyShard(MANIFEST), LAYERS // THIRDS
        engine.load(Span(third * layers, (third + 1) * layers))
        self.thirds[self.swarm.add(Worker(engine, LAYERS, layers))] = third

    def _depart(self) -> None:
        victim = self.rng.choice(sorted(self.thirds))
        del self.thirds[victim]
        self.told.departures += 1
        swarm = self.swarm
        fate = self.rng.choice(("goodbye", "goodbye", "crash", "blackout"))
        if fate == "goodbye":
            swarm.act(victim, swarm.peers[victim].machine.leave(swarm.now_s, {}))
            swarm.after(GOODBYE_S, partial(swarm.crash, victim))
        elif fate == "crash":
            swarm.crash(victim)
        else:
            swarm.blackout(victim)
        swarm.after(NEWCOMER_S, self._join)

    def _ask(self) -> None:
        index = len(self._asked)
        length = self.rng.choice(LENGTHS)
        sampling = Sampling(self.rng.choice([0.0, 1.0]), seed=index, max_tokens=length)
        self._asked.append((f"prompt {index}", sampling))
        self._given.append([])
        self._ends.append(None)
        self.swarm.spawn(self._read(index, self.rng.choice(self._owners)))

    async def _read(self, index: int, owner: PeerId) -> None:
        prompt, sampling = self._asked[index]
        try:
            handle = self.swarm.owner(owner)
            async for token in answer(prompt, ToyOwner(MANIFEST), handle, sampling):
                self._given[index].append(token)
        except GennodeError as error:
            self._ends[index] = str(error)
        else:
            self._ends[index] = ""

    def _judge(self) -> None:
        told = self.told
        for asked, given, end in zip(self._asked, self._given, self._ends, strict=True):
            truth = undisturbed(MANIFEST, *asked)
            told.answers += 1
            told.asked_tokens += len(truth)
            told.wrong_tokens += sum(
                token != right for token, right in zip(given, truth, strict=False)
            ) + max(0, len(given) - len(truth))
            if end == "" and given == truth:
                told.good_tokens += len(truth)
            else:
                told.broken.append("never ended" if end is None else end or "wrong")
        told.failovers = sum(len(self.swarm.peers[owner].events) for owner in self._owners)
