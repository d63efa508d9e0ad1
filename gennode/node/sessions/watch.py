"""Who on a route is silent, and who is idle although a step must have reached it."""

from __future__ import annotations

from collections.abc import Iterable

from gennode.wire.ids import Hop, PeerId
from gennode.wire.messages import Pong

PONG_LIMIT_S = 1.0  # a process that lives answers a ping in milliseconds
IDLE_PONGS = 3  # pongs in a row that must show a hop idle: a frame may still be on its way


class Watch:
    """What pings and pongs tell about the hops of one path; made anew with each path."""

    def __init__(self, path: tuple[Hop, ...]) -> None:
        self._path = path
        self._peers = tuple(dict.fromkeys(hop.peer for hop in path))
        self._pinged_s: dict[PeerId, float] = {}  # the oldest ping that is not answered
        self._last_ping_s = float("-inf")
        self._passed: set[int] = set()
        self._idle: dict[int, int] = {}

    def due(self, now_s: float, interval_s: float) -> tuple[PeerId, ...]:
        """Whom to ping now: everybody, or nobody before the interval is over."""
        if now_s - self._last_ping_s < interval_s:
            return ()
        self._last_ping_s = now_s
        for peer in self._peers:
            self._pinged_s.setdefault(peer, now_s)
        return self._peers

    def heard(self, peer: PeerId) -> None:
        """A pong came."""
        self._pinged_s.pop(peer, None)

    def silent(self, now_s: float, among: Iterable[PeerId] | None = None) -> set[PeerId]:
        """Peers that have left a ping unanswered for too long."""
        late = {peer for peer, at_s in self._pinged_s.items() if now_s - at_s > PONG_LIMIT_S}
        return late if among is None else late & set(among)

    def moved(self) -> None:
        """A step was answered: nothing is stuck."""
        self._passed.clear()
        self._idle.clear()

    def behind(self) -> PeerId:
        """The first hop that has not passed on the awaited step, busy or not."""
        missing = (index for index in range(len(self._path)) if index not in self._passed)
        return self._path[next(missing, len(self._path) - 1)].peer

    def stuck(self, peer: PeerId, pong: Pong, awaited: int) -> PeerId | None:
        """The first hop that sits idle although the hop before it has passed on `awaited`."""
        progress = {one.layer: (one.passed, one.is_busy) for one in pong.progress}
        for index, hop in enumerate(self._path):
            if hop.peer != peer:
                continue
            passed, busy = progress.get(hop.span.start, (-1, False))
            if passed >= awaited:
                self._passed.add(index)
            if passed >= awaited or busy:
                self._idle.pop(index, None)
            else:
                self._idle[index] = self._idle.get(index, 0) + 1
        for index in sorted(self._idle):
            reached = index == 0 or index - 1 in self._passed
            if reached and self._idle[index] >= IDLE_PONGS:
                return self._path[index].peer
        return None
