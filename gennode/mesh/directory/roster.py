"""What a directory holds, in columns: a digest of thousands is then a few array operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gennode.mesh.directory.announced import Fact
from gennode.wire.beats import LINK_BYTES, MAX_BEATS, link_before
from gennode.wire.ids import PeerId
from gennode.wire.messages import BEAT_AGE_UNIT_S, BEAT_BYTES, MAX_BEAT_AGE

MAX_LAG_BEATS = 4  # as many as fall into a lifetime, and one; three bits tell so many apart

T = TypeVar("T")

_FIRST_ROWS = 64


def _held_bytes(fact: Fact) -> int:
    """What it takes in memory, more or less: the body, and again decoded, and the rest."""
    return 2 * len(fact.signed.body) + 512


def _count_down(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _fill_from_last(column: list[T], row: int) -> None:
    column[row] = column[-1]
    column.pop()


class Roster:
    """Announcements by peer, each with its latest beat and the time that this one was made.

    Rows are dense, in no order that means anything; removing one moves the last to its place.
    """

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.links: list[bytes] = []  # the latest of each; at beat 0 the end of the chain
        self.groups: Counter[str] = Counter()
        self.tellers: Counter[str] = Counter()
        self.held_bytes = 0
        self._tellers_of: list[str] = []
        self._rows: dict[PeerId, int] = {}
        self._by_link: dict[bytes, PeerId] = {}
        self._marks = np.zeros(_FIRST_ROWS, np.uint64)
        self._beats = np.zeros(_FIRST_ROWS, np.int64)
        self._made_s = np.zeros(_FIRST_ROWS, np.float64)
        self._expiry_s = np.zeros(_FIRST_ROWS, np.float64)

    def __len__(self) -> int:
        return len(self.facts)

    def __iter__(self) -> Iterator[Fact]:
        return iter(self.facts)

    @property
    def marks(self) -> npt.NDArray[np.uint64]:
        """By row, what stands for peer and sequence in a sketch."""
        return self._marks[: len(self.facts)]

    @property
    def beats(self) -> npt.NDArray[np.int64]:
        """By row, the number of the latest beat."""
        return self._beats[: len(self.facts)]

    @property
    def made_s(self) -> npt.NDArray[np.float64]:
        """By row, when the latest beat was made, on our clock."""
        return self._made_s[: len(self.facts)]

    @property
    def expiry_s(self) -> npt.NDArray[np.float64]:
        """By row, when life ends without another beat."""
        return self._expiry_s[: len(self.facts)]

    def row(self, peer: PeerId) -> int | None:
        """Where a peer is, until the next change."""
        return self._rows.get(peer)

    def get(self, peer: PeerId) -> Fact | None:
        """What is held of a peer."""
        row = self._rows.get(peer)
        return None if row is None else self.facts[row]

    def beat_of(self, peer: PeerId) -> int:
        """The number of a peer's latest beat; it must be held."""
        return int(self._beats[self._rows[peer]])

    def alive_s(self, peer: PeerId) -> float:
        """When a peer's latest beat or announcement was made; long ago if it is not here."""
        row = self.row(peer)
        return float("-inf") if row is None else float(self._made_s[row])

    def put(self, fact: Fact, teller: str, beat: int, link: bytes, made_s: float) -> None:
        """Hold an announcement in place of any other of its peer.

        `teller`: the net group of who told us.
        """
        if fact.peer in self._rows:
            self.remove(fact.peer)
        row = len(self.facts)
        if row == len(self._marks):
            self._grow()
        self.facts.append(fact)
        self.links.append(link)
        self._tellers_of.append(teller)
        self._rows[fact.peer] = row
        self._marks[row] = fact.mark
        self._by_link[link] = fact.peer
        self.groups[fact.group] += 1
        self.tellers[teller] += 1
        self.held_bytes += _held_bytes(fact)
        self._set_time(row, beat, made_s)

    def remove(self, peer: PeerId) -> None:
        """Let go of a peer, if it is held."""
        row = self._rows.pop(peer, None)
        if row is None:
            return
        gone = self.facts[row]
        self._forget_link(self.links[row], peer)
        _count_down(self.groups, gone.group)
        _count_down(self.tellers, self._tellers_of[row])
        self.held_bytes -= _held_bytes(gone)
        last = len(self.facts) - 1
        for column in (self._marks, self._beats, self._made_s, self._expiry_s):
            column[row] = column[last]
        self._rows[self.facts[last].peer] = row
        self._rows.pop(peer, None)
        _fill_from_last(self.facts, row)
        _fill_from_last(self.links, row)
        _fill_from_last(self._tellers_of, row)

    def packed(self, rows: list[int], now_s: float) -> bytes:
        """The latest beats of some rows, as a message carries them: each a link and its age."""
        units = np.rint((now_s - self._made_s[rows]) / BEAT_AGE_UNIT_S)
        ages = np.clip(units, 0, MAX_BEAT_AGE).astype(np.uint8).tobytes()
        links = self.links
        return b"".join([links[row] + ages[at : at + 1] for at, row in enumerate(rows)])

    def take(self, packed: bytes, now_s: float) -> None:
        """Take those of the beats that are the next ones, or up to MAX_LAG_BEATS on, of a peer.

        Links that belong to no chain here are passed over: the peer may have just left.
        """
        by_link = self._by_link
        for start in range(0, len(packed), BEAT_BYTES):
            link = packed[start : start + LINK_BYTES]
            if link in by_link:
                continue  # we have it
            before = link
            for beats in range(1, MAX_LAG_BEATS + 1):
                before = link_before(before)
                if before in by_link:
                    row = self._rows[by_link[before]]
                    beat = int(self._beats[row]) + beats
                    age_s = packed[start + LINK_BYTES] * BEAT_AGE_UNIT_S
                    if beat <= MAX_BEATS and age_s < self.facts[row].announcement.lifetime_s:
                        self.advance(row, beat, link, now_s - age_s)
                    break

    def advance(self, row: int, beat: int, link: bytes, made_s: float) -> None:
        """Take a later beat of who is in `row`. It never shortens a life."""
        peer = self.facts[row].peer
        self._forget_link(self.links[row], peer)
        self.links[row] = link
        self._by_link[link] = peer
        self._set_time(row, beat, max(made_s, float(self._made_s[row])))

    def _forget_link(self, link: bytes, peer: PeerId) -> None:
        if self._by_link.get(link) == peer:  # two may have announced one chain
            del self._by_link[link]

    def _set_time(self, row: int, beat: int, made_s: float) -> None:
        self._beats[row] = beat
        self._made_s[row] = made_s
        self._expiry_s[row] = made_s + self.facts[row].announcement.lifetime_s

    def _grow(self) -> None:
        self._marks = np.resize(self._marks, 2 * len(self._marks))
        self._beats = np.resize(self._beats, 2 * len(self._beats))
        self._made_s = np.resize(self._made_s, 2 * len(self._made_s))
        self._expiry_s = np.resize(self._expiry_s, 2 * len(self._expiry_s))
