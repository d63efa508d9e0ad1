"""With whom the directory is exchanged: few peers, kept for long, of many networks. Sans-IO.

We choose them; whoever calls on us is answered and not chosen for it. At most one is taken of a
net group while other groups have somebody, and never more than two: to surround us, an attacker
has to sit in as many networks as we have neighbours. Half of them stay as long as they answer;
the others change by and by, so that the swarm's graph stays mixed and newcomers find a place.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from gennode.mesh.directory.netgroup import LOCAL
from gennode.wire.ids import PeerId

MAX_NEIGHBOURS = 16  # more networks than an attacker has for free; a link costs some 100 kB
STAYING = MAX_NEIGHBOURS // 2
MAX_PER_GROUP = 2
ROTATE_S = 60.0
MAX_UNANSWERED = 5  # a tenth of all messages lost: one in 400,000 good ones is given up for it
RETRY_S = 20.0  # a peer that did not answer is left alone for so long, unless it calls on us
MAX_LEFT_ALONE = 1024  # past this the oldest are forgotten
REFILL_S = 1.0  # between looks for others, while places are free


@dataclass
class _Place:
    group: str
    unanswered: int = 0
    answered: bool = False


class Neighbours:
    """A few of all the peers that could be asked. `now_s` is any clock that never runs back."""

    def __init__(self, peer: PeerId, rng: Random) -> None:
        self._peer = peer
        self._rng = rng
        self._places: dict[PeerId, _Place] = {}  # longest kept first
        self._left_alone: dict[PeerId, float] = {}  # until when; oldest first
        self._turn: list[PeerId] = []
        self._refill_s = -math.inf
        self._rotate_s = math.inf

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._places

    @property
    def chosen(self) -> tuple[PeerId, ...]:
        """All of them, those that we kept longest first."""
        return tuple(self._places)

    @property
    def good(self) -> tuple[PeerId, ...]:
        """Those that have answered, longest kept first."""
        return tuple(peer for peer, place in self._places.items() if place.answered)

    def is_wanting(self, now_s: float) -> bool:
        """Whether `offer` would look for somebody now."""
        return now_s >= min(self._refill_s, self._rotate_s)

    def offer(self, candidates: Iterable[tuple[PeerId, str]], now_s: float) -> None:
        """Fill free places from (peer, net group) pairs, when it is time to."""
        if now_s >= self._rotate_s:
            self._rotate_s = now_s + ROTATE_S
            changing = list(self._places)[STAYING:]
            if len(self._places) == MAX_NEIGHBOURS:
                del self._places[self._rng.choice(changing)]
        if len(self._places) < MAX_NEIGHBOURS:
            self._fill(candidates, now_s)
        if len(self._places) == MAX_NEIGHBOURS:
            self._refill_s = math.inf
        elif self._places:
            self._refill_s = now_s + REFILL_S
        if self._rotate_s == math.inf:
            self._rotate_s = now_s + ROTATE_S * (1 + self._rng.random())

    def next(self) -> PeerId | None:
        """Whose turn it is; each gets one before any gets two."""
        while self._turn:
            peer = self._turn.pop()
            if peer in self._places:
                return peer
        self._turn = list(self._places)
        self._rng.shuffle(self._turn)
        return self._turn.pop() if self._turn else None

    def asked(self, peer: PeerId, now_s: float) -> None:
        """We sent a neighbour what it should answer."""
        place = self._places[peer]
        place.unanswered += 1
        if place.unanswered > MAX_UNANSWERED:
            self.lost(peer, now_s)

    def heard(self, peer: PeerId) -> None:
        """A peer sent us something."""
        self._left_alone.pop(peer, None)
        place = self._places.get(peer)
        if place is not None:
            place.unanswered, place.answered = 0, True

    def lost(self, peer: PeerId, now_s: float) -> None:
        """A peer can't be reached, or keeps silent."""
        self._left_alone.pop(peer, None)
        self._left_alone[peer] = now_s + RETRY_S
        while len(self._left_alone) > MAX_LEFT_ALONE:
            del self._left_alone[next(iter(self._left_alone))]
        if self._places.pop(peer, None) is not None:
            self._refill_s = min(self._refill_s, now_s)

    def _fill(self, candidates: Iterable[tuple[PeerId, str]], now_s: float) -> None:
        free = {
            peer: group
            for peer, group in candidates
            if peer != self._peer
            and peer not in self._places
            and self._left_alone.get(peer, -math.inf) <= now_s
        }
        order = sorted(free)
        self._rng.shuffle(order)
        taken = Counter(place.group for place in self._places.values())
        is_local = not any(group != LOCAL for group in (*free.values(), *taken))
        for most in (1, MAX_PER_GROUP):
            for peer in order:
                if len(self._places) == MAX_NEIGHBOURS:
                    return
                group = free[peer]
                if peer not in self._places and (taken[group] < most or is_local):
                    taken[group] += 1
                    self._places[peer] = _Place(group)
