"""One seeded story of a release that rolls through a simulated swarm while prompts are asked."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from gennode.engine.sample import Sampling
from gennode.engine.toy import ToyOwner, ToyShard, toy_manifest
from gennode.errors import GennodeError
from gennode.node.prompt import answer
from gennode.node.rolls.roll import (
    Drop,
    Fetch,
    Hosted,
    Load,
    Retire,
    RollAction,
    RollMachine,
    View,
    choose_version,
)
from gennode.node.stories.story import undisturbed
from gennode.node.stories.swarm import SimulatedSwarm
from gennode.node.worker import Worker
from gennode.sharding.route.route import Route
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.release import Line, Release, sign_release
from gennode.wire.signing import Key

LAYERS = 6
THIRD = LAYERS // 3
REPLICAS = 2
PROMPTS = 6
FOLLOW_S, LOOK_S = 0.5, 0.25
SPREAD_S = 5.0  # for the directory to spread before anything happens
ASKED_WITHIN_S = 40.0  # about what a roll takes, so that prompts fall into all of it
STORY_LIMIT_S = 600.0
VERSIONS = {
    manifest.model: manifest for manifest in (toy_manifest(LAYERS), toy_manifest(LAYERS, version=1))
}
OLD, NEW = VERSIONS


@dataclass
class RollStory:
    """What came of one seed. `uncovered`: how often no version had a route."""

    seed: int
    of_old: int = 0
    of_new: int = 0
    mixed: int = 0
    refused: list[str] = field(default_factory=list)
    uncovered: int = 0
    looks: int = 0
    both_fit: int = 0
    finished_s: float | None = None

    @property
    def holds(self) -> bool:
        """Each answer is one version's, there was always a route, and all workers are new."""
        answered = self.of_old + self.of_new == PROMPTS
        return answered and not self.mixed and not self.uncovered and self.finished_s is not None


@dataclass
class _Follower:
    """A simulated worker that follows a line."""

    swarm: SimulatedSwarm
    peer: PeerId
    line: Line
    capacity_layers: int
    roll: RollMachine

    def look(self) -> None:
        """What the live shell does twice a second."""
        machine = self.swarm.peers[self.peer].machine
        workers = self.swarm.peers[self.peer].workers
        hosted = [
            Hosted(model, one.layers, one.engine.spans()[0], machine.sessions_of(model))
            for model, one in workers.items()
        ]
        room = self.capacity_layers - sum(one.span.layers for one in hosted)
        live = machine.live(self.swarm.now_s)
        view = View(machine.releases.newest(self.line), live, hosted, room)
        for action in self.roll.tick(self.swarm.now_s, view):
            self._do(action)
        self.swarm.after(FOLLOW_S, self.look)

    def _do(self, action: RollAction) -> None:
        state, rng = self.swarm.peers[self.peer], self.swarm.rng
        match action:
            case Fetch():
                fails = rng.random() < 0.2
                self.swarm.after(rng.uniform(0.5, 5.0), lambda: self._done(action, not fails))
            case Load():
                self.swarm.after(rng.uniform(0.2, 3.0), lambda: self._load(action))
            case Retire():
                state.machine.retire(action.model)
            case Drop():
                state.machine.drop(action.model)
                del state.workers[action.model]

    def _load(self, action: Load) -> None:
        self.swarm.host(self.peer, make_worker(action.model, action.span))
        self._done(action, True)

    def _done(self, action: Fetch | Load, succeeded: bool) -> None:
        self.roll.done(action, self.swarm.now_s, succeeded=succeeded)


def make_worker(model: ModelId, span: Span) -> Worker:
    """A worker that hosts a span of a version, and no more."""
    engine = ToyShard(VERSIONS[model])
    engine.load(span)
    return Worker(engine, LAYERS, span.layers)


def tell_roll(seed: int) -> RollStory:
    """Run the story of one seed. A pure function of it."""
    rng = random.Random(seed)
    swarm, story = SimulatedSwarm(rng.getrandbits(64)), RollStory(seed)
    publisher = Key(rng.randbytes(32))
    line = Line(publisher.peer, "toy")
    workers = [_add_worker(rng, swarm, line, index, story) for index in range(3 * REPLICAS)]
    owner = swarm.add()
    swarm.peers[owner].machine.releases.follow(line)
    signed = sign_release(publisher, line.name, 1, NEW, OLD, LAYERS)
    first = rng.choice(workers)
    swarm.after(
        SPREAD_S + rng.uniform(0, 5), lambda: swarm.peers[first].machine.releases.publish(signed)
    )
    prompts = [_Prompt(story, swarm, owner, line, index) for index in range(PROMPTS)]
    for prompt in prompts:
        swarm.after(
            SPREAD_S + rng.uniform(0, ASKED_WITHIN_S),
            lambda prompt=prompt: swarm.spawn(prompt.ask(rng)),  # type: ignore[misc]
        )
    swarm.after(SPREAD_S, lambda: _look(story, swarm, owner, workers))
    swarm.run(
        STORY_LIMIT_S,
        done=lambda: story.finished_s is not None and all(one.is_over for one in prompts),
    )
    return story


def _add_worker(
    rng: random.Random, swarm: SimulatedSwarm, line: Line, index: int, story: RollStory
) -> PeerId:
    start = index % 3 * THIRD
    peer = swarm.add(make_worker(OLD, Span(start, start + THIRD)))
    swarm.peers[peer].machine.releases.follow(line)
    capacity_layers = rng.choice([THIRD, 2 * THIRD])
    story.both_fit += capacity_layers > THIRD
    follower = _Follower(swarm, peer, line, capacity_layers, RollMachine(peer))
    swarm.after(rng.uniform(0, FOLLOW_S), follower.look)
    return peer


def _look(story: RollStory, swarm: SimulatedSwarm, owner: PeerId, workers: list[PeerId]) -> None:
    """Is there a route, as the owner sees it; and is the roll over?"""
    owning, now_s = swarm.peers[owner].machine.owning, swarm.now_s
    routes = [
        owning.warm_route(model, Span(0, LAYERS), owner, frozenset(), now_s) for model in VERSIONS
    ]
    story.looks += 1
    story.uncovered += not any(isinstance(route, Route) for route in routes)
    if story.finished_s is None and all(list(swarm.peers[one].workers) == [NEW] for one in workers):
        story.finished_s = now_s
    swarm.after(LOOK_S, lambda: _look(story, swarm, owner, workers))


@dataclass
class _Prompt:
    """One prompt of the newest version that is covered, and what came of it."""

    story: RollStory
    swarm: SimulatedSwarm
    owner: PeerId
    line: Line
    index: int
    is_over: bool = False

    async def ask(self, rng: random.Random) -> None:
        """Ask, and compare the answer with each version's."""
        release = self.swarm.peers[self.owner].machine.releases.newest(self.line)
        model = self._choose(release)
        text, sampling = (
            f"roll {self.story.seed}, {self.index}",
            Sampling(max_tokens=rng.choice([8, 40, 120])),
        )
        tokens: list[int] = []
        handle = self.swarm.owner(self.owner)
        try:
            async for token in answer(text, ToyOwner(VERSIONS[model]), handle, sampling):
                tokens.append(token)
        except GennodeError as error:
            self.story.refused.append(str(error))
        else:
            self._judge(tokens, text, sampling)
        self.is_over = True

    def _choose(self, release: Release | None) -> ModelId:
        live = self.swarm.peers[self.owner].machine.live(self.swarm.now_s)
        return choose_version(release, live) if release else OLD

    def _judge(self, tokens: list[int], text: str, sampling: Sampling) -> None:
        if tokens == undisturbed(VERSIONS[OLD], text, sampling):
            self.story.of_old += 1
        elif tokens == undisturbed(VERSIONS[NEW], text, sampling):
            self.story.of_new += 1
        else:
            self.story.mixed += 1
