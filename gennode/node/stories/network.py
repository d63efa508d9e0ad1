"""The simulated network: links that keep their order, stall, break, come back or are given up.

As on the product's links (`mesh/links/`), frames are numbered: a link that breaks for a moment
loses nothing and doubles nothing, it is only late. One that stays broken is given up on, and
all that waited on it is lost. Beyond what links allow, a story may have copies of messages come
a second time, late and in any order: machines promise to be idempotent.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from gennode.node.stories.heap import Heap
from gennode.node.stories.trace import Trace
from gennode.wire.frames import Buffer, FrameDecoder, encode
from gennode.wire.ids import PeerId
from gennode.wire.messages import (
    Accept,
    CachePart,
    Credit,
    Failed,
    Fed,
    Leaving,
    Message,
    Open,
    Pong,
    Refuse,
    Step,
)

RESUME_LIMIT_S = 3.0  # how long a link tries to come back before it calls its peer down
DECODE_EVERY = 16  # messages: the others are delivered as they were sent, which is quicker
MAY_STRAY = (Accept, CachePart, Credit, Failed, Fed, Leaving, Open, Pong, Refuse, Step)
"""What may come a second time. Not Close: it names no attempt, since a session closes once."""

Edge = tuple[PeerId, PeerId]
Deliver = Callable[[PeerId, PeerId, Message, bytes], float]
"""Source, target, message, payload → when to try again, or 0 if it was taken."""


@dataclass(frozen=True)
class Weather:
    """How the simulated network and machines behave."""

    delay_s: tuple[float, float] = (0.001, 0.03)
    distance_s: tuple[float, float] = (0.0, 0.0)
    """Of two peers, one way, drawn once for each pair; comes on top of `delay_s`."""
    stall_chance: float = 0.02  # a link pauses, as one that is reset and resumed does
    stall_s: tuple[float, float] = (0.05, 0.6)
    stray_chance: float = 0.0  # a copy of a message comes a second time
    stray_s: tuple[float, float] = (0.0, 3.0)
    step_time_s: tuple[float, float] = (0.001, 0.02)
    load_time_s: float = 0.3
    tick_s: float = 0.05
    idle_tick_s: float = 0.05
    """Between ticks of peers without sessions of their own: little waits for those."""


@dataclass
class _Link:
    """Frames from one peer to another."""

    source: PeerId
    target: PeerId
    distance_s: float
    free_s: float = 0.0
    sent: int = 0
    life: int = 0  # grows when it is given up: what was under way then never arrives
    heals: int = 0
    is_up: bool = True
    is_doubted: bool = False  # whether it will be judged soon
    is_given_up: bool = False  # and its source is about to hear of it
    held: list[_Parcel] = field(default_factory=list)


class _Parcel(NamedTuple):
    link: _Link
    life: int
    number: int
    message: Message
    payload: bytes
    data: bytes | None = None  # where it goes as bytes


class Network:
    """All links. `deliver` hands a message over, `down` tells a peer that another is gone."""

    def __init__(
        self,
        heap: Heap,
        rng: random.Random,
        weather: Weather,
        trace: Trace,
        deliver: Deliver,
        down: Callable[[PeerId, PeerId], None],
    ) -> None:
        self.weather = weather
        self.strays = 0
        self.given_up = 0
        self._heap = heap
        self._rng = rng
        self._trace = trace
        self._deliver = deliver
        self._down = down
        self._links: dict[Edge, _Link] = {}
        self._distances_s: dict[frozenset[PeerId], float] = {}
        self._cuts: Counter[Edge] = Counter()
        self._gone_s: dict[PeerId, tuple[float, float]] = {}
        self._sent = 0

    def send(self, source: PeerId, target: PeerId, message: Message, payload: Buffer) -> None:
        """Take a message on; it arrives later, or its sender hears that the peer is gone."""
        link = self._link(source, target)
        self._sent += 1
        link.sent += 1
        header, _ = encode(message, payload)
        body = bytes(payload)
        self._trace.note(self._heap.now_s, header, body)
        data = header + body if self._sent % DECODE_EVERY == 0 else None
        if link.is_given_up:
            return
        parcel = _Parcel(link, link.life, link.sent, message, body, data)
        if target in self._gone_s:
            self._give_up(link, self._rng.uniform(*self._gone_s[target]))
        elif self._cuts and self._is_broken(link):
            self._doubt(link)
            if link.is_up and (source, target) not in self._cuts:
                self._travel(parcel)  # only acknowledgements don't come back
            else:
                link.held.append(parcel)
        else:
            link.is_up = True
            self._travel(parcel)
            if self.weather.stray_chance and isinstance(message, MAY_STRAY):
                self._stray(parcel)

    # -- faults -------------------------------------------------------------------------------

    def cut(self, edges: Iterable[Edge], duration_s: float) -> None:
        """Nothing gets through these ways for a while. Cuts may overlap."""
        cut = list(edges)
        self._cuts.update(cut)
        self._heap.after(duration_s, partial(self._heal, cut))

    def gone(
        self, peer: PeerId, others: Iterable[PeerId], told_after_s: tuple[float, float]
    ) -> None:
        """A process is no more: its links are given up after a time within these limits."""
        self._gone_s[peer] = told_after_s
        for other in others:
            if other != peer:
                self._give_up(self._link(other, peer), self._rng.uniform(*told_after_s))

    def back(self, peer: PeerId) -> None:
        """A process runs again."""
        del self._gone_s[peer]

    # -- links --------------------------------------------------------------------------------

    def _link(self, source: PeerId, target: PeerId) -> _Link:
        link = self._links.get((source, target))
        if link is None:
            pair = frozenset((source, target))
            distance_s = self._distances_s.get(pair)
            if distance_s is None:
                distance_s = self._distances_s[pair] = self._rng.uniform(*self.weather.distance_s)
            link = self._links[source, target] = _Link(source, target, distance_s)
        return link

    def _is_broken(self, link: _Link) -> bool:
        return (link.source, link.target) in self._cuts or (link.target, link.source) in self._cuts

    def _travel(self, parcel: _Parcel) -> None:
        rng, weather, link = self._rng, self.weather, parcel.link
        delay_s = link.distance_s + rng.uniform(*weather.delay_s)
        if rng.random() < weather.stall_chance:
            delay_s += rng.uniform(*weather.stall_s)
        link.free_s = max(self._heap.now_s + delay_s, link.free_s + 1e-6)  # links keep their order
        self._heap.at(link.free_s, partial(self._arrive, parcel))

    def _stray(self, parcel: _Parcel) -> None:
        if self._rng.random() < self.weather.stray_chance:
            self.strays += 1
            delay_s = parcel.link.distance_s + self._rng.uniform(*self.weather.stray_s)
            self._heap.after(delay_s, partial(self._arrive, parcel))

    def _arrive(self, parcel: _Parcel) -> None:
        link = parcel.link
        if parcel.life != link.life:
            return
        if self._cuts and (link.source, link.target) in self._cuts:
            link.held.append(parcel)  # sent again when the link is back
            self._doubt(link)
            return
        message, payload = parcel.message, parcel.payload
        if parcel.data is not None:
            [(message, payload)] = FrameDecoder().feed(parcel.data)
        wait_until_s = self._deliver(link.source, link.target, message, payload)
        if wait_until_s:
            self._heap.at(wait_until_s, partial(self._arrive, parcel))

    def _doubt(self, link: _Link) -> None:
        if not link.is_doubted:
            link.is_doubted = True
            self._heap.after(RESUME_LIMIT_S, partial(self._judge, link, link.life, link.heals))

    def _judge(self, link: _Link, life: int, heals: int) -> None:
        link.is_doubted = False
        if link.life != life or not self._is_broken(link):
            return
        if link.heals != heals:  # it came back meanwhile, and broke again
            self._doubt(link)
        else:
            self._give_up(link, 0.0)

    def _give_up(self, link: _Link, delay_s: float) -> None:
        """Whoever sends on this link hears of it once; until then, all that it sends is lost."""
        if link.is_given_up:
            return
        self.given_up += 1
        link.life += 1
        link.held.clear()
        link.is_given_up = True
        self._heap.after(delay_s, partial(self._tell, link))

    def _tell(self, link: _Link) -> None:
        link.is_given_up = link.is_up = False
        self._down(link.source, link.target)

    def _heal(self, edges: list[Edge]) -> None:
        self._cuts -= Counter(edges)  # which drops those that are at zero
        for source, target in dict.fromkeys([*edges, *((b, a) for a, b in edges)]):
            link = self._link(source, target)
            if not self._is_broken(link):
                link.heals += 1
                held, link.held = sorted(link.held, key=lambda one: one.number), []
                for parcel in held:
                    self._travel(parcel)
