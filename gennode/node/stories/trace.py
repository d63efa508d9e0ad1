"""What happened in a story: a digest over every event, and lines for people."""

from __future__ import annotations

import hashlib
import struct

_TIME = struct.Struct("<d")
MAX_WAITING = 512  # parts: what hashes many at once takes half as long


class Trace:
    """Grows event by event. Two runs of one seed end in the same digest, on any machine."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._waiting: list[bytes] = []
        self.lines: list[str] = []

    def note(self, now_s: float, *parts: bytes) -> None:
        """An event that only counts."""
        waiting = self._waiting
        waiting.append(_TIME.pack(now_s))
        waiting += parts
        if len(waiting) > MAX_WAITING:
            self._take_in()

    def tell(self, now_s: float, line: str) -> None:
        """An event that people want to read of."""
        self.note(now_s, line.encode())
        self.lines.append(f"{now_s:8.2f} s  {line}")

    @property
    def digest(self) -> str:
        """Of all that happened so far."""
        self._take_in()
        return self._hash.hexdigest()

    def _take_in(self) -> None:
        self._hash.update(b"".join(self._waiting))
        self._waiting.clear()
