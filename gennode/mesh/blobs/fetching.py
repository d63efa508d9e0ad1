"""Which chunk to ask of whom: the fetching of weights, without a socket or a clock.

Sources draw from one queue, so that fast ones get more. At the end, one that has nothing left
to do asks for what a much slower one still owes. Truth is the chunk's hash, which the shell
checks before it calls `kept`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gennode.wire.ids import PeerId

PROTOCOL = "/gennode/blob/1"
WINDOW = 3  # chunks asked of one source: one arrives, one is under way, one is being checked
MAX_SOURCES = 8  # each may have a window's worth of memory, 12 MiB
CHUNK_TIMEOUT_S = 60.0  # for the next chunk; an uplink of 1 Mbit/s needs 34 s
BUSY_PAUSE_S = 5.0
MAX_COPIES = 2  # sources that owe one chunk at a time
STEAL_FACTOR = 2.0  # how much longer a source must need than a thief would
_SMOOTHING = 0.3  # weight of the last chunk in what a source needs per chunk


@dataclass
class _Source:
    asked: dict[str, None] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    since_s: float = 0.0  # when it was first asked, or last delivered
    chunk_s: float | None = None
    paused_until_s: float = 0.0


class Fetching:
    """One fetch of many chunks, named by their hashes."""

    def __init__(self, chunks: Iterable[str]) -> None:
        self._waiting = dict.fromkeys(chunks)
        self._owed: dict[str, set[PeerId]] = {}
        self._sources: dict[PeerId, _Source] = {}

    @property
    def is_done(self) -> bool:
        """Whether every chunk is kept."""
        return not self._waiting and not self._owed

    @property
    def is_stuck(self) -> bool:
        """Whether no source owes anything or can be asked for what is missing."""
        if self._owed or not self._waiting:
            return False
        return all(self._waiting.keys() <= source.absent for source in self._sources.values())

    @property
    def missing(self) -> int:
        """How many chunks are not kept yet."""
        return len(self._waiting) + len(self._owed)

    def add(self, peer: PeerId) -> None:
        """A new source; what it has is seen when it is asked."""
        self._sources.setdefault(peer, _Source())

    def owes(self, peer: PeerId, chunk: str) -> bool:
        """Whether this source was asked for this chunk and has not answered."""
        return peer in self._sources and chunk in self._sources[peer].asked

    def ask(self, peer: PeerId, now_s: float) -> list[str]:
        """What to ask of a source now."""
        source = self._sources.get(peer)
        if source is None or now_s < source.paused_until_s:
            return []
        asks = []
        while len(source.asked) < WINDOW and (chunk := self._next(peer, source, now_s)):
            if not source.asked:
                source.since_s = now_s
            source.asked[chunk] = None
            self._waiting.pop(chunk, None)
            self._owed.setdefault(chunk, set()).add(peer)
            asks.append(chunk)
        return asks

    def kept(self, peer: PeerId, chunk: str, now_s: float) -> None:
        """A source's chunk is checked and stored; others that owe it owe it no more."""
        source = self._sources.get(peer)
        if source is not None:
            taken_s = now_s - source.since_s
            known_s = taken_s if source.chunk_s is None else source.chunk_s
            source.chunk_s = known_s + _SMOOTHING * (taken_s - known_s)
            source.since_s = now_s
        for other in self._owed.pop(chunk, set()):
            self._sources[other].asked.pop(chunk, None)
        self._waiting.pop(chunk, None)

    def absent(self, peer: PeerId, chunk: str) -> None:
        """A source does not have a chunk; it is asked of others, after all that none refused."""
        source = self._sources[peer]
        source.absent.add(chunk)
        source.asked.pop(chunk, None)
        self._return(peer, chunk)

    def busy(self, peer: PeerId, now_s: float) -> None:
        """A source serves too many others; it is asked again in a while."""
        source = self._sources[peer]
        source.paused_until_s = now_s + BUSY_PAUSE_S
        for chunk in list(source.asked):
            del source.asked[chunk]
            self._return(peer, chunk)

    def drop(self, peer: PeerId) -> None:
        """A source is gone, or lied; what it owes is asked of others."""
        source = self._sources.pop(peer, None)
        for chunk in source.asked if source else ():
            self._return(peer, chunk)

    def is_overdue(self, peer: PeerId, now_s: float) -> bool:
        """Whether a source lets us wait too long for its next chunk."""
        source = self._sources.get(peer)
        if source is None or not source.asked:
            return False
        return now_s - source.since_s > CHUNK_TIMEOUT_S

    def _return(self, peer: PeerId, chunk: str) -> None:
        owing = self._owed.get(chunk, set())
        owing.discard(peer)
        if not owing and self._owed.pop(chunk, None) is not None:
            self._waiting[chunk] = None

    def _next(self, peer: PeerId, source: _Source, now_s: float) -> str | None:
        for chunk in self._waiting:
            if chunk not in source.absent:
                return chunk
        return None if source.asked else self._steal(peer, source, now_s)

    def _steal(self, peer: PeerId, source: _Source, now_s: float) -> str | None:
        """The chunk that is owed for longest to come, if this idle source is much faster."""
        worst_s, worst = 0.0, None
        for chunk, owing in self._owed.items():
            if peer in owing or len(owing) >= MAX_COPIES or chunk in source.absent:
                continue
            left_s = min(self._expected_s(self._sources[other], chunk, now_s) for other in owing)
            if left_s > worst_s:
                worst_s, worst = left_s, chunk
        own_s = source.chunk_s
        return worst if own_s is not None and worst_s > STEAL_FACTOR * own_s else None

    def _expected_s(self, source: _Source, chunk: str, now_s: float) -> float:
        """How long a source will need for a chunk that it owes; a silent one gets slower."""
        waited_s = now_s - source.since_s
        each_s = max(source.chunk_s or 0.0, waited_s)
        return each_s * (list(source.asked).index(chunk) + 1)
