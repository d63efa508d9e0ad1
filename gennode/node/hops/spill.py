"""Where frames go that take too much memory: a seam, a file on disk, and a twin in memory.

A store never raises when it is given something: it has room or it has not. What it gives back is
what it was given, or an error; a flipped bit is never sent to anybody.
"""

from __future__ import annotations

import bisect
import logging
import os
import shutil
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from gennode.errors import ResourceError

log = logging.getLogger(__name__)

SPILLED_BYTES = 4 * 1024 * 1024 * 1024  # some minutes of prefill of all sessions
LEAST_FREE_BYTES = 1024 * 1024 * 1024  # of the disk: it is other programs' as well


@dataclass(frozen=True)
class Ticket:
    """For one payload that was put aside."""

    offset: int
    size_bytes: int
    checksum: int


class FrameStore(Protocol):
    """Holds payloads until they are dropped."""

    def put(self, payload: bytes) -> Ticket | None:
        """Put a payload aside; None if there is no room, or the disk refuses."""

    def get(self, ticket: Ticket) -> bytes:
        """Read it; ResourceError if it can't be read, or is not what was put aside."""

    def drop(self, ticket: Ticket) -> None:
        """Forget it."""


@dataclass
class MemoryStore:
    """The twin: with no limit given, it has no room at all."""

    limit_bytes: int = 0
    refuses: bool = False
    """Takes nothing in, as a full disk."""
    loses: bool = False
    """Gives nothing back, as a broken disk."""
    _payloads: dict[int, bytes] = field(default_factory=dict)
    _next: int = 0

    @property
    def held_bytes(self) -> int:
        """What is put aside now."""
        return sum(map(len, self._payloads.values()))

    def put(self, payload: bytes) -> Ticket | None:
        """Put a payload aside, if there is room."""
        if self.refuses or self.held_bytes + len(payload) > self.limit_bytes:
            return None
        self._next += 1
        self._payloads[self._next] = payload
        return Ticket(self._next, len(payload), zlib.crc32(payload))

    def get(self, ticket: Ticket) -> bytes:
        """Read it."""
        if self.loses:
            raise ResourceError("a frame that was put aside can't be read")
        return self._payloads[ticket.offset]

    def drop(self, ticket: Ticket) -> None:
        """Forget it."""
        del self._payloads[ticket.offset]


class DiskStore:
    """One file without a name, which is gone when the process is, however it ends.

    The file shrinks when its end is free; holes in it are used again, the first that fits.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limit_bytes: int = SPILLED_BYTES,
        least_free_bytes: int = LEAST_FREE_BYTES,
    ) -> None:
        """`folder`: on which disk. Nothing is written there until it has to be."""
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._least_free_bytes = least_free_bytes
        self._file: IO[bytes] | None = None
        self._size_bytes = 0
        self._holes: list[tuple[int, int]] = []  # (offset, size), by offset, never adjacent
        self._has_failed = False

    @property
    def size_bytes(self) -> int:
        """How long the file is."""
        return self._size_bytes

    def put(self, payload: bytes) -> Ticket | None:
        """Put a payload aside; the first failure of the disk is logged."""
        ticket = None
        try:
            offset = self._allocate(len(payload))
            if offset is None:
                return None
            ticket = Ticket(offset, len(payload), zlib.crc32(payload))
            if os.pwrite(self._descriptor(), payload, offset) < len(payload):
                raise OSError("a write was cut short")
        except OSError as error:
            self._fails(error)
            if ticket is not None:
                self.drop(ticket)
            return None
        return ticket

    def get(self, ticket: Ticket) -> bytes:
        """Read it, and compare it with what was put aside."""
        try:
            payload = os.pread(self._descriptor(), ticket.size_bytes, ticket.offset)
        except OSError as error:
            self._fails(error)
            raise ResourceError(f"a frame that was put aside can't be read: {error}") from error
        if len(payload) != ticket.size_bytes or zlib.crc32(payload) != ticket.checksum:
            self._fails("what was read is not what was written")
            raise ResourceError("a frame that was put aside has changed on disk")
        return payload

    def drop(self, ticket: Ticket) -> None:
        """Forget it; its place in the file is free."""
        start, end = ticket.offset, ticket.offset + ticket.size_bytes
        place = bisect.bisect(self._holes, (start, end))
        if place < len(self._holes) and self._holes[place][0] == end:
            end += self._holes.pop(place)[1]
        if place and sum(self._holes[place - 1]) == start:
            place -= 1
            start = self._holes.pop(place)[0]
        self._holes.insert(place, (start, end - start))
        if end == self._size_bytes:
            self._resize(start)

    def close(self) -> None:
        """Give the disk's space back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _allocate(self, size_bytes: int) -> int | None:
        for place, (offset, hole_bytes) in enumerate(self._holes):
            if hole_bytes >= size_bytes:
                rest = (offset + size_bytes, hole_bytes - size_bytes)
                self._holes[place : place + 1] = [rest] if rest[1] else []
                return offset
        offset = self._size_bytes
        if offset + size_bytes > self._limit_bytes:
            return None
        if shutil.disk_usage(self._folder).free - size_bytes < self._least_free_bytes:
            return None
        self._size_bytes += size_bytes
        return offset

    def _resize(self, size_bytes: int) -> None:
        self._holes.pop()
        self._size_bytes = size_bytes
        try:
            os.ftruncate(self._descriptor(), size_bytes)
        except OSError as error:  # the space stays taken, and is used again
            self._fails(error)

    def _descriptor(self) -> int:
        if self._file is None:  # nobody else can open it: it has no name, and is ours alone
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        return self._file.fileno()

    def _fails(self, why: object) -> None:
        if not self._has_failed:
            log.warning("spill_failed folder=%s error=%s", self._folder, why)
        self._has_failed = True
