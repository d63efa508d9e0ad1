"""Whether a session's tokens have come to take much longer than they used to: slow is dead too."""

from __future__ import annotations

import statistics
from collections import deque

SLOW_STEPS = 20  # in a row: one that is late, or five, happen to everybody
SLOW_FACTOR = 3.0  # times the usual
USUAL_STEPS = 64  # that the usual time is taken over
RENEW_STEPS = 16  # it is worked out anew after so many, not for each token
MIN_GROWTH_S = 0.02  # a change of hops for less would take longer than it saves
PAUSE_S = 30.0  # from one judgement to the next
ANSWER_S = 1.0  # from asking all hops to judging by what they said


class Slowness:
    """Times of steps of a single row, on one path."""

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=USUAL_STEPS)
        self._slow: list[float] = []  # the last ones, all in a row
        self._timed = 0
        self._usual_s = 0.0
        self._asked_s: float | None = None
        self._pause_until_s = float("-inf")
        self._knows_paces = False

    def timed(self, step_s: float) -> None:
        """A step of one row took so long."""
        if self._usual_s and step_s > SLOW_FACTOR * self._usual_s:
            if len(self._slow) < SLOW_STEPS:
                self._slow.append(step_s)
            return
        self._usual.extend(self._slow)
        self._slow.clear()
        self._usual.append(step_s)
        self._timed += 1
        if self._timed >= SLOW_STEPS and (self._timed - SLOW_STEPS) % RENEW_STEPS == 0:
            self._usual_s = statistics.median(self._usual)

    @property
    def growth_s(self) -> float:
        """By how much steps take longer than they used to; 0 if that is not sure or not much."""
        if len(self._slow) < SLOW_STEPS:
            return 0.0
        growth_s = statistics.median(self._slow) - self._usual_s
        return growth_s if growth_s >= MIN_GROWTH_S else 0.0

    def asks(self, now_s: float) -> bool:
        """Whether to ask all hops now how long a token takes them: once while all is as usual,
        and once it no longer is."""
        if self._usual_s and not self._knows_paces:
            self._knows_paces = True
            return True
        if self._asked_s is None and now_s >= self._pause_until_s and self.growth_s:
            self._asked_s = now_s
            return True
        return False

    def judges(self, now_s: float, *, all_answered: bool) -> float:
        """By how much steps have slowed down, once the hops were asked and had time to answer;
        else 0. Starts the pause."""
        if self._asked_s is None or not (all_answered or now_s - self._asked_s > ANSWER_S):
            return 0.0
        growth_s = self.growth_s
        self._asked_s, self._pause_until_s = None, now_s + PAUSE_S
        self._slow.clear()
        return growth_s
