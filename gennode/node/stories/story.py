"""One seeded story: a swarm, an owner who asks, faults in the middle, and what must still hold."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gennode.engine.sample import Sampling
from gennode.engine.seam import ShardEngine
from gennode.engine.toy import ToyOwner, ToyShard, toy_manifest
from gennode.errors import GennodeError, LocalError
from gennode.node.alone import Alone
from gennode.node.prompt import answer
from gennode.node.stories.swarm import SimulatedSwarm
from gennode.node.worker import Worker
from gennode.wire.ids import PeerId, Span
from gennode.wire.manifest import Manifest

LAYERS = 6
WORKERS = 6
PROMPTS = 2
LENGTHS = (8, 24, 24, 120)  # tokens
STEP_S = 0.1  # about what a token takes, so that faults fall into the answer
STORY_LIMIT_S = 300.0
FAULTS = ("crash", "blackout", "freeze")


@dataclass(frozen=True)
class Story:
    """What came of one seed."""

    seed: int
    right: int
    refused: tuple[str, ...]
    wrong: int
    failovers: int
    events: int
    virtual_s: float
    faults: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Every prompt ended, and none in a token that it would not have had without faults."""
        return self.wrong == 0 and self.right + len(self.refused) == PROMPTS


def tell(seed: int, make_engine: Callable[[Manifest], ShardEngine] = ToyShard) -> Story:
    """Run the story of one seed. A pure function of it and of the engine that workers have."""
    rng = random.Random(seed)
    swarm = SimulatedSwarm(rng.getrandbits(64))
    manifest = toy_manifest(LAYERS)
    workers = [swarm.add(_worker(rng, index, make_engine(manifest))) for index in range(WORKERS)]
    owner_peer = swarm.add()
    owner = ToyOwner(manifest)
    max_tokens = rng.choice(LENGTHS)
    prompts = [f"story {seed}, prompt {index}" for index in range(PROMPTS)]
    samplings = [
        Sampling(temperature=rng.choice([0.0, 1.0]), seed=seed, max_tokens=max_tokens)
        for _ in prompts
    ]
    answers: list[list[int]] = [[] for _ in prompts]
    ends: list[str | None] = [None for _ in prompts]

    async def ask(index: int) -> None:
        handle = swarm.owner(owner_peer)
        try:
            async for token in answer(prompts[index], owner, handle, samplings[index]):
                answers[index].append(token)
        except GennodeError as error:
            ends[index] = str(error)
            return
        ends[index] = ""

    swarm.run(3.0)  # the directory spreads
    for index in range(PROMPTS):
        swarm.spawn(ask(index))
    faults = _plan_faults(rng, swarm, workers, STEP_S * max_tokens)
    swarm.run(STORY_LIMIT_S, done=lambda: all(end is not None for end in ends))
    truths = [undisturbed(manifest, *asked) for asked in zip(prompts, samplings, strict=True)]
    right = sum(
        end == "" and given == truth
        for end, given, truth in zip(ends, answers, truths, strict=True)
    )
    wrong = sum(given != truth[: len(given)] for given, truth in zip(answers, truths, strict=True))
    return Story(
        seed=seed,
        right=right,
        refused=tuple(end for end in ends if end),
        wrong=wrong,
        failovers=len(swarm.peers[owner_peer].events),
        events=swarm.events,
        virtual_s=swarm.now_s,
        faults=faults,
    )


def _worker(rng: random.Random, index: int, engine: ShardEngine) -> Worker:
    third = LAYERS // 3
    start = index % 3 * third
    engine.load(Span(start, start + third))
    return Worker(engine, LAYERS, capacity_layers=rng.choice([third, LAYERS]))


def _plan_faults(
    rng: random.Random, swarm: SimulatedSwarm, workers: list[PeerId], within_s: float
) -> tuple[str, ...]:
    """Hurt up to half of the workers, at any moment of the prompts."""
    told = []
    for victim in rng.sample(workers, rng.randint(0, WORKERS // 2)):
        fault, at_s = rng.choice(FAULTS), rng.uniform(0.0, within_s)
        if fault == "freeze":
            duration_s = rng.uniform(0.2, 6.0)
            swarm.after(at_s, partial(swarm.freeze, victim, duration_s))
        else:
            hurt = swarm.crash if fault == "crash" else swarm.blackout
            swarm.after(at_s, partial(hurt, victim))
        told.append(f"{fault} of worker {workers.index(victim) + 1} at {at_s:.2f} s")
    return tuple(told)


def undisturbed(manifest: Manifest, prompt: str, sampling: Sampling) -> list[int]:
    """The answer of one machine that holds all layers of a toy and never fails."""
    engine, whole = ToyShard(manifest), Span(0, manifest.shape.layers)
    owner = ToyOwner(manifest)
    engine.load(whole)
    tokens: list[int] = []

    async def ask() -> None:
        async for token in answer(prompt, owner, Alone(engine, [whole]), sampling):
            tokens.append(token)

    try:
        ask().send(None)
    except StopIteration:
        return tokens
    raise LocalError("an answer without a mesh waited for something")
