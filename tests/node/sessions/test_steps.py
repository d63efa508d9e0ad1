"""The owner's steps: what is kept of them, and how many go out at a time."""

from __future__ import annotations

import pytest

from gennode.errors import LocalError, RemoteError
from gennode.node.actions import Send
from gennode.node.sessions.steps import StepFlow, StepLog
from gennode.wire.messages import CREDIT_BYTES, WINDOW_BYTES, Step
from tests.node.conftest import FIRST, SESSION

HALF = bytes(WINDOW_BYTES // 2)


def answer(log: StepLog, steps: int = 1) -> None:
    for _ in range(steps):
        step = log.awaited()
        assert step is not None
        log.answer(step)


def numbers(sends: list[Send]) -> list[int]:
    return [send.message.number for send in sends if isinstance(send.message, Step)]


def test_steps_are_answered_in_order() -> None:
    log = StepLog()
    assert log.is_idle
    first, second = log.add(0, 100, 0, b""), log.add(100, 20, 1, b"")
    assert (log.awaited(), log.positions, log.is_idle) == (first, 0, False)
    answer(log)
    assert (log.awaited(), log.positions) == (second, 100)
    answer(log)
    assert (log.awaited(), log.positions, log.is_idle) == (None, 120, True)


def test_a_hop_is_rebuilt_from_what_it_lacks() -> None:
    log = StepLog()
    for position in (0, 100, 120, 121):
        log.add(position, {0: 100, 100: 20}.get(position, 1), 1, b"")
    answer(log, 3)
    assert [step.number for step in log.rebuilding(0)] == [0, 1, 2]
    assert [step.number for step in log.rebuilding(110)] == [1, 2]
    assert [step.number for step in log.rebuilding(120)] == [2]
    assert log.rebuilding(121) == []
    assert [step.number for step in log.unanswered()] == [3]


def test_steps_can_be_taken_back_once_they_are_answered() -> None:
    log = StepLog()
    for position in range(5):
        log.add(position, 1, 1, b"")
    answer(log, 5)
    again = log.add(2, 1, 1, b"")
    assert (again.number, log.positions, log.reach) == (5, 2, 5)
    assert [step.position for step in log.rebuilding(0)] == [0, 1]
    with pytest.raises(LocalError):
        log.add(1, 1, 1, b"")


def test_a_step_taken_back_in_its_middle_counts_up_to_there() -> None:
    log = StepLog()
    log.add(0, 100, 1, b"")
    answer(log)
    log.add(64, 1, 1, b"")
    assert log.positions == 64
    answer(log)
    assert log.positions == 65
    assert [step.position for step in log.rebuilding(0)] == [0, 64]


def test_what_follows_a_step_taken_back_in_its_middle_is_rebuilt_with_it() -> None:
    log = StepLog()
    log.add(0, 100, 1, b"")
    answer(log)
    log.add(64, 1, 1, b"")
    answer(log)
    assert [step.position for step in log.rebuilding(70)] == [0, 64]


def test_no_more_than_a_window_is_under_way() -> None:
    flow, log = StepFlow(SESSION, "raw", FIRST, 3), StepLog()
    steps = [log.add(number, 1, 1, HALF) for number in range(5)]
    sent = [numbers(flow.send(step, rebuild=False)) for step in steps]
    assert sent == [[0], [1], [], [], []]
    assert numbers(flow.credit(CREDIT_BYTES)) == []
    assert numbers(flow.credit(len(HALF))) == [2]
    assert numbers(flow.credit(3 * len(HALF))) == [3, 4]
    with pytest.raises(RemoteError):
        flow.credit(6 * len(HALF))


def test_single_tokens_wait_for_nothing() -> None:
    flow, log = StepFlow(SESSION, "raw", FIRST, 3), StepLog()
    payload = bytes(8192)
    for position in range(CREDIT_BYTES // len(payload)):
        [send] = flow.send(log.add(position, 1, 1, payload), rebuild=False)
        assert send.message == Step(SESSION, 3, position, 0, position, 1, 1, "raw", False)
