"""Who on a route is silent, and who is idle although a step must have reached it."""

from __future__ import annotations

from collections.abc import Iterable

from gennode.wire.ids import Hop, PeerId
from gennode.wire.messages import Pong

PONG_LIMIT_S = 1.0  # a process that lives answers a ping in milliseconds
TAKING_LIMIT_S = 30.0  # a window of frames on a line of 4.5 Mbit/s: so long pings may be behind it
IDLE_PONGS = 3  # pongs in a row that must show a hop idle: a frame may still be on its way


class Watch:
    """What pings and pongs tell about the hops of one path; made anew with each path."""

    def __init__(self, path: tuple[Hop, ...]) -> None:
        self._path = path
        self._peers = tuple(dict.fromkeys(hop.peer for hop in path))
        self._pinged_s: dict[PeerId, float] = {}  # the oldest ping that is not answered
        self._alive_s: dict[PeerId, float] = {}  # signs of life of those that owe an answer
        self._last_ping_s = float("-inf")
        self._passed_s: dict[int, float] = {}  # hops that passed the awaited step on: seen when
        self._idle: dict[int, int] = {}

    def due(self, now_s: float, interval_s: float) -> tuple[PeerId, ...]:
        """Whom to ping now: everybody, or nobody before the interval is over."""
        if now_s - self._last_ping_s < interval_s:
            return ()
        self._last_ping_s = now_s
        for peer in self._peers:
            self._pinged_s.setdefault(peer, now_s)
        return self._peers

    def heard(self, peer: PeerId, now_s: float) -> float | None:
        """A pong came: how long its ping was under way, if there was one."""
        self._alive_s.pop(peer, None)
        pinged_s = self._pinged_s.pop(peer, None)
        return None if pinged_s is None else now_s - pinged_s

    def alive(self, peer: PeerId, now_s: float) -> None:
        """A peer takes in what we send, though its pong may be behind much of that."""
        if peer in self._pinged_s:
            self._alive_s[peer] = now_s

    def silent(self, now_s: float, among: Iterable[PeerId], *, ahead_s: float = 0.0) -> set[PeerId]:
        """Who of some peers has left a ping unanswered, and shown no life, for too long.

        `ahead_s`: more patience with the first hop, to whom our own frames go ahead of pings.
        """
        first = self._path[0].peer
        return {
            peer
            for peer in self._pinged_s.keys() & set(among)
            if now_s - self._last_sign_s(peer) > PONG_LIMIT_S + ahead_s * (peer == first)
        }

    def _last_sign_s(self, peer: PeerId) -> float:
        """When who owes a pong last showed life: to take things in is not enough for ever."""
        pinged_s = self._pinged_s[peer]
        return min(max(pinged_s, self._alive_s.get(peer, pinged_s)), pinged_s + TAKING_LIMIT_S)

    @property
    def is_answered(self) -> bool:
        """Whether every ping was."""
        return not self._pinged_s

    def moved(self) -> None:
        """A step was answered, or a replay goes on: nothing is stuck."""
        self._passed_s.clear()
        self._idle.clear()

    def behind(self) -> int:
        """The place of the first hop that has not passed on the awaited step, busy or not."""
        places = range(len(self._path))
        return next((at for at in places if at not in self._passed_s), len(self._path) - 1)

    def reached_s(self, index: int, sent_s: float) -> float | None:
        """When the awaited step must have reached a hop: the hop above passed it on by then.

        None as long as nobody knows that it did. `sent_s`: when the owner sent it.
        """
        return self._passed_s.get(index - 1) if index else sent_s

    def seen(self, peer: PeerId, pong: Pong, awaited: int, now_s: float, *, is_late: bool) -> None:
        """Learn from a pong how far a peer's hops are. `is_late`: being idle counts by now."""
        progress = {one.layer: one for one in pong.progress}
        for index, hop in enumerate(self._path):
            if hop.peer != peer:
                continue
            told = progress.get(hop.span.start)
            has_passed = told is not None and told.passed >= awaited
            if has_passed:
                self._passed_s.setdefault(index, now_s)
            if has_passed or (told is not None and told.is_busy):
                self._idle.pop(index, None)
            elif is_late:
                self._idle[index] = self._idle.get(index, 0) + 1

    def stuck(self, now_s: float, sent_s: float, *, arrival_s: float) -> PeerId | None:
        """The first hop that sits idle although the hop before it has passed on the step.

        `sent_s`: when the owner sent it; `arrival_s`: how long its frame may be on its way.
        """
        for index in sorted(self._idle):
            passed_s = self.reached_s(index, sent_s)
            has_reached = passed_s is not None and now_s - passed_s >= arrival_s
            if has_reached and self._idle[index] >= IDLE_PONGS:
                return self._path[index].peer
        return None
