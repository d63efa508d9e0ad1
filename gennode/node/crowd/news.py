"""What others see of a swarm: announcements as they were a few seconds ago."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from gennode.node.crowd.events import Events
from gennode.node.crowd.member import Member
from gennode.sharding.route.route import RouteBoard
from gennode.wire.announcement import Announcement
from gennode.wire.ids import ModelId

MAX_AGE_S = 10.0  # a peer renews its announcement this often if only its sessions change
STEP_S = 4.0  # between two states of the swarm that can be told apart, if no span changes


class Sight:
    """What could be seen at one moment; `board` is what routes are chosen on, made when needed."""

    __slots__ = ("announcements", "at_s", "board")

    def __init__(self, at_s: float, announcements: tuple[Announcement, ...]) -> None:
        self.at_s = at_s
        self.announcements = announcements
        self.board: RouteBoard | None = None


class News:
    """The states that the swarm had lately. They are taken when somebody asks, never polled."""

    def __init__(self, events: Events, model: ModelId, members: Iterable[Member]) -> None:
        self._events = events
        self._model = model
        self._members = members
        self._times_s: list[float] = []
        self._states: list[Sight] = []

    def changed(self) -> None:
        """Somebody hosts something else, or came, or went."""
        self._take()

    def seen(self, age_s: float) -> Sight:
        """What somebody sees whose news is so old."""
        now_s = self._events.now_s
        if not self._times_s or now_s - self._times_s[-1] >= STEP_S:
            self._take()
        index = bisect_right(self._times_s, now_s - age_s) - 1
        return self._states[max(0, index)]

    def _take(self) -> None:
        now_s = self._events.now_s
        state = tuple(
            one.announcement(self._model)
            for one in self._members
            if one.listed and one.offered.layers
        )
        self._times_s.append(now_s)
        self._states.append(Sight(now_s, state))
        old = bisect_right(self._times_s, now_s - MAX_AGE_S) - 1
        if old > 64:  # forgotten in batches: a list loses its head slowly
            del self._times_s[:old], self._states[:old]
