"""Flows: never more under way than agreed, every frame in order, and no waiting for nothing."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gennode.errors import RemoteError
from gennode.node.flow import Flow, Intake
from gennode.wire.frames import MAX_FRAME_BYTES
from gennode.wire.messages import CREDIT_BYTES, WINDOW_BYTES


def test_frames_go_out_at_once_while_there_is_room() -> None:
    flow: Flow[str] = Flow()
    assert flow.push("first", WINDOW_BYTES - 1) == ["first"]
    assert flow.push("second", 1) == ["second"]
    assert flow.push("third", 1) == []
    assert (flow.waiting, flow.under_way_bytes) == (1, WINDOW_BYTES)
    assert flow.credit(1) == ["third"]


def test_small_frames_do_not_overtake_a_large_one() -> None:
    flow: Flow[str] = Flow()
    flow.push("under way", WINDOW_BYTES - 2)
    assert flow.push("large", CREDIT_BYTES) == []
    assert flow.push("small", 1) == []
    assert flow.credit(WINDOW_BYTES - 2) == ["large", "small"]


def test_no_frame_waits_for_a_credit_that_never_comes() -> None:
    # The receiver has taken the first frame, and would say so only with more.
    flow, intake = Flow[str](), Intake()
    flow.push("first", CREDIT_BYTES - 1)
    assert intake.take(CREDIT_BYTES - 1) is None
    assert flow.push("the largest", MAX_FRAME_BYTES) == ["the largest"]


def test_credits_may_come_late_and_twice() -> None:
    flow: Flow[int] = Flow()
    for number in range(5):
        flow.push(number, CREDIT_BYTES)
    assert flow.waiting == 1
    assert flow.credit(2 * CREDIT_BYTES) == [4]
    for taken_bytes in (CREDIT_BYTES, 2 * CREDIT_BYTES, 0):
        assert flow.credit(taken_bytes) == []
    assert flow.under_way_bytes == 3 * CREDIT_BYTES


def test_a_credit_for_more_than_was_sent_is_a_breach() -> None:
    flow: Flow[str] = Flow()
    flow.push("sent", WINDOW_BYTES)
    flow.push("waits", 10)
    with pytest.raises(RemoteError, match="more than was sent"):
        flow.credit(WINDOW_BYTES + 1)
    assert (flow.waiting, flow.under_way_bytes) == (1, WINDOW_BYTES)


def test_the_last_frame_can_be_withdrawn_while_it_waits() -> None:
    flow: Flow[str] = Flow()
    flow.push("sent", WINDOW_BYTES)
    assert not flow.withdraw("sent")
    flow.push("first", 1)
    flow.push("second", 1)
    assert not flow.withdraw("first")
    assert flow.withdraw("second")
    assert flow.credit(WINDOW_BYTES) == ["first"]


def test_single_tokens_cost_no_message() -> None:
    intake, token_bytes = Intake(), 8192
    said = [intake.take(token_bytes) for _ in range(2 * CREDIT_BYTES // token_bytes)]
    assert [credit for credit in said if credit] == [CREDIT_BYTES, 2 * CREDIT_BYTES]


class FlowMachine(RuleBasedStateMachine):
    """A sender and a receiver, whose messages take any time; each frame is its size in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.flow: Flow[tuple[int, int]] = Flow()
        self.intake = Intake()
        self.pushed: list[tuple[int, int]] = []
        self.sent: list[tuple[int, int]] = []
        self.taken = 0  # frames
        self.credits: list[int] = []  # under way

    @rule(size_bytes=st.integers(1, MAX_FRAME_BYTES))
    def push(self, size_bytes: int) -> None:
        frame = len(self.pushed), size_bytes
        self.pushed.append(frame)
        self._send(self.flow.push(frame, size_bytes))

    @precondition(lambda self: self.taken < len(self.sent))
    @rule()
    def take(self) -> None:
        credit = self.intake.take(self.sent[self.taken][1])
        self.taken += 1
        if credit is not None:
            self.credits.append(credit)

    @precondition(lambda self: self.credits)
    @rule(data=st.data())
    def credit(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.credits) - 1))
        self._send(self.flow.credit(self.credits.pop(place)))

    @precondition(lambda self: self.flow.waiting)
    @rule()
    def withdraw(self) -> None:
        assert self.flow.withdraw(self.pushed.pop())

    def _send(self, frames: list[tuple[int, int]]) -> None:
        for place, frame in enumerate(frames):
            self.sent.append(frame)
            if place < len(frames) - 1:  # the last one is held against the flow's own count
                continue
            before_bytes = self.flow.under_way_bytes - frame[1]
            assert before_bytes < CREDIT_BYTES or self.flow.under_way_bytes <= WINDOW_BYTES

    @invariant()
    def frames_go_out_in_order(self) -> None:
        assert self.sent == self.pushed[: len(self.sent)]
        assert len(self.pushed) == len(self.sent) + self.flow.waiting

    @invariant()
    def no_more_is_under_way_than_agreed(self) -> None:
        assert self.flow.under_way_bytes < CREDIT_BYTES + MAX_FRAME_BYTES
        assert self.flow.under_way_bytes >= sum(size for _, size in self.sent[self.taken :])

    def teardown(self) -> None:
        """Whatever came before: a receiver that goes on taking gets everything."""
        while self.taken < len(self.sent) or self.credits:
            while self.taken < len(self.sent):
                self.take()
            while self.credits:
                self._send(self.flow.credit(self.credits.pop()))
        assert self.sent == self.pushed
        assert self.flow.waiting == 0


TestFlowMachine = FlowMachine.TestCase
TestFlowMachine.settings = settings(max_examples=60, stateful_step_count=40)
