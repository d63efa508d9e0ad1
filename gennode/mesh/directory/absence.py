"""Who seems to be gone, before the directory forgets them. Sans-IO.

An announcement outlives its peer by up to half a minute. Whoever loses its link to a peer knows
at once, and tells a few others; they believe nothing, but knock at the peer's door themselves:
what nobody can reach, everybody finds out. What a liar says costs each of us one knock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gennode.wire.ids import PeerId
from gennode.wire.messages import Missing, Probe

ABSENT_S = 60.0  # longer than the directory holds on to a peer that shows no life
KNOCK_AGAIN_S = 5.0  # how often we knock at one door, whoever sends us there
KNOCKS = 64  # at so many doors within that time, and at so many of them on one peer's word
KNOCKS_OF_ONE = 4
DOUBT_S = 1.0  # what still comes in so soon after a link broke was sent before it did
TELL_AGAIN_S = 10.0


class Absence:
    """Peers that we failed to reach and have not heard from since. `now_s`: any clock that
    never runs back."""

    def __init__(self) -> None:
        self._since: dict[PeerId, float] = {}
        self._told: dict[PeerId, float] = {}
        self._knocked: dict[PeerId, tuple[float, PeerId]] = {}

    def heard(self, peer: PeerId, now_s: float) -> None:
        """A peer said something, so it is there."""
        self._knocked.pop(peer, None)
        if now_s - self._since.get(peer, -DOUBT_S) >= DOUBT_S:
            self._since.pop(peer, None)

    def down(
        self, peer: PeerId, now_s: float, neighbours: Iterable[PeerId]
    ) -> list[tuple[PeerId, Missing]]:
        """A peer can't be reached: remember that, and have others see for themselves."""
        self._since[peer] = now_s
        self._told = _younger(self._told, now_s, TELL_AGAIN_S)
        if peer in self._told:
            return []
        self._told[peer] = now_s
        return [(other, Missing(peer)) for other in neighbours if other != peer]

    def knocks(self, peer: PeerId, teller: PeerId, now_s: float) -> bool:
        """Whether to knock at a peer's door, now that `teller` says that it is gone."""
        self._knocked = {
            door: knock for door, knock in self._knocked.items() if now_s - knock[0] < KNOCK_AGAIN_S
        }
        of_teller = sum(who == teller for _, who in self._knocked.values())
        if peer in self._since or peer in self._knocked:
            return False
        if len(self._knocked) >= KNOCKS or of_teller >= KNOCKS_OF_ONE:
            return False
        self._knocked[peer] = (now_s, teller)
        return True

    def returns(
        self, alive_s: Callable[[PeerId], float], now_s: float
    ) -> Iterable[tuple[PeerId, Probe]]:
        """Knock at the doors of those that show signs of life again, though not to us.

        `alive_s`: when a peer last did, as far as is known.
        """
        for peer, lost_s in self._since.items():
            knocked_s, _ = self._knocked.get(peer, (-KNOCK_AGAIN_S, peer))
            if alive_s(peer) > lost_s + DOUBT_S and now_s - knocked_s >= KNOCK_AGAIN_S:
                self._knocked[peer] = (now_s, peer)
                yield peer, Probe(0)

    def absent(self, now_s: float) -> frozenset[PeerId]:
        """Who is gone, as far as we could see."""
        self._since = _younger(self._since, now_s, ABSENT_S)
        return frozenset(self._since)


def _younger(times: dict[PeerId, float], now_s: float, than_s: float) -> dict[PeerId, float]:
    return {peer: at_s for peer, at_s in times.items() if now_s - at_s < than_s}
