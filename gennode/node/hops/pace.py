"""How long single tokens take in a hop, from coming in to going out."""

from __future__ import annotations

from collections import deque
from statistics import median

TOLD_TOKENS = 20  # enough that one hiccup does not show, few enough to tell of the moment


class Pace:
    """The times of one hop's last steps of a single row."""

    def __init__(self) -> None:
        self._came: deque[tuple[int, float]] = deque()  # (step, when), of those that are here
        self._times_s: deque[float] = deque(maxlen=TOLD_TOKENS)

    @property
    def token_s(self) -> float:
        """Their median; 0 if there were none."""
        return median(self._times_s) if self._times_s else 0.0

    def came(self, number: int, now_s: float) -> None:
        """A row came in."""
        self._came.append((number, now_s))

    def went(self, number: int, now_s: float) -> None:
        """A step is done. What came before it and is still here never will be."""
        while self._came and self._came[0][0] <= number:
            came, since_s = self._came.popleft()
            if came == number:
                self._times_s.append(now_s - since_s)

    def restart(self) -> None:
        """A new attempt: what was under way is sent again."""
        self._came.clear()
