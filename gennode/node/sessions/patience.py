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


class Patience:
    """Times of recent steps, and when the ones that are under way were sent."""

    def __init__(self) -> None:
        self._sent: dict[int, tuple[float, int]] = {}  # step → (when, rows)
        self._row_times_s: deque[float] = deque(maxlen=WINDOW)

    def sent(self, number: int, rows: int, now_s: float) -> None:
        """A step went out."""
        self._sent[number] = (now_s, rows)

    def answered(self, number: int, now_s: float) -> None:
        """A step came back."""
        sent = self._sent.pop(number, None)
        if sent is not None:
            self._row_times_s.append((now_s - sent[0]) / max(1, sent[1]))

    def restart(self) -> None:
        """Forget what was under way: it will be sent again."""
        self._sent.clear()

    def late_s(self, now_s: float) -> float:
        """How long the oldest step has been under way; 0 if none is."""
        return now_s - next(iter(self._sent.values()))[0] if self._sent else 0.0

    def is_out(self, now_s: float) -> bool:
        """Whether the oldest step has taken longer than it reasonably may."""
        if not self._sent:
            return False
        since_s, rows = next(iter(self._sent.values()))
        return now_s - since_s > self._limit_s(rows)

    def is_hopeless(self, now_s: float) -> bool:
        """Whether even a hop that is computing has had all the time that it can need."""
        if not self._sent or len(self._row_times_s) < ENOUGH_STEPS:
            return False
        since_s, rows = next(iter(self._sent.values()))
        return now_s - since_s > max(MIN_BUSY_S, BUSY_FACTOR * self._limit_s(rows))

    def _limit_s(self, rows: int) -> float:
        if not self._row_times_s:
            return FIRST_PATIENCE_S
        ordered = sorted(self._row_times_s)
        p99_s = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        return max(MIN_PATIENCE_S, P99_FACTOR * p99_s * max(1, rows))
