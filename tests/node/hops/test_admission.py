"""Admission: which sessions a worker takes, of which models, and why not."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from gennode.errors import LocalError, RemoteError
from gennode.node.actions import Action, OpenJob, Send
from gennode.node.hops.admission import HopLimits
from gennode.wire.ids import Hop, ModelId, Span, session_id
from gennode.wire.messages import (
    Accept,
    Close,
    Open,
    Refuse,
)
from tests.node.conftest import (
    FIRST,
    LAYERS,
    MODEL,
    OWNER,
    PATH,
    SECOND,
    SESSION,
    SPARE,
    THIRD,
    hop_machine,
    hosted_model,
    opening,
)
from tests.node.hops.driven import job, open_hop, pass_one, told


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (msgspec.structs.replace(opening(1), model="0" * 64), "does not host model"),
        (msgspec.structs.replace(opening(1), max_positions=100_000), "positions"),
    ],
)
def test_what_it_can_not_do_is_refused_in_words(message: Open, reason: str) -> None:
    [refusal] = told(hop_machine(SECOND).receive(OWNER, message, b"", 0.0))
    assert isinstance(refusal, Refuse)
    assert reason in refusal.reason


def test_sessions_are_counted_in_all_and_by_owner() -> None:
    machine = hop_machine(SECOND, max_sessions=3, max_sessions_of_one_owner=2)
    for number in range(2):
        session = msgspec.structs.replace(
            opening(1), session=session_id(OWNER, bytes([number]) * 8)
        )
        assert isinstance(job(machine.receive(OWNER, session, b"", 0.0)), OpenJob)
    [refusal] = told(machine.receive(OWNER, opening(1), b"", 0.0))
    assert isinstance(refusal, Refuse)
    assert "one owner" in refusal.reason
    other = msgspec.structs.replace(opening(1), session=session_id(SPARE, b"o" * 8))
    taken = job(machine.receive(SPARE, other, b"", 0.0))
    assert isinstance(taken, OpenJob)
    assert taken.owner == SPARE
    another = msgspec.structs.replace(opening(1), session=session_id(SPARE, b"a" * 8))
    [refusal] = told(machine.receive(SPARE, another, b"", 0.0))
    assert isinstance(refusal, Refuse)
    assert "taken" in refusal.reason


@pytest.mark.parametrize(
    "path",
    [
        PATH[:2],
        (PATH[0], Hop(SECOND, Span(3, 4)), PATH[2]),
        (PATH[0], Hop(SPARE, Span(2, 4)), PATH[2]),
        (PATH[0], Hop(SECOND, Span(2, 7))),
    ],
)
def test_a_path_that_can_not_be_is_the_owners_fault(path: tuple[Hop, ...]) -> None:
    with pytest.raises(RemoteError):
        hop_machine(SECOND).receive(OWNER, opening(1, path=path), b"", 0.0)


def test_limits_are_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        HopLimits().max_sessions = 3  # type: ignore[misc]


NEWER = ModelId("b" * 64)
NEWCOMER = session_id(OWNER, b"n" * 8)


def _opening_of(model: ModelId, session: bytes = SESSION, attempt: int = 0) -> Open:
    return msgspec.structs.replace(opening(1, attempt=attempt), model=model, session=session)


def _reason(actions: list[Action]) -> str:
    [refusal] = told(actions)
    assert isinstance(refusal, Refuse)
    return refusal.reason


def test_sessions_of_several_models_run_side_by_side() -> None:
    machine = hop_machine(SECOND)
    machine.host(hosted_model(NEWER))
    older = job(machine.receive(OWNER, opening(1), b"", 0.0))
    newer = job(machine.receive(OWNER, _opening_of(NEWER, NEWCOMER), b"", 0.0))
    assert (older.model, newer.model) == (MODEL, NEWER)
    assert (machine.sessions, machine.sessions_of(MODEL), machine.sessions_of(NEWER)) == (2, 1, 1)


@pytest.mark.parametrize("attempt", [0, 1])
@pytest.mark.parametrize("span", [PATH[1].span, Span(3, 4)])
def test_a_session_never_goes_over_to_another_model(attempt: int, span: Span) -> None:
    machine = hop_machine(SECOND)
    machine.host(hosted_model(NEWER))
    open_hop(machine)
    path = (Hop(FIRST, Span(0, span.start)), Hop(SECOND, span), Hop(THIRD, Span(span.end, LAYERS)))
    other = msgspec.structs.replace(_opening_of(NEWER, attempt=attempt), path=path)
    assert "another model" in _reason(machine.receive(OWNER, other, b"", 0.0))
    assert machine.sessions_of(NEWER) == 0
    [send] = pass_one(machine, 0, 0)  # the first one goes on
    assert isinstance(send, Send)


def test_a_model_that_is_retired_ends_its_sessions_and_begins_none() -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    machine.retire(MODEL)
    newcomer = _opening_of(MODEL, NEWCOMER)
    assert "being retired" in _reason(machine.receive(OWNER, newcomer, b"", 0.0))
    assert pass_one(machine, 0, 0) != []
    repaired = machine.receive(OWNER, opening(1, attempt=1), b"", 0.0)
    assert [type(message) for message in told(repaired)] == [Accept]
    with pytest.raises(LocalError):
        machine.drop(MODEL)
    machine.receive(OWNER, Close(SESSION), b"", 0.0)
    machine.drop(MODEL)
    assert "does not host" in _reason(machine.receive(OWNER, newcomer, b"", 0.0))
    machine.host(hosted_model())
    assert isinstance(job(machine.receive(OWNER, newcomer, b"", 0.0)), OpenJob)
