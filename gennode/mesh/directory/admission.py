"""Who finds room in a directory that is nearly full: no network has more than it fairly may.

Announcements cost nothing to make, and their addresses can be made up; what an attacker lacks is
networks. So a full directory takes a newcomer only of a net group that has fewer peers in it than
the largest group, which gives up one of its own by lot. A flood from one network pushes out
nobody else, and whoever has done something for us stays, whatever its network.
"""

from __future__ import annotations

from random import Random

from gennode.mesh.directory.roster import Roster
from gennode.wire.ids import PeerId

MAX_PEERS = 16_384  # eight times the largest swarm that we simulate
MAX_HELD_BYTES = 48 * 1024 * 1024  # 3 kB for each; announcements take some 500 bytes

# What the peers of one net group told us may fill no more than this: they could tell us of peers
# in as many networks as they like to make up.
MAX_TOLD_BY_GROUP = MAX_PEERS // 4

MAX_KNOWN_GOOD = 512  # past this those that did nothing for us for longest can be given up


class Admission:
    """Decides over the places of one roster; it changes nothing there."""

    def __init__(self, roster: Roster, peer: PeerId, rng: Random) -> None:
        self._roster = roster
        self._peer = peer
        self._rng = rng
        self._known_good: dict[PeerId, None] = {}  # longest not met first

    def worked_with(self, peer: PeerId) -> None:
        """A peer did for us what it should: it is not given up for newcomers."""
        self._known_good.pop(peer, None)
        self._known_good[peer] = None
        while len(self._known_good) > MAX_KNOWN_GOOD:
            del self._known_good[next(iter(self._known_good))]

    def has_room(self, group: str, teller: str) -> bool:
        """Whether a newcomer of a net group may come in, told by a peer of another."""
        if self._roster.tellers[teller] >= MAX_TOLD_BY_GROUP:
            return False
        if not self._is_full():
            return True
        _, most = self._roster.groups.most_common(1)[0]
        return self._roster.groups[group] + 1 < most

    def leaver(self) -> PeerId | None:
        """Who has to go before a newcomer comes in; None while there are free places."""
        if not self._is_full():
            return None
        group, _ = self._roster.groups.most_common(1)[0]
        kept = {self._peer, *self._known_good}
        strangers = [
            fact.peer for fact in self._roster if fact.group == group and fact.peer not in kept
        ]
        return self._rng.choice(strangers) if strangers else None

    def _is_full(self) -> bool:
        return len(self._roster) >= MAX_PEERS or self._roster.held_bytes >= MAX_HELD_BYTES
