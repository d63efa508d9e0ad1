"""One heap of what will happen, and the clock that jumps from one event to the next."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

_REPORTS = 200  # how often a run tells how far it is


class Events:
    """Virtual time in seconds. Events at one moment happen in the order they were planned in."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.handled = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = 0

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Call `action` in so many seconds."""
        self._planned += 1
        heapq.heappush(self._heap, (self.now_s + delay_s, self._planned, action, arguments))

    def run(self, until_s: float, report: Callable[[float], None]) -> None:
        """Let everything happen that lies before `until_s`; `report` hears the time."""
        heap, next_report_s = self._heap, 0.0
        while heap and heap[0][0] < until_s:
            self.now_s, _, action, arguments = heapq.heappop(heap)
            self.handled += 1
            action(*arguments)
            if self.now_s >= next_report_s:
                report(self.now_s)
                next_report_s = self.now_s + until_s / _REPORTS
        self.now_s = until_s
