"""Service received, by whom: what fairness between owners, or between models, is judged by."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Who = TypeVar("Who", bound=Hashable)

MAX_REMEMBERED = 1024  # who is not served now, but has had more than others: 100 bytes each


class Shares(Generic[Who]):
    """Start-time fair shares: whoever waits is compared by the service that it has had.

    Who comes (back) starts level with the least served of those that wait: time spent away
    earns no claim, and what was had before is not forgotten by leaving for a moment. Goyal, Vin
    and Cheng, "Start-time fair queueing", SIGCOMM 1996.
    """

    def __init__(self) -> None:
        self._served: dict[Who, float] = {}
        self._waiting: dict[Who, int] = {}
        self._level = 0.0
        self._is_level = True  # whether the level is that of those who wait now

    def join(self, who: Who) -> None:
        """One more thing of theirs waits."""
        if who not in self._waiting:
            self._raise_level()
            had = self._served.pop(who, 0.0)
            self._served[who] = max(had, self._level)  # at the end: remembered longest
            self._is_level = False
        self._waiting[who] = self._waiting.get(who, 0) + 1

    def leave(self, who: Who) -> None:
        """One thing of theirs waits no longer."""
        self._waiting[who] -= 1
        if not self._waiting[who]:
            del self._waiting[who]
            self._is_level = False
            if not self._waiting:
                self._level = max(self._level, self._served[who])
            if len(self._served) - len(self._waiting) > 2 * MAX_REMEMBERED:
                self._forget()

    def serve(self, who: Who, amount: float) -> None:
        """They have had so much more."""
        self._served[who] = self._served.get(who, self._level) + amount
        self._is_level = False

    def lead(self, who: Who) -> float:
        """How much more than the least served of those that wait they have had."""
        self._raise_level()
        return max(0.0, self._served.get(who, 0.0) - self._level)

    def least(self) -> Who:
        """The least served of those that wait, the one that joined first of several.

        ValueError if nobody waits.
        """
        return min(self._waiting, key=self._served.__getitem__)

    def _raise_level(self) -> None:
        if self._waiting and not self._is_level:
            self._level = max(self._level, min(self._served[who] for who in self._waiting))
        self._is_level = True

    def _forget(self) -> None:
        self._raise_level()
        away = [who for who in self._served if who not in self._waiting]
        surplus = len(away) - MAX_REMEMBERED
        for place, who in enumerate(away):
            if place < surplus or self._served[who] <= self._level:
                del self._served[who]
