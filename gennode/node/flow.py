"""One stream of frames between two peers, so that the slower one is never buried in them.

The sender keeps a `Flow`, the receiver an `Intake`; `Credit` messages join the two. A new
attempt is a new flow: what the old one held is forgotten.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from gennode.errors import RemoteError
from gennode.wire.messages import CREDIT_BYTES, WINDOW_BYTES

Frame = TypeVar("Frame")


class Flow(Generic[Frame]):
    """Frames in the order in which they were pushed, each sent as soon as there is room for it.

    There is while no more than `WINDOW_BYTES` would be under way. Whatever its size, a frame may
    also go out while less than `CREDIT_BYTES` are: the receiver says nothing about those, even
    if it has taken them all, so that there may be no credit to wait for.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Frame, int]] = deque()
        self._sent_bytes = 0
        self._taken_bytes = 0

    @property
    def waiting(self) -> int:
        """Frames that are not sent yet."""
        return len(self._waiting)

    @property
    def under_way_bytes(self) -> int:
        """Sent, and not yet said to be taken."""
        return self._sent_bytes - self._taken_bytes

    def push(self, frame: Frame, size_bytes: int) -> list[Frame]:
        """Add a frame; what is to be sent now."""
        self._waiting.append((frame, size_bytes))
        return self._released()

    def credit(self, taken_bytes: int) -> list[Frame]:
        """The receiver has taken so much in all; what is to be sent now.

        Credits may come late or twice. RemoteError if it claims more than was sent.
        """
        if taken_bytes > self._sent_bytes:
            raise RemoteError("a credit claims more than was sent")
        self._taken_bytes = max(self._taken_bytes, taken_bytes)
        return self._released()

    def clear(self) -> None:
        """Forget all frames that wait."""
        self._waiting.clear()

    def withdraw(self, frame: Frame) -> bool:
        """Forget a frame if it is the last one that waits; whether it was."""
        if not self._waiting or self._waiting[-1][0] is not frame:
            return False
        self._waiting.pop()
        return True

    def _released(self) -> list[Frame]:
        frames = []
        while self._waiting and self._has_room(self._waiting[0][1]):
            frame, size_bytes = self._waiting.popleft()
            self._sent_bytes += size_bytes
            frames.append(frame)
        return frames

    def _has_room(self, size_bytes: int) -> bool:
        under_way_bytes = self.under_way_bytes
        return under_way_bytes < CREDIT_BYTES or under_way_bytes + size_bytes <= WINDOW_BYTES


class Intake:
    """The receiver's count of what it took of a flow."""

    def __init__(self) -> None:
        self._taken_bytes = 0
        self._said_bytes = 0

    def take(self, size_bytes: int) -> int | None:
        """Count a frame that is done with; what to give credit for, if it is time to."""
        self._taken_bytes += size_bytes
        if self._taken_bytes - self._said_bytes < CREDIT_BYTES:
            return None
        self._said_bytes = self._taken_bytes
        return self._taken_bytes
