"""What a long task tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class ShowProgress(Protocol):
    """Shows a bar while the context lasts; the callable is told (done, in all)."""

    def __call__(
        self, title: str, *, unit: str = ...
    ) -> AbstractContextManager[Callable[[int, int], None]]:
        """Begin a bar."""


@contextmanager
def unwatched(title: str, *, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """Progress that nobody sees."""
    del title, unit
    yield lambda _done, _total: None
