"""Who of a path has had long enough: patience, pings and what hops say of themselves, as one."""

from __future__ import annotations

from collections.abc import Iterable

from gennode.node.sessions.paces import Paces
from gennode.node.sessions.patience import Patience
from gennode.node.sessions.slow import Slowness
from gennode.node.sessions.watch import Watch
from gennode.wire.ids import Hop, PeerId
from gennode.wire.messages import Pong

PING_INTERVAL_S = 0.25  # while something is awaited
KEEPALIVE_S = 10.0  # otherwise: a hop forgets an owner that is silent for a minute
WORK_LIMIT_S = 120.0  # the longest that one step, or loading layers, may take
ACCUSATIONS = 3  # of others by one hop in a session, until it is suspected itself

LEAST_BYTES_PER_S = 100_000  # of a line that is worth its place on a route, less what others take
TRIPS = 2  # there and back, until a frame of one packet is there; one more each time it doubles
PACKETS_BYTES = 14_000  # that TCP sends at first, or after a pause, before it waits (RFC 6928)

Fault = tuple[set[PeerId], str]
"""Whom to replace, and why."""


class Vigil:
    """Watches over one session's hops, one path after the other.

    A hop is asked whether it lives as soon as the awaited step is late, and judged when either
    the step has taken longer than all hops together ever needed, or longer than the one hop that
    has it may by its own account, counted from when the hop above it had passed the step on.
    """

    def __init__(self, path: tuple[Hop, ...], *, row_bytes: int) -> None:
        """`row_bytes`: what one row of a frame takes."""
        self._path = path
        self._row_bytes = row_bytes
        self._patience = Patience()
        self._watch = Watch(path)
        self._paces = Paces(path)
        self._slowness = Slowness()
        self._accused: dict[PeerId, set[int]] = {}  # accuser → attempts in which it blamed others

    # -- what happens to steps ----------------------------------------------------------------

    def follow(self, path: tuple[Hop, ...]) -> None:
        """There is another path, or another attempt on this one."""
        self._path = path
        self._watch = Watch(path)
        self._paces.follow(path)

    def restart(self, replayed_rows: int, now_s: float) -> None:
        """All that was under way is sent again, behind a replay of frames of so many rows."""
        self._slowness = Slowness()
        self._patience.restart(replayed_rows, now_s)

    def sent(self, number: int, rows: int, now_s: float) -> None:
        """A step went out."""
        self._patience.sent(number, rows, now_s)

    def answered(self, number: int, rows: int, now_s: float) -> None:
        """A step came back."""
        self._watch.moved()
        step_s = self._patience.answered(number, now_s)
        if rows == 1 and step_s is not None:
            self._slowness.timed(step_s)

    def moved(self, now_s: float) -> bool:
        """A part of a replay has arrived: whether that counts as progress."""
        if not self._patience.moved(now_s):
            return False
        self._watch.moved()
        return True

    def alive(self, peer: PeerId, now_s: float) -> None:
        """A peer takes in what we send."""
        self._watch.alive(peer, now_s)

    # -- asking and judging -------------------------------------------------------------------

    def pings(self, now_s: float, *, is_opening: bool = False) -> tuple[PeerId, ...]:
        """Whom to ask now."""
        is_late = is_opening or self._patience.late_s(now_s) >= PING_INTERVAL_S
        interval_s = PING_INTERVAL_S if is_late else KEEPALIVE_S
        return self._watch.due(now_s, 0.0 if self._slowness.asks(now_s) else interval_s)

    def slow(self, now_s: float) -> Hop | None:
        """The hop that has made every token take much longer than before, once that is plain."""
        growth_s = self._slowness.judges(now_s, all_answered=self._watch.is_answered)
        return self._paces.cause(growth_s) if growth_s else None

    def fault(self, now_s: float) -> Fault | None:
        """Who is dead as far as silence tells, while the session runs."""
        late_s = self._patience.late_s(now_s)
        if late_s < PING_INTERVAL_S:
            return None
        suspects = {hop.peer for hop in self._path}
        if not self._patience.is_out(now_s):
            suspects = {self._path[self._watch.behind()].peer} if self._is_overdue(now_s) else set()
        return self.silence(suspects, late_s, now_s)

    def silence(self, awaited: Iterable[PeerId], late_s: float, now_s: float) -> Fault | None:
        """Who of those that are awaited, for so long by now, is dead as far as silence tells."""
        silent = self._watch.silent(now_s, awaited, ahead_s=self._arrival_s)
        if silent:
            return silent, "did not answer a ping"
        if late_s > WORK_LIMIT_S:
            return set(awaited), f"took more than {WORK_LIMIT_S:.0f} s"
        return None

    def heard(
        self, sender: PeerId, pong: Pong, awaited: int, now_s: float, *, is_current: bool
    ) -> Fault | None:
        """Learn from a pong; who is stuck by what it tells. `is_current`: of this attempt, and
        step `awaited` is under way."""
        self._paces.heard(sender, pong, self._watch.heard(sender, now_s))
        if not is_current or self._patience.late_s(now_s) <= 0:
            return None
        if pong.lacks(hop.span.start for hop in self._path if hop.peer == sender):
            return {sender}, "has forgotten the session"
        is_late = self._patience.is_out(now_s) or self._is_overdue(now_s)
        self._watch.seen(sender, pong, awaited, now_s, is_late=is_late)
        stuck = self._watch.stuck(now_s, self._patience.since_s, arrival_s=self._arrival_s)
        if stuck is not None:
            return {stuck}, "idle while a step waits for it"
        if self._patience.is_hopeless(now_s):
            return {self._path[self._watch.behind()].peer}, "computes without an end"
        return None

    def suspects(self, accuser: PeerId, blamed: PeerId, attempt: int) -> set[PeerId]:
        """Whom to replace when a hop blames one: both, if it blames others again and again."""
        if accuser == blamed:
            return {blamed}
        attempts = self._accused.setdefault(accuser, set())
        attempts.add(attempt)  # what is said twice of one fault counts once
        return {blamed, accuser} if len(attempts) >= ACCUSATIONS else {blamed}

    @property
    def _arrival_s(self) -> float:
        """How long the awaited frame may be under way from one hop to the next."""
        frame_bytes = self._patience.rows * self._row_bytes
        trips = TRIPS + (frame_bytes // PACKETS_BYTES).bit_length()
        return frame_bytes / LEAST_BYTES_PER_S + trips * self._paces.trip_s

    def _is_overdue(self, now_s: float) -> bool:
        """Whether the hop that has the awaited step took longer than it may by its own account.

        Nobody knows what is where during a replay: then only all hops together are timed. So
        they are where a hop says that it is computing: another session's prompt may be in its
        way, which its own account knows nothing of.
        """
        place = self._watch.behind()
        reached_s = self._watch.reached_s(place, self._patience.since_s)
        limit_s = self._paces.limit_s(self._path[place], self._patience.rows)
        if reached_s is None or limit_s is None or self._patience.is_replaying:
            return False
        return now_s - reached_s > limit_s
