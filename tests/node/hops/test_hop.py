"""The hop machine: what it takes, what it passes on, what it refuses, what it replays."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from gennode.engine.toy import TOY_DIM
from gennode.errors import RemoteError, ResourceError
from gennode.node.actions import CloseJob, Send, StepJob
from gennode.node.hops.hop import ACQUAINT_INTERVAL_S, IDLE_S, LEAVING_INTERVAL_S, ORPHAN_S
from gennode.wire.activations import codec
from gennode.wire.ids import Hop, Span, session_id
from gennode.wire.messages import (
    Accept,
    Acquaint,
    Close,
    Failed,
    Fed,
    Leaving,
    Ping,
    Pong,
    Probe,
    Progress,
    Refuse,
    Step,
)
from tests.node.conftest import (
    FIRST,
    OWNER,
    PATH,
    SECOND,
    SESSION,
    SPARE,
    THIRD,
    frame,
    hop_machine,
    opening,
    peer,
    step,
)
from tests.node.hops.driven import (
    POSITION_BYTES,
    ROWS,
    Driven,
    job,
    numbers,
    open_hop,
    opened,
    pass_one,
    told,
    wide,
)


def test_a_session_opens_steps_and_closes() -> None:
    machine = hop_machine(SECOND)
    assert open_hop(machine) == [Send(OWNER, Accept(SESSION, 0, 1))]
    [send] = pass_one(machine, 0, 0)
    assert isinstance(send, Send)
    assert send.peer == THIRD
    assert send.message == step(0, 0, layer=4)
    assert bytes(send.payload) == frame(value=0)
    assert machine.sessions == 1
    assert isinstance(job(machine.receive(OWNER, Close(SESSION), b"", 1.0)), CloseJob)
    assert machine.sessions == 0


def test_the_last_hop_answers_the_owner_with_the_rows_it_wants() -> None:
    machine = hop_machine(THIRD)
    open_hop(machine, opening(2))
    message = msgspec.structs.replace(step(0, 0, layer=4, rows=5), reply_rows=1)
    taken = job(machine.receive(SECOND, message, frame(5), 0.0))
    [send] = machine.computed(taken, frame(4) + frame(1, value=9), 0.0)
    assert isinstance(send, Send)
    assert isinstance(send.message, Step)
    assert (send.peer, send.message.rows, send.message.position) == (OWNER, 1, 4)
    assert bytes(send.payload) == frame(1, value=9)


def test_frames_without_a_fixed_width_are_cut_and_counted_as_well() -> None:
    machine, wire = hop_machine(THIRD), codec("lossless")
    open_hop(machine, msgspec.structs.replace(opening(2), codec="lossless"))
    message = msgspec.structs.replace(step(0, 0, layer=4, rows=5), reply_rows=2, codec="lossless")
    states = np.random.default_rng(1).standard_normal((5, TOY_DIM)).astype(np.float32)
    long = bytes(6 * wire.row_bytes(TOY_DIM))
    [failure] = told(machine.receive(SECOND, message, long, 0.0))
    assert isinstance(failure, Failed)
    taken = job(machine.receive(SECOND, message, wire.encode(states), 0.0))
    [send] = machine.computed(taken, wire.encode(states), 0.0)
    assert isinstance(send, Send)
    assert bytes(send.payload) == wire.encode(states[3:])


def test_only_the_hop_before_may_send_steps() -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    for stranger in (OWNER, THIRD, SPARE):
        assert machine.receive(stranger, step(0, 0), frame(), 0.0) == []


def test_only_the_owner_may_reopen_or_close() -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    with pytest.raises(RemoteError):
        machine.receive(SPARE, opening(1, attempt=1), b"", 0.0)
    assert machine.receive(SPARE, Close(SESSION), b"", 0.0) == []
    assert machine.sessions == 1


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
    open_hop(machine)
    payload = bytes(message.rows * codec(message.codec).row_bytes(TOY_DIM))
    [failure] = told(machine.receive(FIRST, message, payload, 0.0))
    assert isinstance(failure, Failed)
    assert failure.index == 0


@pytest.mark.parametrize("payload", [frame()[:-1], b"", frame(2)])
def test_steps_as_long_as_other_rows_are_for_the_owner_to_judge(payload: bytes) -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    [failure] = told(machine.receive(FIRST, step(0, 0), payload, 0.0))
    assert isinstance(failure, Failed)
    assert (failure.index, failure.reason) == (0, "a step's payload is not as long as its rows")


@pytest.mark.parametrize("terms", [{"codec": "int8"}, {"max_positions": 65}])
def test_an_owner_may_not_change_the_terms_of_a_session(terms: dict[str, object]) -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    path = (Hop(FIRST, Span(0, 3)), Hop(SECOND, Span(3, 4)), Hop(THIRD, Span(4, 6)))
    for again in (opening(1, attempt=1), opening(1, attempt=1, path=path)):
        with pytest.raises(RemoteError, match="never change"):
            machine.receive(OWNER, msgspec.structs.replace(again, **terms), b"", 0.0)
    assert pass_one(machine, 0, 0) != []


def test_repeated_and_late_steps_are_dropped() -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    pass_one(machine, 0, 0)
    assert machine.receive(FIRST, step(0, 0), frame(), 0.0) == []
    assert machine.receive(FIRST, step(1, 1, attempt=7), frame(), 0.0) == []
    assert (
        machine.receive(FIRST, msgspec.structs.replace(step(1, 1), session=b"x" * 16), frame(), 0.0)
        == []
    )


def test_a_gap_is_told_to_the_owner() -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    [failure] = told(machine.receive(FIRST, step(0, 3), frame(), 0.0))
    assert isinstance(failure, Failed)
    assert failure.index == 1


def test_more_rows_than_positions_are_told_to_the_owner() -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    for number in range(opening(1).max_positions):
        machine.receive(FIRST, step(number, 0), frame(), 0.0)
    [failure] = told(machine.receive(FIRST, step(64, 0), frame(), 0.0))
    assert isinstance(failure, Failed)
    assert failure.index == 0


def test_a_worker_that_is_overrun_says_so_and_recovers() -> None:
    machine = hop_machine(SECOND, queued_bytes=2 * len(frame()))
    open_hop(machine)
    jobs = [job(machine.receive(FIRST, step(n, n), frame(), 0.0)) for n in range(2)]
    [failure] = told(machine.receive(FIRST, step(2, 2), frame(), 0.0))
    assert isinstance(failure, Failed)
    assert "waiting" in failure.reason
    for taken in jobs:
        machine.computed(taken, frame(), 0.0)
    assert isinstance(job(machine.receive(FIRST, step(3, 2), frame(), 0.0)), StepJob)


def test_a_survivor_replays_what_it_retained_then_accepts() -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    for number in range(4):
        pass_one(machine, number, number)
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
    assert pass_one(machine, 3, 3, attempt=1)


def test_frames_given_up_for_memory_are_refused_for_replay() -> None:
    machine = hop_machine(SECOND, retained_bytes=3 * len(frame()))
    open_hop(machine)
    for number in range(5):
        pass_one(machine, number, number)
    again = opening(1, attempt=1, replay_positions=4, rebuild_until=2)
    [refusal] = told(machine.receive(OWNER, again, b"", 0.0))
    assert isinstance(refusal, Refuse)
    assert "no longer retained" in refusal.reason


def test_rebuilt_frames_stop_at_the_last_new_hop() -> None:
    machine = hop_machine(SECOND)
    open_hop(machine, opening(1, attempt=1, rebuild_until=1))
    message = step(0, 0, attempt=1, rebuild=True)
    taken = job(machine.receive(FIRST, message, frame(), 0.0))
    assert machine.computed(taken, frame(), 0.0) == [Send(OWNER, Fed(SESSION, 1, 1, 1))]
    [send] = pass_one(machine, 1, 1, attempt=1)
    assert isinstance(send, Send)


def test_results_of_an_older_attempt_are_ignored() -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    taken = job(machine.receive(FIRST, step(0, 0), frame(), 0.0))
    machine.receive(OWNER, opening(1, attempt=1), b"", 0.0)
    assert machine.computed(taken, frame(), 0.0) == []


def test_errors_name_who_is_to_blame() -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    for error, index in ((ResourceError("no memory"), 1), (RemoteError("not finite"), 0)):
        number = 2 - index
        taken = job(machine.receive(FIRST, step(number, 0), frame(), 0.0))
        [failure] = told(machine.computed(taken, error, 0.0))
        assert isinstance(failure, Failed)
        assert failure.index == index
    for neighbour, index in ((FIRST, 0), (THIRD, 2)):
        [failure] = told(machine.peer_down(neighbour, 0.0))
        assert isinstance(failure, Failed)
        assert failure.index == index


def test_a_span_that_can_not_be_loaded_is_refused_and_forgotten() -> None:
    machine = hop_machine(SECOND)
    taken = job(machine.receive(OWNER, opening(1), b"", 0.0))
    actions = machine.computed(taken, ResourceError("out of memory"), 0.0)
    [refusal] = told(actions)
    assert isinstance(refusal, Refuse)
    assert machine.sessions == 0


def test_pings_tell_how_far_each_hop_is() -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    pass_one(machine, 0, 0)
    machine.receive(FIRST, step(1, 1), frame(), 0.0)
    [pong] = told(machine.receive(OWNER, Ping(SESSION, 5), b"", 0.0))
    assert pong == Pong(SESSION, 5, (Progress(2, 0, True),))
    [pong] = told(machine.receive(SPARE, Ping(SESSION, 5), b"", 0.0))
    assert pong == Pong(SESSION, 5, ())  # nobody else's business


def test_a_silent_owner_is_forgotten() -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    assert machine.tick(IDLE_S) == []
    assert isinstance(job(machine.tick(IDLE_S + 1)), CloseJob)


def test_an_owner_that_is_gone_is_forgotten_sooner() -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    assert machine.peer_down(OWNER, 1.0) == []
    assert machine.tick(1.0 + ORPHAN_S) == []
    assert isinstance(job(machine.tick(1.1 + ORPHAN_S)), CloseJob)


# -- what it tells of itself ----------------------------------------------------------------------


def test_survivors_tell_how_many_positions_they_hold() -> None:
    hop = opened()
    hop.passes(0)
    hop.takes(1)  # not computed yet
    assert hop.hears(OWNER, wide(1, attempt=1)) == [Send(OWNER, Accept(SESSION, 1, 1, ROWS))]


def test_a_pong_tells_how_long_a_token_takes() -> None:
    hop = opened()
    for number in range(3):
        taken = hop.takes(number, number, rows=1)
        hop.now_s += 0.5
        hop.does(taken, taken.payload)
    hop.passes(3, 3)  # more rows than one: not a token
    [pong] = told(hop.hears(OWNER, Ping(SESSION, 5)))
    assert pong == Pong(SESSION, 5, (Progress(2, 3, False, 0.5),))


def test_an_owner_may_have_a_hop_meet_a_stand_in() -> None:
    hop = opened(strangers=frozenset({THIRD}))
    acquaint = Acquaint(SESSION, 2, SPARE)
    for stranger in (FIRST, SPARE):
        assert hop.hears(stranger, acquaint) == []
    assert hop.hears(OWNER, Acquaint(SESSION, 2, THIRD)) == []
    assert hop.hears(OWNER, Acquaint(SESSION, 4, SPARE)) == []
    assert hop.hears(OWNER, acquaint) == [Send(SPARE, Probe(0))]
    for number in range(10):  # nobody is knocked up again and again
        assert hop.hears(OWNER, Acquaint(SESSION, 2, peer(20 + number))) == []
    hop.now_s = ACQUAINT_INTERVAL_S
    assert hop.hears(OWNER, acquaint) == [Send(SPARE, Probe(0))]


# -- leaving --------------------------------------------------------------------------------------


def test_a_worker_that_leaves_asks_owners_to_go_until_they_have() -> None:
    hop = opened()
    hop.passes(0)
    leaving = Send(OWNER, Leaving(SESSION, 0, 1, ROWS, ROWS * POSITION_BYTES))
    assert hop.machine.drain(10.0) == [leaving]
    assert hop.machine.tick(10.1) == []
    assert hop.machine.tick(10.0 + LEAVING_INTERVAL_S) == [leaving]
    assert hop.machine.tick(10.1 + LEAVING_INTERVAL_S) == []
    assert numbers(hop.passes(1)) == [1]
    hop.hears(OWNER, Close(SESSION))
    assert hop.machine.tick(20.0) == []


def test_a_worker_that_leaves_takes_no_new_sessions_and_repairs_those_it_has() -> None:
    hop = opened()
    hop.machine.drain(0.0)
    newcomer = msgspec.structs.replace(wide(1), session=session_id(OWNER, b"n" * 8))
    [refusal] = told(hop.hears(OWNER, newcomer))
    assert isinstance(refusal, Refuse)
    assert refusal.reason == "this worker is leaving"
    assert told(hop.hears(OWNER, wide(1, attempt=1))) == [Accept(SESSION, 1, 1)]


def test_owners_are_not_asked_to_go_before_they_came() -> None:
    hop = Driven()
    hop.hears(OWNER, wide(1))
    assert hop.machine.drain(0.0) == []


def test_a_cache_that_is_being_cut_is_not_claimed_to_be_held() -> None:
    machine = hop_machine(SECOND)
    open_hop(machine)
    for number in range(3):
        pass_one(machine, number, number)
    machine.receive(FIRST, step(3, 1), frame(), 0.0)  # computed, and nobody has heard of it yet
    assert machine.receive(OWNER, opening(1, attempt=1), b"", 0.0) == [
        Send(OWNER, Accept(SESSION, 1, 1, 1))
    ]
