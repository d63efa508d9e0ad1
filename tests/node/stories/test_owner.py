"""What an owner waits for comes once: whatever comes twice is a fault of ours."""

from __future__ import annotations

import pytest

from gennode.errors import LocalError, NoRouteError
from gennode.node.actions import Arrived, Lost, Opened
from gennode.node.stories.owner import NOTHING, Awaited, Promise
from gennode.wire.ids import SessionId

SESSION = SessionId(bytes(16))


def waiting(*steps: int) -> tuple[Awaited, list[Promise]]:
    awaited, promises = Awaited(), [Promise() for _ in steps]
    awaited.opened[SESSION] = Promise()
    for number, promise in zip(steps, promises, strict=True):
        awaited.steps[SESSION, number] = promise
    return awaited, promises


def test_a_step_is_answered_once() -> None:
    awaited, [first, second] = waiting(0, 1)
    awaited.hear(Arrived(SESSION, 0, NOTHING))
    assert (first.is_kept, second.is_kept) == (True, False)
    with pytest.raises(LocalError, match="answered twice"):
        awaited.hear(Arrived(SESSION, 0, NOTHING))


def test_a_session_is_opened_once() -> None:
    awaited, _ = waiting()
    awaited.hear(Opened(SESSION, ()))
    with pytest.raises(LocalError, match="opened twice"):
        awaited.hear(Opened(SESSION, ()))


def test_a_session_that_is_lost_ends_all_its_steps_once() -> None:
    awaited, promises = waiting(0, 1)
    awaited.hear(Lost(SESSION, NoRouteError("nobody is there")))
    assert all(promise.is_kept for promise in promises)
    for event in (Lost(SESSION, NoRouteError("again")), Arrived(SESSION, 1, NOTHING)):
        with pytest.raises(LocalError, match="a session that is over"):
            awaited.hear(event)
    awaited.forget(SESSION)
    assert awaited == Awaited()
