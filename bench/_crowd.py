"""A pool of workers in three regions, token by token: what routes are worth once many share it.

Workers take all tokens that wait, one per session, through their layers in one pass, which takes
`fixed_s` per layer and `token_s` per layer and token. A token goes from hop to hop and around to
its owner, who then sends the next. Each worker announces its sessions every 10 s, as the product
does when there is no other news; all owners see that half a second later, and nothing else.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gennode.sharding.route.route import LinkTime
from gennode.wire.announcement import Announcement, Hosting
from gennode.wire.ids import ModelId, PeerId, Span

MODEL = ModelId("c" * 64)
LAYERS = 32
WHOLE = Span(0, LAYERS)
REGION_RTT_S = ((0.004, 0.080, 0.150), (0.080, 0.004, 0.110), (0.150, 0.110, 0.004))
REGION_DEMAND = (0.5, 0.3, 0.2)
LINE_S = (0.001, 0.008)  # of round trip, on a peer's own line
FRAME_BYTES = 4300  # 4,096 numbers in int8 with outliers
UPLOAD_BYTES_PER_S = (1.25e6, 12.5e6)
LAYER_FIXED_S = (0.001, 0.006)
TOKEN_SHARE = (0.2, 0.6)  # what a further token takes, of what the first one does beside it
STAGES = 4  # workers of a chain
MAX_SESSIONS = 64
ANNOUNCE_S, SPREAD_S = 10.0, 0.5
ANSWER_TOKENS, ANSWER_SIGMA = 48, 0.8  # median and spread of the logarithm
MAX_ANSWER_TOKENS = 400
BURSTINESS = 9.0  # squared coefficient of variation of the times between bursty arrivals
OWNERS = 24
RETRY_S = 0.5
SETTLE_S = 20.0

Path = Sequence[tuple[int, int]]
"""(worker, layers) per hop."""


@dataclass(frozen=True)
class Machine:
    """One worker of the pool."""

    peer: PeerId
    region: int
    span: Span
    fixed_s: float
    token_s: float


@dataclass(frozen=True)
class Scene:
    """A pool: its workers, its fixed chains (workers in order), its owners, its links."""

    machines: tuple[Machine, ...]
    chains: tuple[tuple[int, ...], ...]
    owners: tuple[PeerId, ...]
    owner_weights: tuple[float, ...]
    link_s: LinkTime

    @property
    def rate_token_s(self) -> float:
        """Tokens per second that the chains carry if all get the same share."""
        slowest = min(
            1 / (self.machines[one].token_s * self.machines[one].span.layers)
            for chain in self.chains
            for one in chain
        )
        return slowest * len(self.chains)


def make_scene(seed: int, workers: int, *, regional: bool) -> Scene:
    """A pool whose chains are as even as its machines allow: the best case for taking turns.

    Machines are dealt to chains so that all get about the same speed, and share a chain's layers
    in proportion to theirs. `regional`: each chain lies in one region; else chains are formed
    without regard to the network, as Parallax forms them.
    """
    rng = random.Random(seed)
    regions: dict[PeerId, int] = {}
    lines_s: dict[PeerId, float] = {}
    frame_s: dict[PeerId, float] = {}

    def add(name: str, region: int) -> PeerId:
        peer = PeerId(name)
        regions[peer], lines_s[peer] = region, rng.uniform(*LINE_S)
        frame_s[peer] = FRAME_BYTES / rng.uniform(*UPLOAD_BYTES_PER_S)
        return peer

    machines: list[Machine] = []
    chains: list[tuple[int, ...]] = []
    each = max(1, round(workers / 3 / STAGES))
    pools = [(each, [region]) for region in range(3)] if regional else [(3 * each, [0, 1, 2])]
    for count, places in pools:
        for group in _groups(rng, count):
            start, chain = 0, []
            for (token_s, fixed_s), layers in zip(group, _shares(group), strict=True):
                chain.append(len(machines))
                region, span = rng.choice(places), Span(start, start + layers)
                peer = add(f"w{len(machines):03}", region)
                machines.append(Machine(peer, region, span, fixed_s, token_s))
                start += layers
            chains.append(tuple(chain))
    rng.shuffle(chains)
    owners = tuple(add(f"o{index:03}", index % 3) for index in range(OWNERS))
    weights = tuple(REGION_DEMAND[index % 3] for index in range(OWNERS))

    def link_s(here: PeerId, there: PeerId) -> float:
        rtt_s = REGION_RTT_S[regions[here]][regions[there]] + lines_s[here] + lines_s[there]
        return rtt_s / 2 + frame_s[here]

    return Scene(tuple(machines), tuple(chains), owners, weights, link_s)


def _groups(rng: random.Random, count: int) -> list[list[tuple[float, float]]]:
    """Machines (what a token and what a pass takes per layer) in groups of about equal speed."""
    speeds = []
    for _ in range(count * STAGES):
        fixed_s = rng.uniform(*LAYER_FIXED_S)
        speeds.append((fixed_s * rng.uniform(*TOKEN_SHARE), fixed_s))
    groups: list[list[tuple[float, float]]] = [[] for _ in range(count)]
    for speed in sorted(speeds):
        not_full = [group for group in groups if len(group) < STAGES]
        min(not_full, key=lambda group: sum(1 / one[0] for one in group)).append(speed)
    for group in groups:
        rng.shuffle(group)
    return groups


def _shares(group: Sequence[tuple[float, float]]) -> list[int]:
    """Layers per machine, so that the fullest one is as little full as can be."""
    layers = [0] * len(group)
    for _ in range(LAYERS):
        least = min(range(len(group)), key=lambda one: (layers[one] + 1) * group[one][0])
        layers[least] += 1
    return layers


class Policy(Protocol):
    """How owners choose."""

    def choose(self, owner: int, full: frozenset[PeerId]) -> Path | None:
        """A path for a new session, round workers that just refused; None if there is none."""


@dataclass(slots=True)
class Session:
    """An answer that is being made."""

    owner: int
    tokens: int
    asked_s: float
    path: Path = ()
    links_s: Sequence[float] = ()
    done: int = 0
    hop: int = 0


@dataclass
class Outcome:
    """What was measured: seconds per token of each answer, waiting included; refusals."""

    times_s: list[float] = field(default_factory=list)
    refusals: int = 0


class Crowd:
    """The events of one run. A pure function of the scene, the policy and the seed."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.sessions = [0] * len(scene.machines)
        self.announcements = [_announcement(one, 0) for one in scene.machines]
        self.version = 0
        self.changes: list[dict[int, list[tuple[float, int]]]] = [{} for _ in scene.owners]
        """Per owner and worker: when it opened (1) and closed (-1) sessions there."""
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = 0
        self._waiting: list[list[Session]] = [[] for _ in scene.machines]
        self._busy = [False] * len(scene.machines)
        self._outcome = Outcome()

    def _after(self, delay_s: float, call: Callable[..., None], *arguments: object) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self.now_s + delay_s, self._order, call, arguments))

    def run(self, policy: Policy, rate_token_s: float, until_s: float, *, bursty: bool) -> Outcome:
        """Ask at a rate until a time, and wait for the last answer."""
        chance, weights = random.Random(self.rng.random()), self.scene.owner_weights
        mean = ANSWER_TOKENS * math.exp(ANSWER_SIGMA**2 / 2)
        shape = 1 / BURSTINESS if bursty else 1.0
        at_s = 0.0
        while at_s < until_s:
            at_s += chance.gammavariate(shape, mean / rate_token_s / shape)
            tokens = round(chance.lognormvariate(math.log(ANSWER_TOKENS), ANSWER_SIGMA))
            [owner] = chance.choices(range(len(weights)), weights)
            session = Session(owner, min(MAX_ANSWER_TOKENS, max(1, tokens)), at_s)
            self._after(at_s, self._ask, session, policy, frozenset())
        for worker in range(len(self.sessions)):
            self._after(chance.uniform(0, ANNOUNCE_S), self._announce, worker, until_s)
        heap = self._heap
        while heap:
            self.now_s, _, call, arguments = heapq.heappop(heap)
            call(*arguments)
        return self._outcome

    def _announce(self, worker: int, until_s: float) -> None:
        announcement = _announcement(self.scene.machines[worker], self.sessions[worker])
        self._after(SPREAD_S, self._see, worker, announcement, self.now_s)
        if self.now_s < until_s:
            self._after(ANNOUNCE_S, self._announce, worker, until_s)

    def _see(self, worker: int, announcement: Announcement, made_s: float) -> None:
        self.announcements[worker] = announcement
        self.version += 1
        for changes in self.changes:
            if worker in changes:
                changes[worker] = [one for one in changes[worker] if one[0] > made_s]

    def _ask(self, session: Session, policy: Policy, full: frozenset[PeerId]) -> None:
        path = policy.choose(session.owner, full)
        if path is None:
            self._after(RETRY_S, self._ask, session, policy, frozenset())
            return
        owner, machines = self.scene.owners[session.owner], self.scene.machines
        refused = [one for one, _ in path if self.sessions[one] >= MAX_SESSIONS]
        peers = [owner, *(machines[one].peer for one, _ in path), owner]
        if refused:
            self._outcome.refusals += 1
            peer = machines[refused[0]].peer
            wait_s = self.scene.link_s(owner, peer) + self.scene.link_s(peer, owner)
            self._after(wait_s, self._ask, session, policy, full | {peer})
            return
        session.path = path
        session.links_s = [
            0.0 if here == there else self.scene.link_s(here, there)
            for here, there in itertools.pairwise(peers)
        ]
        self._count(session, 1)
        self._after(session.links_s[0], self._arrive, session)

    def _count(self, session: Session, change: int) -> None:
        changes = self.changes[session.owner]
        for worker in {worker for worker, _ in session.path}:
            self.sessions[worker] += change
            changes.setdefault(worker, []).append((self.now_s, change))

    def _arrive(self, session: Session) -> None:
        """A token comes to its next hop, or around to its owner."""
        if session.hop < len(session.path):
            worker = session.path[session.hop][0]
            self._waiting[worker].append(session)
            if not self._busy[worker]:
                self._pass(worker)
            return
        session.hop, session.done = 0, session.done + 1
        if session.done < session.tokens:
            self._after(session.links_s[0], self._arrive, session)
            return
        self._count(session, -1)
        if session.asked_s >= SETTLE_S:
            self._outcome.times_s.append((self.now_s - session.asked_s) / session.tokens)

    def _pass(self, worker: int) -> None:
        machine, batch = self.scene.machines[worker], self._waiting[worker]
        self._waiting[worker], self._busy[worker] = [], True
        layers = [session.path[session.hop][1] for session in batch]
        pass_s = max(layers) * machine.fixed_s + sum(layers) * machine.token_s
        self._after(pass_s, self._passed, worker, batch)

    def _passed(self, worker: int, batch: list[Session]) -> None:
        self._busy[worker] = False
        for session in batch:
            session.hop += 1
            self._after(session.links_s[session.hop], self._arrive, session)
        if self._waiting[worker]:
            self._pass(worker)

    def opened(self, owner: int) -> dict[PeerId, int]:
        """Sessions that an owner opened less those it closed, since what it sees was announced."""
        machines = self.scene.machines
        return {
            machines[worker].peer: sum(change for _, change in changes)
            for worker, changes in self.changes[owner].items()
            if changes
        }


def _announcement(machine: Machine, sessions: int) -> Announcement:
    hosting = Hosting(
        model=MODEL,
        spans=(machine.span,),
        spare_layers=0,
        layer_time_s=machine.fixed_s + machine.token_s,
        load_time_s=0.0,
        max_sessions=MAX_SESSIONS,
        compute_class="simulated",
        further_time_s=machine.token_s,
    )
    return Announcement(machine.peer, 1, 0, 30.0, (hosting,), sessions, False, "unknown", ())
