"""How long to wait for a step before asking whether its hops still live."""

from __future__ import annotations

from collections import deque

MIN_PATIENCE_S = 1.0  # design: max(1 s, 4 × p99)
P99_FACTOR = 4.0
WINDOW = 128  # recent steps that the 99th percentile is taken over
BUSY_FACTOR = 4.0  # so much more patience with a hop that says that it is computing
MIN_BUSY_S = 5.0
ENOUGH_STEPS = 8  # measured, before a busy hop may be judged by them
FIRST_PATIENCE_S = 2.0  # before anything was measured; it only starts questions, never ends them
REPLAY_LIMIT_S = 300.0  # from its restart on, a replay that comes in drops is no sign of life


def limit_s(row_times_s: deque[float], rows: int) -> float:
    """How long so many rows may take, by what single ones took."""
    ordered = sorted(row_times_s)
    p99_s = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return max(MIN_PATIENCE_S, P99_FACTOR * p99_s * max(1, rows))


class Patience:
    """Times of recent steps, and when the ones that are under way were sent.

    The clock of the oldest starts anew whenever something shows that the route moves: an answer
    to the one before it, or a part of a replay that was taken in.
    """

    def __init__(self) -> None:
        self._sent: dict[int, tuple[float, int]] = {}  # step → (when, rows)
        self._row_times_s: deque[float] = deque(maxlen=WINDOW)
        self._moved_s = float("-inf")
        self._replay_end_s = float("-inf")  # when a replay must be over
        self._replayed_rows = 0  # in the largest frame that goes ahead of the oldest step

    def sent(self, number: int, rows: int, now_s: float) -> None:
        """A step went out."""
        self._sent[number] = (now_s, rows)

    def answered(self, number: int, now_s: float) -> float | None:
        """A step came back: how long it took."""
        self._moved_s, self._replayed_rows = now_s, 0
        sent = self._sent.pop(number, None)
        if sent is None:
            return None
        since_s, rows = sent
        self._row_times_s.append((now_s - since_s) / max(1, rows))
        return now_s - since_s

    def moved(self, now_s: float) -> bool:
        """A frame of a replay has arrived where it was to go: whether that counts as progress."""
        if now_s > self._replay_end_s:
            return False
        self._moved_s = now_s
        return True

    def restart(self, replayed_rows: int, now_s: float) -> None:
        """Forget what was under way: it will be sent again, behind a replay of such frames."""
        self._sent.clear()
        self._replayed_rows = replayed_rows
        self._replay_end_s = now_s + REPLAY_LIMIT_S

    @property
    def since_s(self) -> float:
        """When the oldest step was sent, or the route last moved; never if none is under way."""
        if not self._sent:
            return float("inf")
        return max(next(iter(self._sent.values()))[0], self._moved_s)

    @property
    def rows(self) -> int:
        """What is to be computed until the route moves again."""
        oldest = next(iter(self._sent.values()))[1] if self._sent else 0
        return max(oldest, self._replayed_rows)

    @property
    def is_replaying(self) -> bool:
        """Whether the awaited step is behind a replay."""
        return self._replayed_rows > 0

    def late_s(self, now_s: float) -> float:
        """How long the oldest step has been under way; 0 if none is."""
        return max(0.0, now_s - self.since_s)

    def is_out(self, now_s: float) -> bool:
        """Whether the oldest step has taken longer than it reasonably may."""
        return self.late_s(now_s) > self._limit_s()

    def is_hopeless(self, now_s: float) -> bool:
        """Whether even a hop that is computing has had all the time that it can need."""
        if len(self._row_times_s) < ENOUGH_STEPS:
            return False
        return self.late_s(now_s) > max(MIN_BUSY_S, BUSY_FACTOR * self._limit_s())

    def _limit_s(self) -> float:
        return limit_s(self._row_times_s, self.rows) if self._row_times_s else FIRST_PATIENCE_S
