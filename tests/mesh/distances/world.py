"""A made-up network of three regions, on which peers find their coordinates; and liars."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from random import Random

from gennode.mesh.distances.distances import Distances, Outgoing
from gennode.wire.coordinates import Coordinate
from gennode.wire.frames import encode
from gennode.wire.ids import PeerId
from gennode.wire.messages import Echo, Probe

TICK_S = 0.2
PARTNERS = 16
REGIONS = ((0.0, 0.0), (0.09, 0.0), (0.17, 0.10))  # two oceans between them

Lie = Callable[[Coordinate, Coordinate], tuple[Coordinate, float]]
"""From a liar's coordinate and its victim's: what it claims, and how late it answers."""


def push(_own: Coordinate, victim: Coordinate) -> tuple[Coordinate, float]:
    """To stand right beside the victim, and to be a second away: always in one direction."""
    beside = Coordinate(max(-10.0, victim.x_s - 0.001), victim.y_s - 0.001, 0.0, 0.0)
    return beside, 1.0


def far(_own: Coordinate, _victim: Coordinate) -> tuple[Coordinate, float]:
    """To be sure to stand seven seconds away, all liars at one place."""
    return Coordinate(5.0, 5.0, 0.0, 0.0), 0.0


def late(own: Coordinate, _victim: Coordinate) -> tuple[Coordinate, float]:
    """The truth, but a second late."""
    return own, 1.0


def beside(_own: Coordinate, victim: Coordinate) -> tuple[Coordinate, float]:
    """To stand where the victim does, and to be two seconds away."""
    return victim, 2.0


class World:
    """Peers are numbers; `now_s` goes on with `run`. A run is a pure function of its seed.

    Round trips: the way in the plane, and a height per peer (exponential, 6 ms, from 1 ms on),
    times 1 ± 10 % per pair that no coordinates can express. Each message takes 5 % + 0.5 ms
    longer (exponential), and one in fifty up to 0.5 s longer.
    """

    def __init__(self, seed: int, count: int, *, liars: float = 0.0, lie: Lie = far) -> None:
        self.rng = Random(seed)
        self.now_s = 0.0
        self.peers: list[Distances] = []
        self.sent_bytes: list[int] = []
        self.payload_bytes: list[int] = []
        self.announced: list[int] = []
        self.upload_bytes_per_s = 2e6
        self._lie = lie
        self._points: list[tuple[float, float, float]] = []
        self._factors: dict[tuple[int, int], float] = {}
        self._partners: list[list[PeerId]] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._count = count
        for _ in range(count):
            self.join()
        self.liars = set(self.rng.sample(range(count), int(liars * count)))

    @property
    def honest(self) -> list[int]:
        return [number for number in range(len(self.peers)) if number not in self.liars]

    def join(self) -> int:
        number, rng = len(self.peers), self.rng
        x_s, y_s = REGIONS[number % len(REGIONS)]
        height_s = 0.001 + rng.expovariate(1 / 0.006)
        self._points.append((x_s + rng.gauss(0, 0.012), y_s + rng.gauss(0, 0.012), height_s))
        others = [other for other in range(max(number, self._count)) if other != number]
        self._partners.append([PeerId(str(other)) for other in rng.sample(others, PARTNERS)])
        self.peers.append(Distances(PeerId(str(number)), Random(rng.random())))
        self.sent_bytes.append(0)
        self.payload_bytes.append(0)
        self.announced.append(0)
        self._after(rng.uniform(0, TICK_S), lambda: self._tick(number))
        return number

    def rtt_s(self, one: int, other: int) -> float:
        """What no jitter adds to."""
        pair = (min(one, other), max(one, other))
        if pair not in self._factors:
            self._factors[pair] = math.exp(self.rng.gauss(0, 0.1))
        here, there = self._points[one], self._points[other]
        plane_s = math.sqrt((here[0] - there[0]) ** 2 + (here[1] - there[1]) ** 2)
        return (plane_s + here[2] + there[2]) * self._factors[pair]

    def errors(self, ones: Sequence[int], others: Sequence[int]) -> list[float]:
        """By which share predicted round trips are off, in rising order."""
        errors = []
        for one, other in itertools.product(ones, others):
            if one != other:
                rtt_s = self.rtt_s(one, other)
                predicted_s = self.peers[one].announced.rtt_s(self.peers[other].announced)
                errors.append(abs(predicted_s - rtt_s) / rtt_s)
        return sorted(errors)

    def run(self, until_s: float) -> None:
        while self._heap and self._heap[0][0] <= until_s:
            self.now_s, _, call = heapq.heappop(self._heap)
            call()
        self.now_s = until_s

    def _after(self, delay_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now_s + delay_s, next(self._order), call))

    def _tick(self, number: int) -> None:
        self._send(number, self.peers[number].tick(self.now_s, self._partners[number]), 0.0)
        self._after(TICK_S, lambda: self._tick(number))

    def _send(self, source: int, outgoing: list[Outgoing], delay_s: float) -> None:
        for peer, message, payload in outgoing:
            self.sent_bytes[source] += len(encode(message)[0])
            self.payload_bytes[source] += len(payload)
            way_s = self.rtt_s(source, int(peer)) / 2
            way_s += self.rng.expovariate(1 / (0.05 * way_s + 0.0005)) + delay_s
            if self.rng.random() < 0.02:
                way_s += self.rng.uniform(0, 0.5)
            way_s += len(payload) / self.upload_bytes_per_s
            self._after(way_s, self._delivery(source, int(peer), message, payload))

    def _delivery(
        self, source: int, target: int, message: Probe | Echo, payload: bytes
    ) -> Callable[[], None]:
        def deliver() -> None:
            here = self.peers[target]
            before = here.announced
            replies = here.receive(PeerId(str(source)), message, payload, self.now_s)
            self.announced[target] += here.announced != before
            if target in self.liars and isinstance(message, Probe):
                claim, delay_s = self._lie(here.coordinate, self.peers[source].coordinate)
                echo = Echo(message.nonce, claim)
                self._send(target, [(PeerId(str(source)), echo, b"")], delay_s)
            else:
                self._send(target, replies, 0.0)

        return deliver
