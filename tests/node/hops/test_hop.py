"""The hop machine: what it takes, what it passes on, what it refuses, what it replays."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest

from gennode.engine.toy import TOY_DIM
from gennode.errors import LocalError, RemoteError, ResourceError
from gennode.node.actions import Action, CloseJob, Job, OpenJob, Run, Send, StepJob
from gennode.node.hops.hop import IDLE_S, ORPHAN_S, HopMachine
from gennode.wire.activations import codec
from gennode.wire.ids import Hop, ModelId, Span
from gennode.wire.messages import (
    Accept,
    Close,
    Failed,
    Fed,
    Open,
    Ping,
    Pong,
    Progress,
    Refuse,
    Step,
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
    frame,
    hop_machine,
    hosted_model,
    opening,
    step,
)


def _job(actions: list[Action]) -> Job:
    [run] = actions
    assert isinstance(run, Run)
    return run.job


def _sent(actions: list[Action]) -> list[object]:
    return [action.message for action in actions if isinstance(action, Send)]


def _open(machine: HopMachine, message: Open | None = None) -> list[Action]:
    job = _job(machine.receive(OWNER, message or opening(1), b"", 0.0))
    return machine.computed(job, b"", 0.0)


def _pass(machine: HopMachine, number: int, position: int, attempt: int = 0) -> list[Action]:
    job = _job(machine.receive(FIRST, step(number, position, attempt=attempt), frame(), 0.0))
    return machine.computed(job, frame(value=number), 0.0)


def test_a_session_opens_steps_and_closes() -> None:
    machine = hop_machine(SECOND)
    assert _open(machine) == [Send(OWNER, Accept(SESSION, 0, 1))]
    [send] = _pass(machine, 0, 0)
    assert isinstance(send, Send)
    assert send.peer == THIRD
    assert send.message == step(0, 0, layer=4)
    assert bytes(send.payload) == frame(value=0)
    assert machine.sessions == 1
    assert isinstance(_job(machine.receive(OWNER, Close(SESSION), b"", 1.0)), CloseJob)
    assert machine.sessions == 0


def test_the_last_hop_answers_the_owner_with_the_rows_it_wants() -> None:
    machine = hop_machine(THIRD)
    _open(machine, opening(2))
    message = msgspec.structs.replace(step(0, 0, layer=4, rows=5), reply_rows=1)
    job = _job(machine.receive(SECOND, message, frame(5), 0.0))
    [send] = machine.computed(job, frame(4) + frame(1, value=9), 0.0)
    assert isinstance(send, Send)
    assert isinstance(send.message, Step)
    assert (send.peer, send.message.rows, send.message.position) == (OWNER, 1, 4)
    assert bytes(send.payload) == frame(1, value=9)


def test_frames_without_a_fixed_width_are_cut_and_counted_as_well() -> None:
    machine, wire = hop_machine(THIRD), codec("lossless")
    _open(machine, msgspec.structs.replace(opening(2), codec="lossless"))
    message = msgspec.structs.replace(step(0, 0, layer=4, rows=5), reply_rows=2, codec="lossless")
    states = np.random.default_rng(1).standard_normal((5, TOY_DIM)).astype(np.float32)
    with pytest.raises(RemoteError, match="rows"):
        machine.receive(SECOND, message, bytes(6 * wire.row_bytes(TOY_DIM)), 0.0)
    job = _job(machine.receive(SECOND, message, wire.encode(states), 0.0))
    [send] = machine.computed(job, wire.encode(states), 0.0)
    assert isinstance(send, Send)
    assert bytes(send.payload) == wire.encode(states[3:])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (msgspec.structs.replace(opening(1), model="0" * 64), "does not host model"),
        (msgspec.structs.replace(opening(1), max_positions=100_000), "positions"),
    ],
)
def test_what_it_can_not_do_is_refused_in_words(message: Open, reason: str) -> None:
    [refusal] = _sent(hop_machine(SECOND).receive(OWNER, message, b"", 0.0))
    assert isinstance(refusal, Refuse)
    assert reason in refusal.reason


def test_sessions_are_counted_in_all_and_by_owner() -> None:
    machine = hop_machine(SECOND, max_sessions=3, max_sessions_of_one_owner=2)
    for number in range(2):
        session = msgspec.structs.replace(opening(1), session=bytes([number]) * 16)
        assert isinstance(_job(machine.receive(OWNER, session, b"", 0.0)), OpenJob)
    [refusal] = _sent(machine.receive(OWNER, opening(1), b"", 0.0))
    assert isinstance(refusal, Refuse)
    assert "one owner" in refusal.reason
    other = msgspec.structs.replace(opening(1), session=b"o" * 16)
    job = _job(machine.receive(SPARE, other, b"", 0.0))
    assert isinstance(job, OpenJob)
    assert job.owner == SPARE
    [refusal] = _sent(machine.receive(SPARE, opening(1), b"", 0.0))
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


def test_only_the_hop_before_may_send_steps() -> None:
    machine = hop_machine(SECOND)
    _open(machine)
    for stranger in (OWNER, THIRD, SPARE):
        assert machine.receive(stranger, step(0, 0), frame(), 0.0) == []


def test_only_the_owner_may_reopen_or_close() -> None:
    machine = hop_machine(SECOND)
    _open(machine)
    with pytest.raises(RemoteError):
        machine.receive(SPARE, opening(1, attempt=1), b"", 0.0)
    assert machine.receive(SPARE, Close(SESSION), b"", 0.0) == []
    assert machine.sessions == 1


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (step(0, 0), frame()[:-1]),
        (step(0, 0), b""),
    ],
)
def test_malformed_steps_are_their_senders_fault(message: Step, payload: bytes) -> None:
    machine = hop_machine(SECOND)
    _open(machine)
    with pytest.raises(RemoteError):
        machine.receive(FIRST, message, payload, 0.0)


@pytest.mark.parametrize(
    "message",
    [
        step(0, 0, rows=0),
        step(0, 64),
        msgspec.structs.replace(step(0, 0), codec="int8"),
    ],
)
def test_steps_on_other_terms_are_for_the_owner_to_judge(message: Step) -> None:
    # It may have told the hop before those terms: then to cut that one off is what it wants.
    machine = hop_machine(SECOND)
    _open(machine)
    payload = bytes(message.rows * codec(message.codec).row_bytes(TOY_DIM))
    [failure] = _sent(machine.receive(FIRST, message, payload, 0.0))
    assert isinstance(failure, Failed)
    assert failure.index == 0


def test_repeated_and_late_steps_are_dropped() -> None:
    machine = hop_machine(SECOND)
    _open(machine)
    _pass(machine, 0, 0)
    assert machine.receive(FIRST, step(0, 0), frame(), 0.0) == []
    assert machine.receive(FIRST, step(1, 1, attempt=7), frame(), 0.0) == []
    assert (
        machine.receive(FIRST, msgspec.structs.replace(step(1, 1), session=b"x" * 16), frame(), 0.0)
        == []
    )


def test_a_gap_is_told_to_the_owner() -> None:
    machine = hop_machine(SECOND)
    _open(machine)
    [failure] = _sent(machine.receive(FIRST, step(0, 3), frame(), 0.0))
    assert isinstance(failure, Failed)
    assert failure.index == 1


def test_more_rows_than_positions_are_told_to_the_owner() -> None:
    machine = hop_machine(SECOND)
    _open(machine)
    for number in range(opening(1).max_positions):
        machine.receive(FIRST, step(number, 0), frame(), 0.0)
    [failure] = _sent(machine.receive(FIRST, step(64, 0), frame(), 0.0))
    assert isinstance(failure, Failed)
    assert failure.index == 0


def test_a_worker_that_is_overrun_says_so_and_recovers() -> None:
    machine = hop_machine(SECOND, queued_bytes=2 * len(frame()))
    _open(machine)
    jobs = [_job(machine.receive(FIRST, step(n, n), frame(), 0.0)) for n in range(2)]
    [failure] = _sent(machine.receive(FIRST, step(2, 2), frame(), 0.0))
    assert isinstance(failure, Failed)
    assert "waiting" in failure.reason
    for job in jobs:
        machine.computed(job, frame(), 0.0)
    assert isinstance(_job(machine.receive(FIRST, step(3, 2), frame(), 0.0)), StepJob)


def test_a_survivor_replays_what_it_retained_then_accepts() -> None:
    machine = hop_machine(SECOND)
    _open(machine)
    for number in range(4):
        _pass(machine, number, number)
    path = (PATH[0], PATH[1], Hop(SPARE, Span(4, 6)))
    again = opening(1, attempt=1, path=path, replay_positions=3, rebuild_until=2)
    actions = machine.receive(OWNER, again, b"", 0.0)
    replayed = [
        (a.peer, a.message.number, a.message.rebuild, bytes(a.payload))
        for a in actions[:-1]
        if isinstance(a, Send) and isinstance(a.message, Step)
    ]
    assert replayed == [(SPARE, number, True, frame(value=number)) for number in range(3)]
    assert actions[-1] == Send(OWNER, Accept(SESSION, 1, 1, 4))
    assert machine.receive(FIRST, step(4, 4, attempt=0), frame(), 0.0) == []  # the old attempt
    assert _pass(machine, 3, 3, attempt=1)


def test_frames_given_up_for_memory_are_refused_for_replay() -> None:
    machine = hop_machine(SECOND, retained_bytes=3 * len(frame()))
    _open(machine)
    for number in range(5):
        _pass(machine, number, number)
    again = opening(1, attempt=1, replay_positions=4, rebuild_until=2)
    [refusal] = _sent(machine.receive(OWNER, again, b"", 0.0))
    assert isinstance(refusal, Refuse)
    assert "no longer retained" in refusal.reason


def test_rebuilt_frames_stop_at_the_last_new_hop() -> None:
    machine = hop_machine(SECOND)
    _open(machine, opening(1, attempt=1, rebuild_until=1))
    message = step(0, 0, attempt=1, rebuild=True)
    job = _job(machine.receive(FIRST, message, frame(), 0.0))
    assert machine.computed(job, frame(), 0.0) == [Send(OWNER, Fed(SESSION, 1, 1, 1))]
    [send] = _pass(machine, 1, 1, attempt=1)
    assert isinstance(send, Send)


def test_results_of_an_older_attempt_are_ignored() -> None:
    machine = hop_machine(SECOND)
    _open(machine)
    job = _job(machine.receive(FIRST, step(0, 0), frame(), 0.0))
    machine.receive(OWNER, opening(1, attempt=1), b"", 0.0)
    assert machine.computed(job, frame(), 0.0) == []


def test_errors_name_who_is_to_blame() -> None:
    machine = hop_machine(SECOND)
    _open(machine)
    for error, index in ((ResourceError("no memory"), 1), (RemoteError("not finite"), 0)):
        number = 2 - index
        job = _job(machine.receive(FIRST, step(number, 0), frame(), 0.0))
        [failure] = _sent(machine.computed(job, error, 0.0))
        assert isinstance(failure, Failed)
        assert failure.index == index
    for neighbour, index in ((FIRST, 0), (THIRD, 2)):
        [failure] = _sent(machine.peer_down(neighbour, 0.0))
        assert isinstance(failure, Failed)
        assert failure.index == index


def test_a_span_that_can_not_be_loaded_is_refused_and_forgotten() -> None:
    machine = hop_machine(SECOND)
    job = _job(machine.receive(OWNER, opening(1), b"", 0.0))
    actions = machine.computed(job, ResourceError("out of memory"), 0.0)
    [refusal] = _sent(actions)
    assert isinstance(refusal, Refuse)
    assert machine.sessions == 0


def test_pings_tell_how_far_each_hop_is() -> None:
    machine = hop_machine(SECOND)
    _open(machine)
    _pass(machine, 0, 0)
    machine.receive(FIRST, step(1, 1), frame(), 0.0)
    [pong] = _sent(machine.receive(OWNER, Ping(SESSION, 5), b"", 0.0))
    assert pong == Pong(SESSION, 5, (Progress(2, 0, True),))
    [pong] = _sent(machine.receive(SPARE, Ping(SESSION, 5), b"", 0.0))
    assert pong == Pong(SESSION, 5, ())  # nobody else's business


def test_a_silent_owner_is_forgotten() -> None:
    machine = hop_machine(SECOND)
    _open(machine)
    assert machine.tick(IDLE_S) == []
    assert isinstance(_job(machine.tick(IDLE_S + 1)), CloseJob)


def test_an_owner_that_is_gone_is_forgotten_sooner() -> None:
    machine = hop_machine(SECOND)
    _open(machine)
    assert machine.peer_down(OWNER, 1.0) == []
    assert machine.tick(1.0 + ORPHAN_S) == []
    assert isinstance(_job(machine.tick(1.1 + ORPHAN_S)), CloseJob)


def test_limits_are_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        hop_machine(SECOND)._limits.max_sessions = 3  # type: ignore[misc]


NEWER = ModelId("b" * 64)


def _opening_of(model: ModelId, session: bytes = SESSION, attempt: int = 0) -> Open:
    return msgspec.structs.replace(opening(1, attempt=attempt), model=model, session=session)


def _reason(actions: list[Action]) -> str:
    [refusal] = _sent(actions)
    assert isinstance(refusal, Refuse)
    return refusal.reason


def test_sessions_of_several_models_run_side_by_side() -> None:
    machine = hop_machine(SECOND)
    machine.host(hosted_model(NEWER))
    older = _job(machine.receive(OWNER, opening(1), b"", 0.0))
    newer = _job(machine.receive(OWNER, _opening_of(NEWER, b"n" * 16), b"", 0.0))
    assert (older.model, newer.model) == (MODEL, NEWER)
    assert (machine.sessions, machine.sessions_of(MODEL), machine.sessions_of(NEWER)) == (2, 1, 1)


@pytest.mark.parametrize("attempt", [0, 1])
@pytest.mark.parametrize("span", [PATH[1].span, Span(3, 4)])
def test_a_session_never_goes_over_to_another_model(attempt: int, span: Span) -> None:
    machine = hop_machine(SECOND)
    machine.host(hosted_model(NEWER))
    _open(machine)
    path = (Hop(FIRST, Span(0, span.start)), Hop(SECOND, span), Hop(THIRD, Span(span.end, LAYERS)))
    other = msgspec.structs.replace(_opening_of(NEWER, attempt=attempt), path=path)
    assert "another model" in _reason(machine.receive(OWNER, other, b"", 0.0))
    assert machine.sessions_of(NEWER) == 0
    [send] = _pass(machine, 0, 0)  # the first one goes on
    assert isinstance(send, Send)


def test_a_model_that_is_retired_ends_its_sessions_and_begins_none() -> None:
    machine = hop_machine(SECOND)
    _open(machine)
    machine.retire(MODEL)
    newcomer = _opening_of(MODEL, b"n" * 16)
    assert "being retired" in _reason(machine.receive(OWNER, newcomer, b"", 0.0))
    assert _pass(machine, 0, 0) != []
    repaired = machine.receive(OWNER, opening(1, attempt=1), b"", 0.0)
    assert [type(message) for message in _sent(repaired)] == [Accept]
    with pytest.raises(LocalError):
        machine.drop(MODEL)
    machine.receive(OWNER, Close(SESSION), b"", 0.0)
    machine.drop(MODEL)
    assert "does not host" in _reason(machine.receive(OWNER, newcomer, b"", 0.0))
    machine.host(hosted_model())
    assert isinstance(_job(machine.receive(OWNER, newcomer, b"", 0.0)), OpenJob)
