"""What one hop gives a stand-in while its session goes on, so that it can step in at once.

There are two things to give: the frames that it retained, from which a worker of the next
layers computes its own cache, and its own cache, part by part, for a worker of its own layers.
"""

from __future__ import annotations

from gennode.errors import GennodeError, ResourceError
from gennode.node.actions import Action, Exported, ExportJob, Outcome, Run, Send
from gennode.node.flow import Flow
from gennode.node.hops.hosted import Hosted
from gennode.node.hops.retained import Kept
from gennode.wire.messages import CREDIT_BYTES, MAX_POSITIONS, CachePart, Feed


class FrameFeed:
    """The frames that a hop retained, to a worker of the next layers."""

    def __init__(self, hosted: Hosted, asked: Feed) -> None:
        self.hosted = hosted
        self.asked = asked
        self.layer = hosted.span.end  # the stand-in's first
        self.flow: Flow[Kept] = Flow()
        self.pushed = -1  # highest step that was given to the flow

    @property
    def is_active(self) -> bool:
        """Whether more is to be sent."""
        return self.flow.waiting > 0

    @property
    def is_own_turn(self) -> bool:
        """Whether it is ours to move: the stand-in is not waited for."""
        return False

    def more(self, from_position: int) -> list[Action]:
        """Send what is retained from a position on, and was not sent yet."""
        released: list[Kept] = []
        for frame in self.hosted.retained.between(from_position, MAX_POSITIONS):
            if frame.number > self.pushed:
                self.pushed = frame.number
                released += self.flow.push(frame, frame.size_bytes)
        return self._send(released)

    def credit(self, taken_bytes: int) -> list[Action]:
        """The stand-in took so much in. RemoteError if that can't be."""
        return self._send(self.flow.credit(taken_bytes))

    def withdraw(self, frame: Kept) -> None:
        """A frame was replaced: if it still waits it is not sent."""
        if self.flow.withdraw(frame):
            self.pushed = frame.number - 1

    def _send(self, frames: list[Kept]) -> list[Action]:
        peer, attempt, hosted = self.asked.peer, self.asked.attempt, self.hosted
        return [
            hosted.step_to(peer, attempt, frame, hosted.retained.payload(frame), rebuild=True)
            for frame in frames
        ]


class CacheFeed:
    """A hop's own cache, to a worker of the same layers.

    The next part is asked of the engine when none waits to be sent: no more than one is held
    here, however slow the stand-in is.
    """

    def __init__(self, hosted: Hosted, asked: Feed) -> None:
        self.hosted = hosted
        self.asked = asked
        self.layer = hosted.span.start  # the stand-in's first
        self.flow: Flow[Exported] = Flow()
        self._exporting: ExportJob | None = None
        self._next = self._until = 0

    @property
    def is_active(self) -> bool:
        """Whether more is to be sent."""
        return self.flow.waiting > 0 or self.is_own_turn or self._next < self._until

    @property
    def is_own_turn(self) -> bool:
        """Whether it is our engine's turn: the stand-in is not waited for."""
        return self._exporting is not None

    def more(self, from_position: int) -> list[Action]:
        """Send the cache from a position on, as far as it is known now."""
        self._next, self._until = from_position, self.hosted.positions
        return self._export()

    def credit(self, taken_bytes: int) -> list[Action]:
        """The stand-in took so much in. RemoteError if that can't be."""
        return [*self._send(self.flow.credit(taken_bytes)), *self._export()]

    def exported(self, job: ExportJob, outcome: Outcome) -> list[Action]:
        """The engine gave out a part. ResourceError if it failed at it."""
        if job != self._exporting:
            return []  # another feed's
        self._exporting = None
        if isinstance(outcome, GennodeError):
            raise ResourceError(str(outcome)) from outcome
        if isinstance(outcome, Exported) and job.start == self._next:  # else overtaken
            if outcome.end <= outcome.start:  # steps were taken back meanwhile
                self._until = self._next
                return []
            self._next = outcome.end
            parts = self.flow.push(outcome, len(outcome.payload))
            return [*self._send(parts), *self._export()]
        return self._export()

    def _export(self) -> list[Action]:
        if self._exporting or self.flow.waiting or self._next >= self._until:
            return []
        opened, key = self.hosted.opened, self.hosted.key
        self._exporting = ExportJob(opened.model, key, opened.attempt, self._next, CREDIT_BYTES)
        return [Run(self._exporting)]

    def _send(self, parts: list[Exported]) -> list[Action]:
        return [Send(self.asked.peer, self._part(part), part.payload) for part in parts]

    def _part(self, part: Exported) -> CachePart:
        session, attempt = self.asked.session, self.asked.attempt
        return CachePart(session, attempt, self.layer, part.layout, part.start, part.end)
