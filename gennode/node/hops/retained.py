"""The output frames that a hop keeps, from which the next hop is rebuilt when it dies."""

from __future__ import annotations

from dataclasses import dataclass

from gennode.errors import LocalError
from gennode.node.actions import StepJob
from gennode.node.hops.spill import FrameStore, Ticket


@dataclass(eq=False)
class Kept:
    """A step's output. The payload is in memory, or put aside with a ticket for it."""

    number: int
    position: int
    rows: int
    reply_rows: int
    rebuild: bool
    size_bytes: int
    payload: bytes | None
    ticket: Ticket | None = None

    @classmethod
    def of(cls, job: StepJob, payload: bytes) -> Kept:
        """What came of a job."""
        return cls(
            job.number, job.position, job.rows, job.reply_rows, job.rebuild, len(payload), payload
        )

    @property
    def end(self) -> int:
        """The position after its last."""
        return self.position + self.rows


class Retained:
    """One session's frames in position order, without gaps; the older ones may be put aside."""

    def __init__(self, store: FrameStore) -> None:
        self.frames: list[Kept] = []
        self.memory_bytes = 0
        self._store = store
        self._spilled = 0  # so many frames, the first ones, are in the store

    @property
    def end(self) -> int:
        """The position after the last that is retained."""
        return self.frames[-1].end if self.frames else 0

    def add(self, frame: Kept) -> None:
        """Keep a frame behind the others: those from its position on were cut, there is no gap."""
        self.frames.append(frame)
        self.memory_bytes += frame.size_bytes

    def cut(self, position: int) -> list[Kept]:
        """Forget the frames from a position on; which they were, the last one first.

        One that began before it stays whole: a hop that takes it in cuts it when the next comes.
        """
        gone = []
        while self.frames and self.frames[-1].position >= position:
            frame = self.frames.pop()
            self._release(frame)
            gone.append(frame)
        self._spilled = min(self._spilled, len(self.frames))
        return gone

    def give_up(self) -> None:
        """Forget all frames."""
        for frame in self.frames:
            self._release(frame)
        self.frames, self._spilled = [], 0

    def spill_oldest(self) -> bool:
        """Put the oldest frame aside that is in memory; whether there was room for it."""
        frame = self.frames[self._spilled]
        if frame.payload is None:
            raise LocalError("a frame was to be put aside twice")
        frame.ticket = self._store.put(frame.payload)
        if frame.ticket is None:
            return False
        frame.payload = None
        self.memory_bytes -= frame.size_bytes
        self._spilled += 1
        return True

    def payload(self, frame: Kept) -> bytes:
        """A frame's bytes; ResourceError if the store has lost them."""
        if frame.payload is not None:
            return frame.payload
        if frame.ticket is None:
            raise LocalError("a frame was sent that is no longer retained")
        return self._store.get(frame.ticket)

    def covers(self, start: int, end: int) -> bool:
        """Whether positions `[start, end)` can be replayed."""
        if start >= end:
            return True
        ends = max((frame.end for frame in self.frames), default=0)
        return ends >= end and self.frames[0].position <= start

    def between(self, start: int, end: int) -> list[Kept]:
        """The frames from the first on that holds anything of positions `[start, end)`, whole.

        None behind it is left out: what a long frame holds of them may have been corrected.
        """
        first = next((at for at, one in enumerate(self.frames) if one.end > start), None)
        frames = [] if first is None else self.frames[first:]
        return [frame for frame in frames if frame.position < end]

    def _release(self, frame: Kept) -> None:
        if frame.ticket is not None:
            self._store.drop(frame.ticket)
            frame.ticket = None
        else:
            self.memory_bytes -= frame.size_bytes
