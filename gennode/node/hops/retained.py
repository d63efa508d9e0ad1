"""The output frames that a hop keeps, from which the next hop is rebuilt when it dies."""

from __future__ import annotations

from dataclasses import dataclass, field

from gennode.node.actions import StepJob


@dataclass
class Retained:
    """One session's frames in position order. `complete`: none of them was given up."""

    frames: list[StepJob] = field(default_factory=list)
    size_bytes: int = 0
    complete: bool = True

    def add(self, frame: StepJob) -> None:
        """Keep a frame in place of those from its position on."""
        while self.frames and self.frames[-1].position >= frame.position:
            self.size_bytes -= len(self.frames.pop().payload)
        self.frames.append(frame)
        self.size_bytes += len(frame.payload)

    def drop(self) -> None:
        """Give up all frames: they take too much memory."""
        self.frames, self.size_bytes, self.complete = [], 0, False

    def covers(self, positions: int) -> bool:
        """Whether so many positions can be replayed."""
        end = self.frames[-1].position + self.frames[-1].rows if self.frames else 0
        return self.complete and end >= positions
