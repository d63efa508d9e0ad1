"""What happened in a story: a digest over every event, and lines for people."""

from __future__ import annotations

import hashlib
import struct

_TIME = struct.Struct("<d")


class Trace:
    """Grows event by event. Two runs of one seed end in the same digest, on any machine."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.lines: list[str] = []

    def note(self, now_s: float, *parts: bytes) -> None:
        """An event that only counts."""
        self._hash.update(_TIME.pack(now_s) + b"".join(parts))

    def tell(self, now_s: float, line: str) -> None:
        """An event that people want to read of."""
        self.note(now_s, line.encode())
        self.lines.append(f"{now_s:8.2f} s  {line}")

    @property
    def digest(self) -> str:
        """Of all that happened so far."""
        return self._hash.hexdigest()
