"""The owner's own steps: kept, so that any hop can be rebuilt from them, and their way out."""

from __future__ import annotations

from itertools import dropwhile
from typing import NamedTuple

from gennode.errors import LocalError
from gennode.node.actions import Send
from gennode.node.flow import Flow
from gennode.wire.fields import CodecName
from gennode.wire.ids import PeerId, SessionId
from gennode.wire.messages import Step


class OwnerStep(NamedTuple):
    """One pass down the route, as the owner sends it."""

    number: int
    position: int
    rows: int
    reply_rows: int
    payload: bytes

    @property
    def end(self) -> int:
        """The position behind its last."""
        return self.position + self.rows


class StepLog:
    """The steps of a session in position order; first those that are answered."""

    def __init__(self) -> None:
        self._steps: list[OwnerStep] = []
        self._next_number = 0
        self.answered = 0
        """Steps below this number are answered."""
        self.positions = 0
        """Positions of which that is true: what each hop of the path holds at least."""
        self.reach = 0
        """The position behind the last that was ever sent, forgotten steps too: nobody can
        honestly claim to hold more."""

    @property
    def is_idle(self) -> bool:
        """Whether every step is answered."""
        return self.answered == self._next_number

    def add(self, position: int, rows: int, reply_rows: int, payload: bytes) -> OwnerStep:
        """Append a step. Those at `position` or beyond are forgotten: LocalError if one of
        them is not answered."""
        while self._steps and self._steps[-1].position >= position:
            if self._steps.pop().number >= self.answered:
                raise LocalError("a step that is under way can't be replaced")
        self.positions = min(self.positions, position)
        step = OwnerStep(self._next_number, position, rows, reply_rows, payload)
        self._next_number += 1
        self._steps.append(step)
        self.reach = max(self.reach, step.end)
        return step

    def awaited(self) -> OwnerStep | None:
        """The step that is to be answered next."""
        ahead = self._next_number - self.answered  # the unanswered are the tail
        return self._steps[-ahead] if ahead else None

    def answer(self, step: OwnerStep) -> None:
        """The awaited step is answered."""
        self.answered += 1
        self.positions = step.end

    def rebuilding(self, start: int) -> list[OwnerStep]:
        """What rebuilds a hop that holds a position: the answered steps from the first on that
        reaches beyond it. Later ones may end before it, where the first was taken back in part.
        """
        known = [one for one in self._steps if one.number < self.answered]
        return list(dropwhile(lambda one: one.end <= start, known))

    def unanswered(self) -> list[OwnerStep]:
        """Steps that have to be sent, or sent again."""
        return [one for one in self._steps if one.number >= self.answered]


class StepFlow:
    """Steps on their way to one first hop under one attempt, never too many at a time."""

    def __init__(self, session: SessionId, codec: CodecName, peer: PeerId, attempt: int) -> None:
        self._session = session
        self._codec = codec
        self._attempt = attempt
        self._flow: Flow[Send] = Flow()
        self.peer = peer

    def send(self, step: OwnerStep, *, rebuild: bool) -> list[Send]:
        """What can be sent now that this step is to go out."""
        message = Step(
            session=self._session,
            attempt=self._attempt,
            number=step.number,
            layer=0,
            position=step.position,
            rows=step.rows,
            reply_rows=step.reply_rows,
            codec=self._codec,
            rebuild=rebuild,
        )
        return self._flow.push(Send(self.peer, message, step.payload), len(step.payload))

    def credit(self, taken_bytes: int) -> list[Send]:
        """What can be sent now that so much was taken; RemoteError if that can't be."""
        return self._flow.credit(taken_bytes)
