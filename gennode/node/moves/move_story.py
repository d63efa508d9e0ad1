"""One seeded story of workers that join, leave, crash and move while prompts are answered."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from gennode.engine.contract import maximal_spans
from gennode.engine.sample import Sampling
from gennode.engine.toy import ToyOwner, ToyShard, toy_manifest
from gennode.errors import GennodeError
from gennode.node.hops.admission import MAX_SESSIONS
from gennode.node.moves.move import (
    Fetch,
    Load,
    MoveAction,
    MoveMachine,
    Pool,
    Restore,
    Unload,
    Withdraw,
    view_of,
)
from gennode.node.prompt import answer
from gennode.node.stories.story import undisturbed
from gennode.node.stories.swarm import SimulatedSwarm
from gennode.node.worker import Worker
from gennode.sharding.capacity import demand_of
from gennode.sharding.rebalance import after, next_moves, place, uncovered
from gennode.sharding.route.route import Route
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import Hop, PeerId, Span
from gennode.wire.snapshot import Candidate, LayerCost, Snapshot

LAYERS = 8
MANIFEST = toy_manifest(LAYERS)
MODEL, SHAPE, WHOLE = MANIFEST.model, MANIFEST.shape, Span(0, LAYERS)
WORKERS = 5
CAPACITIES = (2, 3, 4, 6)
ENOUGH = 1.5  # copies of the model that the first workers have room for
PROMPTS = 8
FAULTS = ("crash", "blackout", "leave")
LOOK_S = 0.25
HEAR_S = 3.0  # a newcomer listens for so long before it places itself
FIRST_S = 16.0  # when the first workers are all there
EVENT_S = 16.0  # from one event to the next: what it broke is mended by then
EVENTS = 4
COVER_LIMIT_S = 10.0  # nearly always; longer where who was named to close a gap fails at it
LONGEST_COVER_S = 2 * COVER_LIMIT_S
NOTICED_S = 4.0  # until then somebody may count on a worker that has lost power
PATIENCE_S = 20.0  # of who asks while some layers have nobody
STORY_LIMIT_S = 400.0


@dataclass
class MoveStory:
    """What came of one seed.

    `lost_by_move`: how often a layer lost its last host though all saw who was there.
    `cover_s`: after each fault that left a gap, until all layers had a host again.
    `moved_by_join`: per join without anything else going on, how many others moved.
    """

    seed: int
    right: int = 0
    wrong: int = 0
    refused: list[str] = field(default_factory=list)
    lost_by_move: int = 0
    cover_s: list[float] = field(default_factory=list)
    moved_by_join: list[int] = field(default_factory=list)
    moves: int = 0
    reached: int = 0
    events: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """All answers right, no layer lost by moving, gaps closed in time, few moved."""
        return (
            self.right == PROMPTS
            and self.lost_by_move == 0
            and max(self.cover_s, default=0.0) <= LONGEST_COVER_S
            and max(self.moved_by_join, default=0) <= 1
        )


class _Follower:
    """A simulated worker that moves; what the live shell does in real time."""

    def __init__(self, stage: _Stage, peer: PeerId, capacity_layers: int) -> None:
        self._stage = stage
        self._swarm = stage.swarm
        self.peer = peer
        self.capacity_layers = capacity_layers
        self.worker: Worker | None = None
        self.plan: tuple[Hop, ...] = ()
        self.actions = 0
        self._pool = Pool(MODEL, SHAPE)
        self._move = MoveMachine(peer, MODEL)
        self._fetch = 0

    @property
    def is_alive(self) -> bool:
        return self._swarm.peers[self.peer].alive

    @property
    def hosts(self) -> frozenset[int]:
        """The layers that it hosts for whoever asks."""
        if self.worker is None or not self.is_alive:
            return frozenset()
        spans = self.worker.hosting().spans
        return frozenset(layer for span in spans for layer in range(span.start, span.end))

    @property
    def has_arrived(self) -> bool:
        spans = self.worker.engine.spans() if self.worker else ()
        return all(hop.span in spans for hop in self.plan if hop.peer == self.peer)

    @property
    def candidate(self) -> Candidate:
        """What it would be worth, before it hosts anything."""
        cost, memory_bytes = LayerCost(0.001, 0.001), 1 << 40
        return Candidate(
            self.peer,
            self.capacity_layers,
            memory_bytes,
            MAX_SESSIONS,
            cost,
            0.0,
            0.0,
            Coordinate(),
        )

    def snapshot(self) -> Snapshot:
        machine = self._swarm.peers[self.peer].machine
        return self._pool.snapshot(machine.present(self._swarm.now_s))

    def join(self) -> None:
        """Choose layers, load them, announce them, and move from then on."""
        if not self.is_alive:
            return
        span = place(self.snapshot(), self.candidate)
        engine = ToyShard(MANIFEST)
        engine.load(span)
        self.worker = Worker(engine, LAYERS, self.capacity_layers, loads_on_request=False)
        self._swarm.host(self.peer, self.worker)
        self.look()

    def follow(self, plan: tuple[Hop, ...]) -> None:
        """A plan was accepted."""
        self.plan = plan

    def look(self) -> None:
        """What the live shell does a few times a second."""
        if not self.is_alive or self.worker is None:
            return
        now_s = self._swarm.now_s
        machine = self._swarm.peers[self.peer].machine
        view = view_of(self.worker, self.snapshot(), machine.present(now_s), self.plan)
        for action in self._move.tick(now_s, view):
            self._do(action, self.worker)
        self._swarm.after(LOOK_S, self.look)

    def _do(self, action: MoveAction, worker: Worker) -> None:
        rng, swarm = self._stage.rng, self._swarm
        self.actions += 1
        match action:
            case Fetch():
                self._fetch += 1
                fetch, fails = self._fetch, rng.random() < 0.1
                swarm.after(rng.uniform(0.1, 1.5), lambda: self._fetched(action, fetch, not fails))
            case Load():
                swarm.after(rng.uniform(0.1, 0.5), lambda: self._change(action, worker))
            case Unload():
                swarm.after(rng.uniform(0.0, 0.1), lambda: self._change(action, worker))
            case Withdraw():
                worker.withdraw(action.span)
                self._announce(worker)
            case Restore():
                worker.restore(action.span)
                self._announce(worker)

    def _fetched(self, action: Fetch, fetch: int, succeeded: bool) -> None:
        if fetch == self._fetch:  # else another has taken its place
            self._move.done(action, self._swarm.now_s, succeeded=succeeded)

    def _change(self, action: Load | Unload, worker: Worker) -> None:
        if not self.is_alive:
            return
        if isinstance(action, Load):
            worker.engine.load(action.span)
        else:
            worker.unload(action.span)
        self._announce(worker)
        self._move.done(action, self._swarm.now_s, succeeded=True)

    def _announce(self, worker: Worker) -> None:
        self._stage.look(fault=False)
        self._swarm.peers[self.peer].machine.learn(worker.hosting())


class _Stage:
    """The swarm of a story, what happens to it, and what is seen."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.swarm = SimulatedSwarm(self.rng.getrandbits(64))
        self.story = MoveStory(seed)
        self.owner = self.swarm.add()
        self.followers: list[_Follower] = []
        self._is_covered = False
        self._uncovered_s = 0.0
        self._fault_s = float("-inf")
        self.end_s = STORY_LIMIT_S
        self._quiet_join: dict[PeerId, int] | None = None

    def look(self, *, fault: bool) -> None:
        """Whether all layers have a host, right after something changed."""
        held = frozenset[int]().union(*(one.hosts for one in self.followers))
        is_covered = len(held) == LAYERS
        now_s = self.swarm.now_s
        if fault:
            self._fault_s = now_s
        if self._is_covered and not is_covered:
            self.story.lost_by_move += now_s - self._fault_s > NOTICED_S
            self._uncovered_s = now_s
        elif is_covered and not self._is_covered and self._uncovered_s:
            self.story.cover_s.append(now_s - self._uncovered_s)
        self._is_covered = is_covered

    def keep_looking(self) -> None:
        """A last look tells of gaps that nobody ever closed."""
        self.look(fault=False)
        if not self._is_covered and self._uncovered_s:
            self.story.cover_s.append(self.swarm.now_s - self._uncovered_s)

    # -- events -------------------------------------------------------------------------------

    def join(self, capacity_layers: int) -> None:
        """Somebody comes."""
        follower = _Follower(self, self.swarm.add(), capacity_layers)
        self.followers.append(follower)
        self.swarm.after(HEAR_S, follower.join)

    def event(self, index: int) -> None:
        """Somebody joins, leaves or crashes, or a plan has others move."""
        self._count_moved()
        kind = self.rng.choice(["join", "plan", "plan", "plan", *FAULTS, *FAULTS])
        told = True
        if kind == "join":
            is_quiet = all(one.has_arrived for one in self.followers if one.is_alive)
            before = {one.peer: one.actions for one in self.followers}
            self.join(self.rng.choice(CAPACITIES))
            self._quiet_join = before if is_quiet and self._is_covered else None
        elif kind == "plan":
            told = self._plan()
        else:
            told = self._hurt(kind)
        self.story.events.append(f"{kind if told else 'nothing'} at {self.swarm.now_s:.1f} s")
        self.end_s = self.swarm.now_s + EVENT_S
        if index + 1 < EVENTS:
            self.end_s += STORY_LIMIT_S
            self.swarm.after(self.rng.uniform(EVENT_S, 2 * EVENT_S), lambda: self.event(index + 1))

    def _count_moved(self) -> None:
        if self._quiet_join is not None:
            before = self._quiet_join
            moved = [one.actions > before.get(one.peer, one.actions) for one in self.followers]
            self.story.moved_by_join.append(sum(moved))
            self._quiet_join = None

    def _plan(self) -> bool:
        """A plan that covers the model, made by chance; it spreads within two seconds."""
        alive = [one for one in self.followers if one.is_alive and one.worker]
        self.rng.shuffle(alive)
        hops: list[Hop] = []
        end = 0
        for one in alive:
            width = min(one.capacity_layers, LAYERS)
            start = (
                min(end, LAYERS - width) if end < LAYERS else self.rng.randint(0, LAYERS - width)
            )
            hops.append(Hop(one.peer, Span(start, start + width)))
            end = max(end, start + width)
        if end < LAYERS:
            return False
        for one in self.followers:
            self.swarm.after(self.rng.uniform(0, 2.0), partial(one.follow, tuple(hops)))
        return True

    def _hurt(self, kind: str) -> bool:
        """Take somebody away whom the others can replace."""
        alive = [one for one in self.followers if one.is_alive and one.worker]
        self.rng.shuffle(alive)
        for victim in sorted(alive, key=lambda one: not self._is_alone(one)):
            rest = [one for one in alive if one is not victim]
            if self._is_covered and _can_cover(rest):
                self._take_away(victim.peer, kind)
                self.look(fault=True)
                return True
        return False

    def _is_alone(self, follower: _Follower) -> bool:
        """Whether nobody else hosts some of its layers."""
        others = (one.hosts for one in self.followers if one is not follower)
        return not follower.hosts <= frozenset[int]().union(*others)

    def _take_away(self, peer: PeerId, kind: str) -> None:
        swarm = self.swarm
        if kind == "leave":
            others = {one: "" for one in swarm.peers if one != peer}
            swarm.act(peer, swarm.peers[peer].machine.leave(swarm.now_s, others))
        if kind == "blackout":
            swarm.blackout(peer)
        else:
            swarm.crash(peer)


def _can_cover(followers: Sequence[_Follower]) -> bool:
    """Whether these cover the model, with one move each if need be."""
    held = {one.peer: maximal_spans(one.hosts) for one in followers}
    peers = tuple(
        msgspec.structs.replace(one.candidate, held=max(held[one.peer], key=_width))
        for one in followers
        if held[one.peer]
    )
    pool = Snapshot(MODEL, 0, demand_of(SHAPE), peers)
    for move in next_moves(pool):
        pool = after(pool, move)
    return not uncovered(pool)


def _width(span: Span) -> int:
    return span.layers


def tell_move(seed: int) -> MoveStory:
    """Run the story of one seed. A pure function of it."""
    stage = _Stage(seed)
    rng, swarm = stage.rng, stage.swarm
    capacities = [rng.choice(CAPACITIES) for _ in range(WORKERS)]
    while sum(capacities) < ENOUGH * LAYERS:
        capacities.append(rng.choice(CAPACITIES))
    for index, capacity in enumerate(capacities):
        swarm.after(index * rng.uniform(0, 1.5), partial(stage.join, capacity))
    prompts = [_Prompt(stage, index) for index in range(PROMPTS)]
    for prompt in prompts:
        at_s = FIRST_S + rng.uniform(0, EVENTS * EVENT_S)
        swarm.after(at_s, partial(prompt.begin, rng))
    swarm.after(FIRST_S, lambda: stage.event(0))
    swarm.run(
        STORY_LIMIT_S,
        done=lambda: swarm.now_s > stage.end_s and all(prompt.is_over for prompt in prompts),
    )
    stage.keep_looking()
    stage.story.moves = sum(one.actions > 0 for one in stage.followers)
    stage.story.reached = sum(one.has_arrived for one in stage.followers if one.is_alive)
    return stage.story


@dataclass
class _Prompt:
    """One prompt, and what came of it."""

    stage: _Stage
    index: int
    is_over: bool = False
    waited_s: float = 0.0

    def begin(self, rng: random.Random) -> None:
        """Ask as soon as all layers have somebody, as the owner sees it."""
        swarm, owner = self.stage.swarm, self.stage.owner
        owning = swarm.peers[owner].machine.owning
        route = owning.warm_route(MODEL, WHOLE, owner, frozenset(), swarm.now_s)
        if not isinstance(route, Route) and self.waited_s < PATIENCE_S:
            self.waited_s += LOOK_S
            swarm.after(LOOK_S, partial(self.begin, rng))
        else:
            swarm.spawn(self._ask(rng))

    async def _ask(self, rng: random.Random) -> None:
        story = self.stage.story
        text = f"move {story.seed}, {self.index}"
        sampling = Sampling(max_tokens=rng.choice([8, 40, 160]))
        handle = self.stage.swarm.owner(self.stage.owner)
        tokens: list[int] = []
        try:
            async for token in answer(text, ToyOwner(MANIFEST), handle, sampling):
                tokens.append(token)
        except GennodeError as error:
            story.refused.append(str(error))
        truth = undisturbed(MANIFEST, text, sampling)
        story.right += tokens == truth
        story.wrong += tokens != truth[: len(tokens)]
        self.is_over = True
