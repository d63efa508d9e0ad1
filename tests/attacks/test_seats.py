"""Seats at a worker: no few owners take them all, and the last are for sessions in need."""

from __future__ import annotations

import msgspec
import pytest

from gennode.errors import RemoteError
from gennode.node.actions import Run, Send
from gennode.node.hops.hop import UNUSED_S, HopMachine
from gennode.wire.ids import Hop, PeerId, SessionId, Span, session_id
from gennode.wire.messages import Close, Open, Ping, Pong, Refuse
from tests.node.conftest import (
    FIRST,
    LAYERS,
    OWNER,
    SECOND,
    SESSION,
    SPARE,
    THIRD,
    frame,
    hop_machine,
    opening,
    step,
)


def _fill(
    machine: HopMachine, owner: PeerId, count: int, now_s: float, *, lost_a_hop: bool = False
) -> int:
    """Open sessions of an owner; how many of them are taken."""
    taken = 0
    first = opening(1, attempt=1, rebuild_until=1) if lost_a_hop else opening(1)
    for number in range(count):
        session = msgspec.structs.replace(first, session=_name(owner, number))
        taken += isinstance(machine.receive(owner, session, b"", now_s)[0], Run)
    return taken


def _name(owner: PeerId, number: int) -> SessionId:
    return session_id(owner, bytes([number]) * 8)


def _refusal(machine: HopMachine, message: Open) -> str:
    own = msgspec.structs.replace(message, session=_name(FIRST, 99))
    [send] = machine.receive(FIRST, own, b"", 0.0)
    assert isinstance(send, Send)
    assert isinstance(send.message, Refuse)
    return send.message.reason


def test_nobody_takes_the_place_of_anothers_session() -> None:
    machine = hop_machine(SECOND)
    for early in (opening(1), opening(1, attempt=1 << 40)):  # its id was overheard elsewhere
        with pytest.raises(RemoteError, match="another owner"):
            machine.receive(SPARE, early, b"", 0.0)
    assert machine.sessions == 0
    assert isinstance(machine.receive(OWNER, opening(1), b"", 0.0)[0], Run)


def _at(start: int, attempt: int) -> Open:
    """The session's opening of a hop from a layer on to the end."""
    last = Hop(SECOND, Span(start, LAYERS))
    path = (Hop(FIRST, Span(0, start)), last) if start else (last,)
    return opening(len(path) - 1, attempt=attempt, path=path)


def test_one_seat_holds_no_more_layers_than_the_model_has() -> None:
    machine = hop_machine(SECOND)
    opened = [machine.receive(OWNER, _at(start, 0), b"", 0.0)[0] for start in range(LAYERS)]
    assert [isinstance(one, Run) for one in opened] == [True] + [False] * (LAYERS - 1)
    machine.receive(OWNER, Close(SESSION), b"", 0.0)
    opened = [machine.receive(OWNER, _at(start, 0), b"", 0.0)[0] for start in (3, 4, 5, 2)]
    assert [isinstance(one, Run) for one in opened] == [True, True, True, False]  # 3 + 2 + 1


def test_a_hop_that_a_newer_path_left_out_makes_way() -> None:
    machine = hop_machine(SECOND)
    for start, attempt in ((2, 0), (4, 1)):  # both have room: the session may still run on one
        machine.receive(OWNER, _at(start, attempt), b"", 0.0)
    [*closed, opened] = machine.receive(OWNER, _at(3, 2), b"", 0.0)
    keys = [action.job.key.layer for action in closed if isinstance(action, Run)]
    assert keys == [2, 4]
    assert isinstance(opened, Run)
    [pong] = machine.receive(OWNER, Ping(SESSION, 0), b"", 0.0)
    assert isinstance(pong, Send)
    assert isinstance(pong.message, Pong)
    assert [progress.layer for progress in pong.message.progress] == [3]


def test_few_owners_can_not_take_all_sessions() -> None:
    machine = hop_machine(SECOND)
    assert [_fill(machine, owner, 8, 0.0) for owner in (OWNER, SPARE, THIRD)] == [8, 4, 2]
    assert _fill(machine, FIRST, 1, 0.0) == 0


def test_the_last_seats_are_for_sessions_that_lost_a_hop() -> None:
    machine = hop_machine(SECOND)
    assert [_fill(machine, owner, 8, 0.0) for owner in (OWNER, SPARE, THIRD)] == [8, 4, 2]
    assert "the last 2 sessions are kept" in _refusal(machine, opening(1))
    refused_elsewhere = opening(1, attempt=3)  # never began, so it has nothing to rebuild
    assert _refusal(machine, refused_elsewhere)
    survivor = opening(1, attempt=1, rebuild_until=0)  # says itself that it has a hop here
    assert _refusal(machine, survivor)
    assert _fill(machine, FIRST, 3, 0.0, lost_a_hop=True) == 2
    assert machine.sessions == 16


def test_who_lies_about_a_lost_hop_gets_no_more_than_an_owners_share() -> None:
    machine, liar = hop_machine(SECOND), FIRST
    assert _fill(machine, liar, 16, 0.0, lost_a_hop=True) == 8  # as without a lie
    crowded = hop_machine(SECOND)
    assert [_fill(crowded, owner, 6, 0.0) for owner in (OWNER, SPARE, THIRD)] == [6, 6, 2]
    assert _fill(crowded, THIRD, 8, 0.0, lost_a_hop=True) == 2  # its own that are there already
    assert crowded.sessions == 14
    assert _fill(crowded, liar, 8, 0.0, lost_a_hop=True) == 2
    assert len(crowded.tick(UNUSED_S + 1)) == 16  # and keeps none that it does not use


@pytest.mark.parametrize(("seats", "for_new"), [(3, 3), (4, 3), (16, 14)])
def test_small_workers_keep_one_seat_or_none(seats: int, for_new: int) -> None:
    machine = hop_machine(
        SECOND, max_sessions=seats, max_sessions_of_one_owner=16, max_sessions_when_full=16
    )
    assert _fill(machine, OWNER, 16, 0.0) == for_new
    assert _fill(machine, SPARE, 16, 0.0, lost_a_hop=True) == seats - for_new


def test_sessions_that_were_never_used_make_way_while_others_wait() -> None:
    machine = hop_machine(SECOND)
    for message, sender, payload in ((opening(1), OWNER, b""), (step(0, 0), FIRST, frame())):
        [run] = machine.receive(sender, message, payload, 0.0)
        assert isinstance(run, Run)
        machine.computed(run.job, payload, 0.0)
    assert _fill(machine, SPARE, 8, 0.0) == 8
    for number in range(8):  # its owner is alive
        machine.receive(SPARE, Ping(_name(SPARE, number), 0), b"", UNUSED_S)
    machine.receive(OWNER, Ping(SESSION, 0), b"", UNUSED_S)
    assert machine.tick(UNUSED_S + 1) == []  # nobody waits
    assert _fill(machine, THIRD, 4, UNUSED_S + 1) == 3
    assert len(machine.tick(UNUSED_S + 1)) == 8
    assert machine.sessions == 1 + 3
