"""What a run is remembered by: counts, distributions, a timeline, and a digest of all events."""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter
from dataclasses import dataclass, field

_RESOLUTION = 100  # buckets per factor of e: 1 % each
_LEAST_S = 1e-6


class Histogram:
    """Times in buckets of one per cent: percentiles in bounded memory, however long a run is."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0

    def add(self, value_s: float, weight: int = 1) -> None:
        """Count a time, as often as `weight` says."""
        self._buckets[int(math.log(max(value_s, _LEAST_S)) * _RESOLUTION)] += weight
        self.count += weight

    def percentile_s(self, share: float) -> float:
        """The time that a share of all lies below, to a per cent; 0 if none was counted."""
        below = 0
        for bucket in sorted(self._buckets):
            below += self._buckets[bucket]
            if below >= share * self.count:
                return math.exp(bucket / _RESOLUTION)
        return 0.0


@dataclass
class Slice:
    """What happened in one of the equal parts that a run's timeline is cut into."""

    tokens: int = 0
    session_s: float = 0.0  # sessions under way, times seconds
    faults: int = 0
    joins: int = 0
    moves: int = 0
    failovers: int = 0


@dataclass(frozen=True, slots=True)
class Coverage:
    """From `at_s` on: copies of the layer with fewest, and of all layers in the mean."""

    at_s: float
    weakest: int
    mean: float


@dataclass
class Tally:
    """All counts of a run; `simulation` fills it and makes a report of it."""

    duration_s: float
    slices: int
    asked: int = 0
    answered: int = 0
    refused: int = 0
    lost: int = 0
    lost_covered: int = 0  # of them, while every layer had a live copy
    failed_over: int = 0  # sessions
    failovers: int = 0
    detours: int = 0  # routes that met a full or dead worker
    tokens: int = 0
    prompt_tokens: int = 0
    crashes: int = 0
    leaves: int = 0
    joins: int = 0
    moves: int = 0
    moves_given_up: int = 0
    plans: int = 0
    layers_moved: int = 0
    first_s: Histogram = field(default_factory=Histogram)
    token_s: Histogram = field(default_factory=Histogram)
    pause_s: Histogram = field(default_factory=Histogram)
    coverage: list[Coverage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.timeline = [Slice() for _ in range(self.slices)]
        self._digest = hashlib.sha256()

    @property
    def slice_s(self) -> float:
        """Seconds of a part of the timeline."""
        return self.duration_s / self.slices

    @property
    def digest(self) -> str:
        """Hex SHA-256 over all events so far, in order and to the last bit of their times."""
        return self._digest.hexdigest()

    def trace(self, now_s: float, what: str, *about: object) -> None:
        """Put an event into the digest."""
        words = " ".join((what, *map(str, about)))
        self._digest.update(struct.pack("<d", now_s) + words.encode() + b"\n")

    def at(self, now_s: float) -> Slice:
        """The part of the timeline that a moment lies in."""
        return self.timeline[min(self.slices - 1, int(now_s / self.slice_s))]

    def under_way(self, since_s: float, until_s: float) -> None:
        """A session ran from one moment to another."""
        first = min(self.slices - 1, int(since_s / self.slice_s))
        last = min(self.slices - 1, int(until_s / self.slice_s))
        for index in range(first, last + 1):
            start_s = max(since_s, index * self.slice_s)
            end_s = min(until_s, (index + 1) * self.slice_s)
            self.timeline[index].session_s += max(0.0, end_s - start_s)

    def covered(self, now_s: float, copies: list[int]) -> None:
        """From now on each layer has so many copies that take sessions."""
        now = Coverage(now_s, min(copies), sum(copies) / len(copies))
        if self.coverage and self.coverage[-1].at_s == now_s:
            self.coverage[-1] = now
        else:
            self.coverage.append(now)

    def mean_coverage(self) -> tuple[int, float, float]:
        """Over the run: the fewest copies of any layer, the mean of the weakest layer's, the
        mean of all layers'."""
        ends_s = [one.at_s for one in self.coverage[1:]] + [self.duration_s]
        weakest = mean = 0.0
        for one, end_s in zip(self.coverage, ends_s, strict=True):
            weakest += one.weakest * (end_s - one.at_s)
            mean += one.mean * (end_s - one.at_s)
        fewest = min((one.weakest for one in self.coverage), default=0)
        return fewest, weakest / self.duration_s, mean / self.duration_s
