"""What hops, and others, may say to a session's owner: breaches are theirs, floods lead nowhere."""

from __future__ import annotations

import msgspec
import pytest

from gennode.errors import RemoteError
from gennode.node.actions import Rerouted
from gennode.wire.ids import PeerId
from gennode.wire.messages import (
    Accept,
    Credit,
    Failed,
    Fed,
    Leaving,
    Pong,
    Progress,
    Refuse,
    Step,
)
from tests.node.conftest import FIRST, SECOND, SESSION, SPARE, THIRD, frame
from tests.node.sessions.scouts import accept_all, answer, ready, result


@pytest.mark.parametrize(
    ("sender", "message", "payload"),
    [
        (SECOND, result(0), frame()),
        (THIRD, msgspec.structs.replace(result(0), layer=4), frame()),
        (SPARE, Accept(SESSION, 0, 1), b""),
        (SECOND, Accept(SESSION, 0, 9), b""),
        (FIRST, Failed(SESSION, 0, 2, 0, "that one"), b""),
        (THIRD, Failed(SESSION, 0, 63, 0, "no such one"), b""),
        (SPARE, Credit(SESSION, 0, 0, 1), b""),
        (SECOND, Credit(SESSION, 0, 0, 1), b""),
        (FIRST, Credit(SESSION, 0, 0, 1 << 53), b""),
        (SPARE, Fed(SESSION, 0, 2, 0), b""),
        (SECOND, Fed(SESSION, 0, 1, 0), b""),
        (THIRD, Fed(SESSION, 0, 2, 1 << 20), b""),
        (SPARE, Leaving(SESSION, 0, 1, 0, 0), b""),
        (SECOND, Leaving(SESSION, 0, 0, 0, 0), b""),
        (SECOND, Leaving(SESSION, 0, 9, 0, 0), b""),
    ],
)
def test_breaches_are_the_senders(sender: PeerId, message: Step, payload: bytes) -> None:
    machine = ready()
    machine.submit(0, 1, 1, frame(), 0.0)
    with pytest.raises(RemoteError):
        machine.receive(sender, message, payload, 0.1)


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (msgspec.structs.replace(result(0), rebuild=True), frame()),
        (result(1), frame()),
        (result(0, rows=2), frame(2)),
        (result(0), frame(2)),
    ],
)
def test_a_wrong_result_costs_the_last_hop_its_place_and_not_its_name(
    message: Step, payload: bytes
) -> None:
    """A liar above it can bring that about: a RemoteError would ban whoever sends this."""
    machine = ready()
    machine.submit(0, 1, 1, frame(), 0.0)
    told = accept_all(machine, machine.receive(THIRD, message, payload, 0.1), 0.2)
    [reroute] = [action for action in told if isinstance(action, Rerouted)]
    assert reroute.lost == (THIRD,)


@pytest.mark.parametrize("attempt", [1, 7, 1 << 53])
def test_attempts_that_were_never_begun_are_nobodys(attempt: int) -> None:
    machine = ready()
    machine.submit(0, 1, 1, frame(), 0.0)
    for sender in (SPARE, SECOND):
        for message in (
            Accept(SESSION, attempt, 1, 1 << 20), Refuse(SESSION, attempt, 1, "no"),
            Failed(SESSION, attempt, 1, 0, "no"), Credit(SESSION, attempt, 0, 1 << 53),
            Fed(SESSION, attempt, 1, 1 << 20), Leaving(SESSION, attempt, 1, 0, 0),
        ):  # fmt: skip
            assert machine.receive(sender, message, b"", 0.1) == []
    assert len(machine.receive(THIRD, result(0), frame(), 0.1)) == 1


def test_floods_of_what_hops_may_say_lead_to_nothing() -> None:
    machine = ready()
    answer(machine, 3)
    said = 0
    for number in range(5000):
        for message in (
            Accept(SESSION, 0, 1, number), Credit(SESSION, 0, 0, 0),
            Leaving(SESSION, 0, 1, number, number), Pong(SESSION, number, ()),
            Pong(SESSION, 0, tuple(Progress(at, number, True, 1e9) for at in range(64))),
        ):  # fmt: skip
            sender = FIRST if isinstance(message, Credit) else SECOND
            said += len(machine.receive(sender, message, b"", 0.1))
    assert said == 0
    machine.submit(3, 1, 1, frame(), 0.2)
    assert len(machine.receive(THIRD, result(3), frame(), 0.3)) == 1
