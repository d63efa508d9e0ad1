"""What an owner learns of workers that their announcements do not say yet: for its preferences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gennode.sharding.preferences import Preferences
from gennode.wire.ids import PeerId

FADE_S = 120.0  # a failure counts less and less, and no more after this
MAX_FAILURES = 8  # that are remembered of one worker: they say enough
MAX_FAILED = 4096  # workers whose failures are remembered; the oldest are forgotten first


class Experience:
    """Sessions that an owner opened since a worker's announcement, and recent failures."""

    def __init__(self) -> None:
        self._own: dict[PeerId, tuple[int, int]] = {}
        self._failures: dict[PeerId, tuple[float, ...]] = {}

    def opened(self, peer: PeerId, sequence: int) -> None:
        """A session was opened at a worker whose announcement has this sequence now."""
        self._count(peer, sequence, 1)

    def closed(self, peer: PeerId, sequence: int) -> None:
        """A session at a worker whose announcement has this sequence now has ended."""
        self._count(peer, sequence, -1)

    def failed(self, peer: PeerId, now_s: float) -> None:
        """A worker did not answer, or answered wrong."""
        times_s = (*self._failures.pop(peer, ()), now_s)
        self._failures[peer] = times_s[-MAX_FAILURES:]
        if len(self._failures) > MAX_FAILED:
            del self._failures[next(iter(self._failures))]

    def added_to(
        self, preferences: Preferences, sequences: Mapping[PeerId, int], now_s: float
    ) -> Preferences:
        """The preferences with what was learnt; `sequences`: of the announcements known now.

        Later announcements count an owner's sessions themselves, so the count begins anew.
        """
        self._own = {
            peer: (sequence, net)
            for peer, (sequence, net) in self._own.items()
            if sequences.get(peer) == sequence
        }
        self._failures = {
            peer: times_s
            for peer, times_s in self._failures.items()
            if now_s - times_s[-1] < FADE_S
        }
        failures = {
            peer: sum(max(0.0, 1 - (now_s - at_s) / FADE_S) for at_s in times_s)
            for peer, times_s in self._failures.items()
        }
        opened = {peer: net for peer, (_, net) in self._own.items()}
        return replace(preferences, opened=opened, failures=failures)

    def _count(self, peer: PeerId, sequence: int, change: int) -> None:
        known, net = self._own.get(peer, (sequence, 0))
        self._own[peer] = (sequence, change if known != sequence else net + change)
