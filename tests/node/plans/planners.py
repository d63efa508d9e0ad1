"""Peers that plan one model together on a heap of events: views that lag, messages that are lost.

Each has clocks of its own, and runs the product's planning machine. What it decides with is a
rule of a few lines, pure as the product's.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from random import Random

import msgspec

from gennode.errors import LocalError, RemoteError
from gennode.node.actions import Send
from gennode.node.plans.planning import Accepted, Judge, PlanAction, PlanMessage, PlanningMachine
from gennode.node.plans.proposals import Refused
from gennode.node.plans.witness import PACE, Pace
from gennode.wire.announcement import Announcement, Hosting, Machine
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import Hop, ModelId, PeerId, Span
from gennode.wire.messages import PlanDigest, PlanSent, PlanWanted
from gennode.wire.signing import Key
from gennode.wire.snapshot import Candidate, Demand, LayerCost, Snapshot

MODEL = ModelId("a" * 64)
LAYERS = 24
DEMAND = Demand(LAYERS, 1 << 20, 1 << 16, 4096)
KEYS = [Key(bytes([number, 77]) * 16) for number in range(64)]
TICK_S = 0.5
EPOCH_ZERO_S = 1_800_000_000.0


@dataclass(frozen=True)
class ToyPlan:
    """Who hosts what."""

    hosts: tuple[Hop, ...]

    @cached_property
    def digest(self) -> bytes:
        return hashlib.sha256(msgspec.msgpack.encode(self.hosts)).digest()


@dataclass(frozen=True)
class ToyDecision:
    """A plan, if one is due."""

    plan: ToyPlan | None
    why: str = ""


def decide(snapshot: Snapshot) -> ToyDecision:
    """Hand out the layers in the order of peers, again and again; due if a quarter has others."""
    layers, start, hosts, full = snapshot.demand.layers, 0, list[Hop](), False
    for one in sorted(snapshot.peers, key=lambda one: one.peer):
        end = min(layers, start + one.capacity_layers)
        if start < end:
            hosts.append(Hop(one.peer, Span(start, end)))
        full = full or end == layers
        start = end % layers
    if not full:
        return ToyDecision(None, "too few layers fit")
    held = {one.peer: one.held for one in snapshot.peers}
    others = sum(held[hop.peer] != hop.span for hop in hosts)
    if 4 * others <= len(hosts):
        return ToyDecision(None, "too little to gain")
    return ToyDecision(ToyPlan(tuple(hosts)))


def announced(
    peer: PeerId, *, capacity: int = 8, held: Span | None = None, sequence: int = 1,
    layer_time_s: float = 0.01,
) -> Announcement:  # fmt: skip
    """What a peer says that could host so many layers in all."""
    spans = (held,) if held else ()
    spare = capacity - (held.layers if held else 0)
    hosting = Hosting(MODEL, spans, spare, layer_time_s, 0.5, 16, "fp32-cpu")
    machine = Machine(1 << 30, 1e12, 1e10, 0.001, 1e7, Coordinate())
    return Announcement(
        peer, sequence, 0, 30.0, (hosting,), 0, False, "direct", (), machine=machine
    )


def take(announcements: Sequence[Announcement], epoch: int) -> Snapshot:
    """A pool as announcements show it."""
    pairs = [(one, one.hosting_of(MODEL)) for one in sorted(announcements, key=lambda a: a.peer)]
    return Snapshot(
        MODEL, epoch, DEMAND, tuple(_candidate(one, hosting) for one, hosting in pairs if hosting)
    )


def _candidate(one: Announcement, hosting: Hosting) -> Candidate:
    held = hosting.spans[0] if hosting.spans else Span(0, 0)
    cost = LayerCost(hosting.layer_time_s, hosting.layer_time_s)
    capacity = held.layers + hosting.spare_layers
    machine = one.machine or Machine(1 << 20, 0, 0, 0, 0, Coordinate())
    return Candidate(
        one.peer, capacity, machine.memory_bytes, 16, cost, machine.pass_s,
        machine.upload_bytes_per_s, machine.coordinate, held, hosting.load_time_s,
    )  # fmt: skip


@dataclass(frozen=True)
class Weather:
    """What happens on the way."""

    loss: float = 0.0
    delay_s: tuple[float, float] = (0.005, 0.3)
    news_s: float = 4.0
    """Until an announcement, or a death, is known to everybody."""
    skew_s: float = 0.0
    decide_s: float = 0.5


@dataclass
class Planner:
    """One peer: its machine, its clocks, whom it sees."""

    machine: PlanningMachine
    skew_s: float
    clock_s: float
    announcement: Announcement
    view: dict[PeerId, Announcement] = field(default_factory=dict)
    is_alive: bool = True
    is_mute: bool = False
    accepted: list[tuple[float, Accepted]] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    @property
    def plan(self) -> tuple[PeerId, int, bytes] | None:
        """Whose plan it follows, of which epoch, and which."""
        last = self.accepted[-1][1] if self.accepted else None
        return (last.publisher, last.epoch, last.plan.digest) if last else None


class Planners:
    """A swarm of them."""

    def __init__(self, rng: Random, weather: Weather, *, start_s: float, pace: Pace = PACE) -> None:
        self.rng = rng
        self.weather = weather
        self.pace = pace
        self.start_s = start_s  # since 1970
        self.now_s = 0.0
        self.planners: dict[PeerId, Planner] = {}
        self._groups: dict[PeerId, int] = {}
        self._is_news = True
        self.hostile: dict[PeerId, Callable[[PeerId, PlanMessage, bytes], None]] = {}
        """Those that do as they like with what they are sent."""
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()

    # -- the cast -----------------------------------------------------------------------------

    def join(self, key: Key, *, capacity: int, held: Span | None = None) -> Planner:
        """A peer that everybody hears of within seconds, and that hears of everybody."""
        rng, weather = self.rng, self.weather
        machine = PlanningMachine(key, MODEL, take, Random(rng.getrandbits(32)), self.pace)
        planner = Planner(
            machine,
            rng.uniform(-weather.skew_s, weather.skew_s),
            rng.uniform(0, 1e6),
            announced(key.peer, capacity=capacity, held=held),
        )
        for other in self.planners.values():
            if other.is_alive:
                self._tell(planner, other.announcement)
        self.planners[key.peer] = planner
        self.announce(planner.announcement)
        self.after(rng.uniform(0, TICK_S), lambda: self._tick(key.peer))
        return planner

    def announce(self, announcement: Announcement) -> None:
        """Have a peer say something new about itself."""
        self.planners[announcement.peer].announcement = announcement
        self.planners[announcement.peer].view[announcement.peer] = announcement
        for planner in self.planners.values():
            self._tell(planner, announcement)

    def crash(self, peer: PeerId) -> None:
        """Take a peer away; all notice within seconds."""
        self.planners[peer].is_alive = False
        for planner in self.planners.values():
            delay_s = self.rng.uniform(0, self.weather.news_s)
            self.after(delay_s, partial(planner.view.pop, peer, None))

    def _tell(self, planner: Planner, announcement: Announcement) -> None:
        def arrive() -> None:
            known = planner.view.get(announcement.peer)
            is_alive = self.planners[announcement.peer].is_alive
            is_cut = not self._reach(announcement.peer, planner.machine.peer)
            if is_cut:
                return
            if is_alive and (known is None or known.sequence < announcement.sequence):
                planner.view[announcement.peer] = announcement

        self.after(self.rng.uniform(0, self.weather.news_s), arrive)

    def split(self, groups: dict[PeerId, int]) -> None:
        """Let peers of different groups reach each other no more."""
        self._groups = groups

    def join_up(self) -> None:
        """Undo a split; what either side missed comes soon."""
        self._groups = {}
        for one in self.planners.values():
            for planner in self.planners.values():
                self._tell(planner, one.announcement)

    def _reach(self, one: PeerId, other: PeerId) -> bool:
        return self._groups.get(one, 0) == self._groups.get(other, 0)

    def live(self) -> list[Planner]:
        """All who are there and behave."""
        return [
            one
            for peer, one in self.planners.items()
            if one.is_alive and not one.is_mute and peer not in self.hostile
        ]

    # -- time ---------------------------------------------------------------------------------

    def after(self, delay_s: float, event: Callable[[], object]) -> None:
        """Have something happen later."""
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._order), event))

    def run(self, until_s: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let events happen until a time, or until somebody accepts a plan and something holds."""
        self._is_news = True
        while self._events and self._events[0][0] <= until_s:
            if self._is_news and done():
                return
            self._is_news = False
            self.now_s, _, event = heapq.heappop(self._events)
            event()
        self.now_s = until_s

    def _tick(self, peer: PeerId) -> None:
        one = self.planners[peer]
        if one.is_alive:
            now_s, unix_s = self.now_s + one.clock_s, self.start_s + self.now_s + one.skew_s
            live = [one.view[other] for other in sorted(one.view)]
            self.act(peer, one.machine.tick(now_s, unix_s, live))
            self.after(TICK_S, lambda: self._tick(peer))

    # -- acting -------------------------------------------------------------------------------

    def act(self, peer: PeerId, actions: Sequence[PlanAction]) -> None:
        """Do what a machine asks for."""
        one = self.planners[peer]
        for action in actions:
            match action:
                case Send():
                    if not isinstance(action.message, PlanDigest | PlanWanted | PlanSent):
                        raise LocalError("a message that is not about plans")
                    if not one.is_mute and peer not in self.hostile:
                        self.send(peer, action.peer, action.message, bytes(action.payload))
                case Judge():
                    delay_s = self.rng.uniform(0, self.weather.decide_s)
                    self.after(delay_s, partial(self._judged, peer, action))
                case Accepted():
                    one.accepted.append((self.now_s, action))
                    self._is_news = True
                case Refused():
                    one.refused.append(action)

    def _judged(self, peer: PeerId, job: Judge) -> None:
        one = self.planners[peer]
        now_s = self.now_s + one.clock_s
        self.act(peer, one.machine.judged(job.job, decide(job.snapshot), now_s))

    def send(self, sender: PeerId, target: PeerId, message: PlanMessage, payload: bytes) -> None:
        """Send something from anybody to anybody; it may be lost."""
        if self._reach(sender, target) and self.rng.random() >= self.weather.loss:
            delay_s = self.rng.uniform(*self.weather.delay_s)
            self.after(delay_s, lambda: self._arrive(sender, target, message, payload))

    def _arrive(self, sender: PeerId, target: PeerId, message: PlanMessage, payload: bytes) -> None:
        if target in self.hostile:
            self.hostile[target](sender, message, payload)
            return
        one = self.planners[target]
        if not one.is_alive:
            return
        try:
            actions = one.machine.receive(sender, message, payload, self.now_s + one.clock_s)
        except RemoteError as error:
            if sender in self.hostile:
                return
            raise LocalError(f"an honest peer was blamed: {error}") from error
        self.act(target, actions)
