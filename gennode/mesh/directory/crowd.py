"""Thousands of directories on a heap of events: lost messages, crashes and joins, no sockets.

Each peer has a clock of its own that began at another time, and runs the product's own code.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from gennode.mesh.directory.announced import DOMAIN, Fact, Reader
from gennode.mesh.directory.directory import Directory
from gennode.mesh.directory.netgroup import LOCAL
from gennode.wire.announcement import Announcement, Hosting
from gennode.wire.beats import chain
from gennode.wire.frames import encode
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.messages import Message
from gennode.wire.signing import Key, Signed, seal

LIFETIME_S = 30.0
TICK_S = 0.25
DOWN_S = 5.0  # until the link to a dead peer is given up
# What our links, yamux, noise and TCP/IP add to a message that travels alone: 13 for the link's
# record, 8 for the frame, 12, 18 and 52. Frames that travel together share the last.
OVERHEAD_BYTES = 95
BOOTSTRAP_PEERS = 3  # whose addresses a newcomer knows


HOSTING = Hosting(ModelId("0" * 64), (Span(0, 4),), 0, 0.01, 0.1, 4, "fp32-cpu")


@dataclass(frozen=True)
class Weather:
    """What happens to messages and peers."""

    loss: float = 0.1
    delay_s: tuple[float, float] = (0.005, 0.3)
    churn_per_s: float = 0.0
    """The part of all peers that crashes in a second, and is replaced by newcomers."""


@dataclass
class Member:
    """One peer of the crowd."""

    directory: Directory
    joined_s: float
    clock_s: float
    others: dict[PeerId, str]
    died_s: float | None = None
    sent_bytes: Counter[str] = field(default_factory=Counter)
    """By kind of message."""


class SharedReader(Reader):
    """Reads as any other does, and each announcement once for the whole crowd."""

    def __init__(self) -> None:
        self._facts: dict[Signed, Fact] = {}
        self._right: set[Signed] = set()

    def read(self, signed: Signed) -> Fact:
        """What was signed."""
        fact = self._facts.get(signed)
        if fact is None:
            fact = self._facts[signed] = super().read(signed)
        return fact

    def check(self, signed: Signed) -> None:
        """RemoteError if the signature is wrong, each time anew."""
        if signed not in self._right:
            super().check(signed)
            self._right.add(signed)


class Crowd:
    """A swarm of directories; `members` has the dead too, until they are forgotten by all."""

    def __init__(self, peers: int, seed: int, weather: Weather) -> None:
        self.rng = Random(seed)
        self.weather = weather
        self.now_s = 0.0
        self.members: dict[PeerId, Member] = {}
        self.alive: list[PeerId] = []
        self._reader = SharedReader()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        for _ in range(peers):
            self.join()
        if weather.churn_per_s:
            self._after(0.0, self._churn)

    def join(self) -> PeerId:
        """Add a newcomer who knows some others by address."""
        key = Key(self.rng.randbytes(32))
        directory = Directory(key.peer, Random(self.rng.random()), reader=self._reader)
        known = self.rng.sample(self.alive, min(BOOTSTRAP_PEERS, len(self.alive)))
        member = Member(
            directory, self.now_s, self.rng.uniform(0, 1e6), dict.fromkeys(known, LOCAL)
        )
        self.members[key.peer] = member
        self.alive.append(key.peer)
        self._publish(key, member)
        self._after(self.rng.uniform(0, TICK_S), partial(self._tick, key.peer))
        return key.peer

    def crash(self, peer: PeerId) -> None:
        """Take a peer away without a word."""
        self.alive.remove(peer)
        self.members[peer].died_s = self.now_s

    def run(self, until_s: float) -> None:
        """Let events happen until a time."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, event = heapq.heappop(self._events)
            event()
        self.now_s = until_s

    def seen_by(self, peer: PeerId) -> set[PeerId]:
        """Whom a peer believes to be live."""
        member = self.members[peer]
        return {seen.peer for seen in member.directory.live(self.now_s + member.clock_s)}

    def knows(self, peer: PeerId, other: PeerId) -> bool:
        """Whether a peer holds an announcement of another."""
        return bool(self.members[peer].directory.addresses(other))

    def sent_bytes(self) -> Counter[str]:
        """All that was sent so far, by kind of message, also by those who died."""
        return sum((member.sent_bytes for member in self.members.values()), Counter())

    def _publish(self, key: Key, member: Member) -> None:
        links = chain(self.rng.randbytes(16))
        address = (
            f"/ip4/{self.rng.randint(11, 90)}.{self.rng.randint(0, 9)}.2.1/tcp/4001/p2p/{key.peer}"
        )
        announcement = Announcement(
            peer=key.peer,
            sequence=member.directory.next_sequence,
            instance=0,
            lifetime_s=LIFETIME_S,
            hosting=(HOSTING,),
            sessions=0,
            relay=False,
            reach="direct",
            addresses=(address,),
            chain_end=links[0],
        )
        signed = seal(key, DOMAIN, announcement)
        member.directory.publish(signed, links, self.now_s + member.clock_s)

    def _after(self, delay_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._order), event))

    def _churn(self) -> None:
        self.crash(self.rng.choice(self.alive))
        self.join()
        rate = self.weather.churn_per_s * len(self.alive)
        self._after(self.rng.expovariate(rate), self._churn)

    def _tick(self, peer: PeerId) -> None:
        member = self.members[peer]
        if member.died_s is None:
            self._send(peer, member.directory.tick(self.now_s + member.clock_s, member.others))
            self._after(TICK_S, partial(self._tick, peer))

    def _send(self, sender: PeerId, messages: list[tuple[PeerId, Message]]) -> None:
        member = self.members[sender]
        sizes: dict[int, int] = {}
        for receiver, message in messages:
            size = sizes.get(id(message))
            if size is None:
                size = sizes[id(message)] = len(encode(message)[0]) - 8 + OVERHEAD_BYTES
            member.sent_bytes[type(message).__name__] += size
            if self.members[receiver].died_s is not None:
                self._after(DOWN_S, partial(self._lose, sender, receiver))
            elif self.rng.random() >= self.weather.loss:
                delay_s = self.rng.uniform(*self.weather.delay_s)
                self._after(delay_s, partial(self._arrive, receiver, sender, message))

    def _arrive(self, receiver: PeerId, sender: PeerId, message: Message) -> None:
        member = self.members[receiver]
        if member.died_s is None:
            answers = member.directory.receive(sender, message, self.now_s + member.clock_s)
            self._send(receiver, answers)

    def _lose(self, peer: PeerId, lost: PeerId) -> None:
        member = self.members[peer]
        if member.died_s is None:
            member.directory.lost(lost, self.now_s + member.clock_s)
