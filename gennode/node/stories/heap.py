"""Virtual time: a heap of what will happen, and nothing else moves the clock."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Heap:
    """Calls in the order of their times; those of one time in the order of their asking."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when_s: float, call: Callable[[], None]) -> None:
        """Have something happen at a time."""
        heapq.heappush(self._heap, (when_s, next(self._order), call))

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Have something happen later."""
        self.at(self.now_s + delay_s, call)

    def run(self, until_s: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let events happen until a time, or until `done`."""
        heap = self._heap
        while heap and heap[0][0] <= until_s and not done():
            self.now_s, _, call = heapq.heappop(heap)
            self.events += 1
            call()
        if not done():
            self.now_s = max(self.now_s, until_s)
