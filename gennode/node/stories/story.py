"""One seeded story: a swarm, owners who ask, faults in the middle, and what must still hold."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial

from gennode.engine.sample import Sampling
from gennode.errors import GennodeError, LocalError, RemoteError
from gennode.node.hops.hop import IDLE_S
from gennode.node.prompt import answer
from gennode.node.stories.cast import DRIFT, LAYERS, MANIFEST, THIRDS, Cast, MakeEngine
from gennode.node.stories.chance import Chances, FlakyShard, WideOwner, draw
from gennode.node.stories.faults import Fault, plan
from gennode.node.stories.network import Weather
from gennode.node.stories.owner import NOTHING, Promise
from gennode.node.stories.paths import Paths
from gennode.node.stories.swarm import SimulatedPeer, SimulatedSwarm
from gennode.node.stories.truth import undisturbed, whole_truth
from gennode.wire.ids import PeerId

__all__ = ["Story", "tell", "undisturbed"]

VOLUNTEERS = Weather(
    delay_s=(0.0, 0.02),
    distance_s=(0.01, 0.1),
    step_time_s=(0.01, 0.06),
    load_time_s=2.0,
    tick_s=0.2,
)
"""Strangers' machines, 20 to 240 ms apart there and back."""
REPLICAS = (2, 2, 3)
OWNERS = (1, 2, 2)
PROMPTS = (1, 2, 3)  # of each owner, one after the other
THINKS_S = (2.0, 180.0)  # between two of them: people read answers
IDLE_TICKS_S = (3.0, 6.0, 9.0)  # a worker has little to do of itself: a beat every ten seconds
WORDS = ("Sort these numbers. ", "What is the time? ", "Count the letters. ", "Say it again. ")
REPEATS = (1, 3, 12, 20)  # up to 400 tokens: a few chunks
LENGTHS = (8, 24, 60, 160)  # tokens
SAMPLINGS = (Sampling(), Sampling(1.0, seed=1), Sampling(1.0, seed=2), Sampling(0.8, 0.9, seed=3))
REPLICATES = 0.25  # of the prompts keep copies of their caches
SPREAD_S = 6.0  # for the directory to spread before anything happens
FLAKY_S = 60.0  # machines fail now and then for so long at least
STUCK_S = 150.0  # a step may take two minutes before it is given up
LOOK_S = 5.0
ASK_AGAIN_S = 1.0  # whether all prompts have ended: to ask after each event would take longer
STORY_LIMIT_S = 3_600.0
FORGOTTEN_S = IDLE_S / (1 - DRIFT) + 10.0  # after the last word, until no hop holds anything


@dataclass(frozen=True)
class Story:
    """What came of one seed."""

    seed: int
    prompts: int
    right: int
    refused: tuple[str, ...]
    """The errors that prompts ended in."""
    abandoned: int
    """Prompts whose owner vanished."""
    wrong: int
    """Tokens: the first one ends the story."""
    broken: str
    """What did not hold, or nothing."""
    failovers: int
    events: int
    virtual_s: float
    longest_wait_s: float
    """Between two tokens, faults that went on meanwhile left out."""
    faults: tuple[str, ...]
    paths: tuple[tuple[str, int], ...]
    told: tuple[str, ...]
    """What happened, line by line."""
    digest: str
    """Of all events: two runs of a seed have the same."""

    @property
    def holds(self) -> bool:
        """Every prompt ended right or in one clear error, and nothing else was broken."""
        ended = self.right + len(self.refused) + self.abandoned
        return not self.broken and ended == self.prompts


def tell(seed: int, make_engine: MakeEngine | None = None) -> Story:
    """Run the story of one seed. A pure function of it and of the engine that workers have."""
    stage = _Stage(seed, make_engine)
    broken = ""
    try:
        stage.play()
    except LocalError as error:  # what the checks found, or our machines themselves
        broken = str(error)
        stage.swarm.trace.tell(stage.swarm.now_s, f"broken: {broken}")
    except BaseException as error:
        error.add_note(f"gennode simulate --seed {seed}")
        raise
    return stage.story(broken)


@dataclass
class _Prompt:
    """One question, and what has come of it."""

    name: str
    owner: SimulatedPeer
    text: str
    sampling: Sampling
    tokens: int = 0
    moved_s: float = 0.0
    is_open: bool = False
    error: str | None = None


class _Stage:
    """The swarm of a story, what happens to it, and what must hold."""

    def __init__(self, seed: int, make_engine: MakeEngine | None) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        chances = draw(rng) if make_engine is None else Chances()
        self.swarm = SimulatedSwarm(
            rng.getrandbits(64),
            replace(VOLUNTEERS, stray_chance=chances.strays, idle_tick_s=rng.choice(IDLE_TICKS_S)),
        )
        self.paths = Paths()
        self.swarm.sees, self.swarm.watch = self.paths.sent, self._check
        make = make_engine or (
            lambda manifest: FlakyShard(manifest, chances, self.swarm.rng, self._is_healed)
        )
        self.cast = Cast(self.swarm, rng, chances, make)
        for span in THIRDS:
            for _ in range(rng.choice(REPLICAS)):
                self.cast.add_worker(span)
        for _ in range(rng.choice(OWNERS)):
            self.cast.add_owner()
        self.counts = [rng.choice(PROMPTS) for _ in self.cast.owners]
        self.faults = plan(rng, self.cast, sum(self.counts))
        self.healed_s = SPREAD_S + FLAKY_S
        self.prompts: list[_Prompt] = []
        self.asking: set[PeerId] = set()
        self.longest_wait_s = 0.0
        self.wrong = 0

    # -- what happens -------------------------------------------------------------------------

    def play(self) -> None:
        """All of it: prompts and faults, until everything has ended and is forgotten."""
        swarm = self.swarm
        swarm.run(SPREAD_S)
        for owner, count in zip(self.cast.owners, self.counts, strict=True):
            self.asking.add(owner)
            swarm.spawn(self._ask_all(owner, count))
        swarm.after(LOOK_S, self._look)
        while self._is_asked and swarm.now_s < STORY_LIMIT_S:
            swarm.run(swarm.now_s + ASK_AGAIN_S)
        if self._is_asked:
            raise LocalError(f"prompts still ran after {STORY_LIMIT_S:.0f} s")
        self._wait_until_forgotten()

    @property
    def _is_asked(self) -> bool:
        return any(self.swarm.peers[owner].alive for owner in self.asking)

    def _strike(self, fault: Fault) -> None:
        self.swarm.trace.tell(self.swarm.now_s, fault.told)
        self.healed_s = max(self.healed_s, self.swarm.now_s + fault.lasts_s)
        fault.strike()

    async def _ask_all(self, owner: PeerId, count: int) -> None:
        for number in range(count):
            await self._pause(self.rng.uniform(*THINKS_S) if number else self.rng.random())
            text = self.rng.choice(WORDS) * self.rng.choice(REPEATS)
            sampling = replace(self.rng.choice(SAMPLINGS), max_tokens=self.rng.choice(LENGTHS))
            name = f"{self.cast.name(owner)}, prompt {number + 1}"
            prompt = _Prompt(name, self.swarm.peers[owner], text, sampling)
            for fault in self.faults:
                if fault.prompt == len(self.prompts):
                    self.swarm.after(fault.at_s, partial(self._strike, fault))
            self.prompts.append(prompt)
            await self._ask(owner, prompt)
        self.asking.remove(owner)

    async def _ask(self, owner: PeerId, prompt: _Prompt) -> None:
        trace, swarm = self.swarm.trace, self.swarm
        longest = replace(prompt.sampling, max_tokens=max(LENGTHS))
        truth = whole_truth(LAYERS, prompt.text, longest)[: prompt.sampling.max_tokens]
        prompt.moved_s, prompt.is_open = swarm.now_s, True
        handle = swarm.owner(owner, replicate=self.rng.random() < REPLICATES)
        trace.tell(swarm.now_s, f"{prompt.name} asks for {len(truth)} tokens")
        try:
            async for token in answer(
                prompt.text, WideOwner(MANIFEST, self.cast.chances.padding), handle, prompt.sampling
            ):
                self._hand_out(prompt, token, truth)
        except (LocalError, RemoteError) as error:
            raise LocalError(f"{prompt.name} ended in a fault of ours: {error}") from error
        except GennodeError as error:
            self._end(prompt, error)
        else:
            if prompt.tokens < len(truth):
                raise LocalError(f"{prompt.name} ended {len(truth) - prompt.tokens} tokens early")
            trace.tell(swarm.now_s, f"{prompt.name} is answered")
        self._moved(prompt)
        prompt.is_open = False

    async def _pause(self, duration_s: float) -> None:
        promise = Promise()
        self.swarm.after(duration_s, lambda: promise.resolve(NOTHING))
        await promise

    def _is_healed(self) -> bool:
        return self.swarm.now_s > self.healed_s

    # -- what must hold -----------------------------------------------------------------------

    def _hand_out(self, prompt: _Prompt, token: int, truth: tuple[int, ...]) -> None:
        self._moved(prompt)
        if prompt.tokens >= len(truth) or token != truth[prompt.tokens]:
            self.wrong += 1
            raise LocalError(f"{prompt.name}: token {prompt.tokens + 1} is wrong")
        prompt.tokens += 1

    def _end(self, prompt: _Prompt, error: GennodeError) -> None:
        if not str(error):
            raise LocalError(f"{prompt.name} ended in an error without a word") from error
        prompt.error = f"{type(error).__name__}: {error}"
        told = f"{prompt.name} ends after {prompt.tokens} tokens: {error}"
        self.swarm.trace.tell(self.swarm.now_s, told)

    def _moved(self, prompt: _Prompt) -> None:
        self._check_wait(prompt)
        prompt.moved_s = self.swarm.now_s

    def _look(self) -> None:
        for prompt in self.prompts:
            if prompt.is_open and prompt.owner.alive:
                self._check_wait(prompt)
        self.swarm.after(LOOK_S, self._look)

    def _check_wait(self, prompt: _Prompt) -> None:
        """Whatever happened, the next token comes soon after the last fault has healed."""
        wait_s = self.swarm.now_s - max(prompt.moved_s, self.healed_s)
        self.longest_wait_s = max(self.longest_wait_s, wait_s)
        if wait_s > STUCK_S:
            raise LocalError(f"{prompt.name} is stuck after {prompt.tokens} tokens")

    def _check(self, state: SimulatedPeer) -> None:
        """After each thing that a peer did: it holds no more than it may."""
        limits, machine = self.cast.chances.limits, state.machine
        sessions = machine.hosted_sessions
        if not sessions:
            return
        queued_bytes, retained_bytes = machine.held_bytes
        for what, held, limit in (
            ("sessions", sessions, limits.max_sessions),
            ("bytes that wait", queued_bytes, limits.queued_bytes),
            ("bytes of frames", retained_bytes, limits.retained_bytes),
        ):
            if held > limit:
                raise LocalError(f"{self.cast.name(state.peer)} holds {held} {what} of {limit}")

    def _wait_until_forgotten(self) -> None:
        swarm = self.swarm
        end_s = max(swarm.now_s, self.healed_s) + FORGOTTEN_S
        while swarm.now_s < end_s and any(map(self._holds_something, swarm.peers.values())):
            swarm.run(swarm.now_s + 2.0)
        for state in swarm.peers.values():
            if self._holds_something(state):
                name = self.cast.name(state.peer)
                raise LocalError(f"{name} still holds something of sessions that are over")

    def _holds_something(self, state: SimulatedPeer) -> bool:
        sequences = any(worker.usage.sequences for worker in state.workers.values())
        machine = state.machine
        return state.alive and (sequences or machine.hosted_sessions > 0 or any(machine.held_bytes))

    # -- the end ------------------------------------------------------------------------------

    def story(self, broken: str) -> Story:
        """What came of it."""
        swarm, prompts = self.swarm, self.prompts
        reroutes = [one for owner in self.cast.owners for one in swarm.peers[owner].events]
        for event in reroutes:
            self.paths.rerouted(event)
        self.paths["message doubled"] += swarm.network.strays
        refused = tuple(prompt.error for prompt in prompts if prompt.error)
        self.paths["nobody there"] += len(refused)
        return Story(
            seed=self.seed,
            prompts=len(prompts),
            right=sum(not prompt.is_open and not prompt.error for prompt in prompts),
            refused=refused,
            abandoned=sum(one.is_open and not one.owner.alive for one in prompts),
            wrong=self.wrong,
            broken=broken,
            failovers=len(reroutes),
            events=swarm.events,
            virtual_s=swarm.now_s,
            longest_wait_s=self.longest_wait_s,
            faults=tuple(one.kind for one in self.faults),
            paths=tuple(sorted((+self.paths).items())),
            told=tuple(swarm.trace.lines),
            digest=swarm.trace.digest,
        )
