"""The session machine: opening, steps, and every way in which a route can break."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gennode.engine.toy import TOY_DIM
from gennode.errors import LocalError, NoRouteError
from gennode.node.actions import Action, Arrived, Lost, Opened, Rerouted
from gennode.node.sessions.patience import ENOUGH_STEPS, MIN_BUSY_S
from gennode.node.sessions.session import (
    FIRST_SEEK_LIMIT_S,
    REPAIR_LIMIT_S,
    SEEK_LIMIT_S,
    SessionMachine,
)
from gennode.node.sessions.vigil import ACCUSATIONS, WORK_LIMIT_S
from gennode.node.sessions.watch import IDLE_PONGS, PONG_LIMIT_S
from gennode.wire.ids import Hop, PeerId, Span
from gennode.wire.messages import (
    Accept,
    Close,
    Credit,
    Failed,
    Open,
    Ping,
    Pong,
    Progress,
    Refuse,
    Step,
)
from tests.node.conftest import (
    FIRST,
    PATH,
    SECOND,
    SESSION,
    SPARE,
    THIRD,
    frame,
)
from tests.node.conftest import (
    peer as known_peer,
)
from tests.node.sessions.scouts import (
    TERMS,
    accept_all,
    answer,
    nobody,
    ready,
    result,
    sent,
    session,
    spare,
    spares,
)


def test_a_step_goes_down_and_its_states_come_back() -> None:
    machine = ready()
    number, actions = machine.submit(0, 3, 1, frame(3), 0.0)
    [(peer, message)] = sent(actions, Step)
    assert isinstance(message, Step)
    assert (number, peer, message.layer, message.rows) == (0, FIRST, 0, 3)
    [arrived] = machine.receive(THIRD, result(0), frame(value=7), 0.1)
    assert isinstance(arrived, Arrived)
    np.testing.assert_array_equal(arrived.states, np.full((1, TOY_DIM), 7, np.float32))


def test_steps_wait_for_the_route() -> None:
    machine = session()
    actions = machine.start(0.0)
    assert machine.submit(0, 1, 1, frame(), 0.0) == (0, [])
    assert [peer for peer, _ in sent(accept_all(machine, actions, 0.0), Step)] == [FIRST]


def test_a_dead_middle_hop_is_replaced_and_fed_by_the_hop_above() -> None:
    machine = ready()
    answer(machine, 3)
    machine.submit(3, 1, 1, frame(value=3), 0.2)
    opening = machine.peer_down(SECOND, "gone", 0.3)
    path = (PATH[0], Hop(SPARE, Span(2, 4)), PATH[2])
    assert sent(opening, Close) == [(SECOND, Close(SESSION))]
    [(peer, first)] = sent(opening, Open)
    assert isinstance(first, Open)
    assert (peer, first.attempt, first.path, first.replay_positions) == (SPARE, 1, path, 0)
    assert machine.has_begun
    assert first.rebuild_until == first.index  # reserved seats are for such as this one
    joining = machine.receive(SPARE, Accept(SESSION, 1, 1), b"", 0.4)
    asked = {p: m.replay_positions for p, m in sent(joining, Open) if isinstance(m, Open)}
    assert asked == {FIRST: 3, THIRD: 0}
    told = accept_all(machine, joining, 0.4)
    assert told[0] == Rerouted(SESSION, PATH, path, (SECOND,), "gone")
    [(peer, again)] = sent(told, Step)
    assert isinstance(again, Step)
    assert (peer, again.number, again.attempt, again.rebuild) == (FIRST, 3, 1, False)


def test_a_peer_in_trouble_is_replaced_where_others_have_what_it_holds() -> None:
    machine = ready()
    assert machine.peer_in_trouble(SPARE, "refuses", 0.3) == []  # it is on no hop of ours
    assert machine.peer_in_trouble(SECOND, "refuses", 0.3)
    assert machine.path[1].peer == SPARE


def test_a_peer_in_trouble_is_waited_for_wherenobody_else_is() -> None:
    machine = session(nobody)
    accept_all(machine, machine.start(0.0), 0.0)
    assert machine.peer_in_trouble(SECOND, "refuses", 0.3) == []
    assert machine.path == PATH


def test_a_dead_first_hop_is_rebuilt_from_tokens() -> None:
    machine = ready()
    answer(machine, 2)
    machine.submit(2, 1, 1, frame(), 0.2)
    told = accept_all(machine, machine.peer_down(FIRST, "gone", 0.3), 0.4)
    steps = [(m.number, m.rebuild) for _, m in sent(told, Step) if isinstance(m, Step)]
    assert steps == [(0, True), (1, True), (2, False)]


def test_a_survivor_without_frames_means_a_rebuild_from_tokens() -> None:
    machine = ready()
    answer(machine, 2)
    machine.peer_down(SECOND, "gone", 0.3)
    machine.receive(SPARE, Accept(SESSION, 1, 1), b"", 0.4)
    refusal = Refuse(SESSION, 1, 0, "the frames for a replay are no longer retained")
    told = accept_all(machine, machine.receive(FIRST, refusal, b"", 0.4), 0.5)
    steps = [(m.number, m.rebuild) for _, m in sent(told, Step) if isinstance(m, Step)]
    assert steps == [(0, True), (1, True)]


def test_several_hops_may_die_at_once() -> None:
    machine = ready()
    answer(machine, 1)
    machine.peer_down(SECOND, "gone", 0.3)
    told = accept_all(machine, machine.peer_down(THIRD, "gone", 0.3), 0.4)
    [event] = [action for action in told if isinstance(action, Rerouted)]
    assert event.lost == (SECOND, THIRD)
    assert event.after == (PATH[0], Hop(SPARE, Span(2, 4)), Hop(SPARE, Span(4, 6)))


def test_a_refusal_at_the_start_is_routed_around() -> None:
    machine = session()
    machine.start(0.0)
    actions = machine.receive(SECOND, Refuse(SESSION, 0, 1, "full"), b"", 0.1)
    assert not machine.has_begun
    again = {m.rebuild_until for _, m in sent(actions, Open) if isinstance(m, Open)}
    assert again == {-1}  # nothing to carry on: it gets no reserved seat
    told = accept_all(machine, actions, 0.2)
    assert told == [Opened(SESSION, (PATH[0], Hop(SPARE, Span(2, 4)), PATH[2]))]


def test_late_answers_of_an_older_attempt_are_ignored() -> None:
    machine = ready()
    machine.submit(0, 1, 1, frame(), 0.0)
    accept_all(machine, machine.peer_down(SECOND, "gone", 0.1), 0.2)
    assert machine.receive(THIRD, result(0, attempt=0), frame(), 0.3) == []
    assert len(machine.receive(THIRD, result(0, attempt=1), frame(), 0.3)) == 1
    assert machine.receive(THIRD, result(0, attempt=1), frame(), 0.3) == []  # once only


def test_a_long_prompt_waits_for_credit() -> None:
    machine = session(terms=replace(TERMS, dim=8192))
    accept_all(machine, machine.start(0.0), 0.0)
    chunk = bytes(256 * 8192 * 4)  # half a window
    sent_now = [len(sent(machine.submit(256 * at, 256, 0, chunk, 0.0)[1], Step)) for at in range(4)]
    assert sent_now == [1, 1, 0, 0]
    actions = machine.receive(FIRST, Credit(SESSION, 0, 0, len(chunk)), b"", 0.1)
    assert [m.number for _, m in sent(actions, Step) if isinstance(m, Step)] == [2]
    told = accept_all(machine, machine.peer_down(SECOND, "gone", 0.2), 0.3)
    again = [m.number for _, m in sent(told, Step) if isinstance(m, Step)]
    assert again == [0, 1]  # a new attempt is a new flow
    assert machine.receive(FIRST, Credit(SESSION, 0, 0, len(chunk)), b"", 0.4) == []


def test_a_result_that_is_not_finite_costs_the_last_hop_its_place() -> None:
    machine = ready()
    machine.submit(0, 1, 1, frame(), 0.0)
    bad = np.full((1, TOY_DIM), np.nan, np.float32).tobytes()
    told = accept_all(machine, machine.receive(THIRD, result(0), bad, 0.1), 0.2)
    assert any(isinstance(action, Rerouted) and action.lost == (THIRD,) for action in told)


def test_a_failure_replaces_the_hop_that_is_blamed() -> None:
    machine = ready()
    machine.submit(0, 1, 1, frame(), 0.0)
    actions = machine.receive(FIRST, Failed(SESSION, 0, 1, 0, "can't be reached"), b"", 0.1)
    assert [peer for peer, _ in sent(actions, Open)] == [SPARE]


def test_who_blames_others_again_and_again_is_replaced_with_them() -> None:
    machine = session(spares(SPARE, *map(known_peer, (9, 10, 11))))
    accept_all(machine, machine.start(0.0), 0.0)
    lost: list[tuple[PeerId, ...]] = []
    for attempt in range(ACCUSATIONS):
        blame = Failed(SESSION, attempt, 1, 0, "can't be reached")
        told = accept_all(machine, machine.receive(FIRST, blame, b"", 0.1), 0.1)
        lost += [action.lost for action in told if isinstance(action, Rerouted)]
    assert [FIRST in ones for ones in lost] == [False] * (ACCUSATIONS - 1) + [True]
    assert [len(ones) for ones in lost] == [1] * (ACCUSATIONS - 1) + [2]


def _watch(
    machine: SessionMachine, until_s: float, pongs: dict[PeerId, tuple[int, bool]]
) -> tuple[float, list[Action]]:
    """Tick; hops in `pongs` answer (highest step passed on, computing), the others are silent."""
    now_s, first_layer = 0.0, {hop.peer: hop.span.start for hop in PATH}
    while now_s < until_s:
        now_s += 0.05
        actions = machine.tick(now_s)
        for peer, ping in sent(actions, Ping):
            if peer in pongs and isinstance(ping, Ping):
                pong = Pong(SESSION, ping.nonce, (Progress(first_layer[peer], *pongs[peer]),))
                actions = [*actions, *machine.receive(peer, pong, b"", now_s)]
        if sent(actions, Open):
            return now_s, actions
    return now_s, []


def test_a_frozen_hop_is_replaced_within_seconds() -> None:
    machine = ready()
    answer(machine, 3)
    machine.submit(3, 1, 1, frame(), 0.0)
    at_s, actions = _watch(machine, 10.0, {FIRST: (3, False), THIRD: (2, False)})
    assert [peer for peer, _ in sent(actions, Open)] == [SPARE]
    assert PONG_LIMIT_S < at_s < 3.0


def test_a_hop_that_computes_is_left_alone_and_so_is_the_idle_one_below() -> None:
    machine = ready()
    machine.submit(0, 1, 1, frame(), 0.0)
    busy = {FIRST: (0, False), SECOND: (-1, True), THIRD: (-1, False)}
    assert _watch(machine, 30.0, busy)[1] == []


def test_a_hop_that_is_idle_although_the_step_reached_it_is_replaced() -> None:
    machine = ready()
    machine.submit(0, 1, 1, frame(), 0.0)
    stuck = {FIRST: (0, False), SECOND: (-1, False), THIRD: (-1, False)}
    at_s, actions = _watch(machine, 30.0, stuck)
    assert [peer for peer, _ in sent(actions, Open)] == [SPARE]
    assert at_s < 2.0 + (IDLE_PONGS + 1) * 0.3


def test_a_hop_that_computes_far_longer_than_ever_before_is_replaced() -> None:
    machine = ready()
    answer(machine, ENOUGH_STEPS)
    machine.submit(ENOUGH_STEPS, 1, 1, frame(), 0.0)
    last = ENOUGH_STEPS - 1
    wedged = {FIRST: (ENOUGH_STEPS, False), SECOND: (last, True), THIRD: (last, False)}
    at_s, actions = _watch(machine, 30.0, wedged)
    assert [peer for peer, _ in sent(actions, Open)] == [SPARE]
    assert MIN_BUSY_S < at_s < MIN_BUSY_S + 1


def test_no_work_may_take_for_ever() -> None:
    machine = ready()
    machine.submit(0, 1, 1, frame(), 0.0)
    busy = {FIRST: (0, False), SECOND: (-1, True), THIRD: (-1, False)}
    at_s, actions = _watch(machine, WORK_LIMIT_S + 1, busy)
    assert actions
    assert at_s > WORK_LIMIT_S


def test_layers_that_nobody_has_are_waited_for_then_given_up() -> None:
    machine = ready(nobody)
    assert machine.peer_down(SECOND, "gone", 0.0) == []
    now_s, actions = 0.0, list[Action]()
    while not actions:
        now_s += 0.1
        actions = machine.tick(now_s)
    [lost] = [action for action in actions if isinstance(action, Lost)]
    assert isinstance(lost.error, NoRouteError)
    assert lost.error.hint
    assert SEEK_LIMIT_S < now_s < SEEK_LIMIT_S + 1
    with pytest.raises(NoRouteError):  # a reader that paused meanwhile must not wait for ever
        machine.submit(0, 1, 1, frame(), now_s)


def test_who_has_not_begun_is_told_sooner() -> None:
    machine = session(nobody)
    machine.start(0.0)
    assert machine.peer_down(SECOND, "gone", 0.0) == []
    now_s, actions = 0.0, list[Action]()
    while not actions:
        now_s += 0.1
        actions = machine.tick(now_s)
    assert any(isinstance(action, Lost) for action in actions)
    assert FIRST_SEEK_LIMIT_S < now_s < FIRST_SEEK_LIMIT_S + 1


def test_repairs_that_lead_to_no_answer_end_in_an_error() -> None:
    """Each route accepts, and then fails the first step."""

    def always(span: Span, _entry: PeerId, avoid: frozenset[PeerId]) -> tuple[Hop, ...]:
        return (Hop(SPARE if SECOND in avoid else SECOND, span),)

    machine = ready(always)
    machine.submit(0, 1, 1, frame(), 0.0)
    now_s, attempt, actions = 0.0, 0, list[Action]()
    while not any(isinstance(action, Lost) for action in actions):
        now_s += 1.0
        assert now_s < 2 * REPAIR_LIMIT_S
        failed = Failed(SESSION, attempt, 1, 0, "out of memory")
        actions = machine.receive(machine.path[1].peer, failed, b"", now_s)
        if sent(actions, Open):
            attempt += 1
            accept_all(machine, actions, now_s)
    [lost] = [action for action in actions if isinstance(action, Lost)]
    assert "out of memory" in str(lost.error)
    assert now_s > REPAIR_LIMIT_S


def test_a_hop_that_has_forgotten_the_session_is_replaced_at_once() -> None:
    """As after an owner has slept for longer than hops wait for one."""
    machine = ready()
    machine.submit(0, 1, 1, frame(), 0.0)
    machine.tick(0.3)
    known = Pong(SESSION, 0, (Progress(PATH[0].span.start, -1, is_busy=True),))
    assert machine.receive(FIRST, known, b"", 0.3) == []
    actions = machine.receive(SECOND, Pong(SESSION, 0, ()), b"", 0.3)
    assert [peer for peer, _ in sent(actions, Open)] == [SPARE]


def test_layers_that_come_back_in_time_end_the_wait() -> None:
    back: list[bool] = []

    def later(span: Span, entry: PeerId, avoid: frozenset[PeerId]) -> tuple[Hop, ...] | str:
        return spare(span, entry, avoid) if back else nobody(span, entry, avoid)

    machine = ready(later)
    answer(machine, 2)
    assert machine.peer_down(SECOND, "gone", 1.0) == []
    back.append(True)
    told = accept_all(machine, machine.tick(2.0), 2.0)
    assert any(isinstance(action, Rerouted) for action in told)


def test_a_peer_that_failed_and_came_back_counts_as_new() -> None:
    only: list[Hop] = [PATH[1]]

    def find(span: Span, _entry: PeerId, avoid: frozenset[PeerId]) -> tuple[Hop, ...] | str:
        return tuple(only) if span == PATH[1].span and SECOND not in avoid else "nobody"

    machine = ready(find)
    answer(machine, 2)
    machine.peer_down(SECOND, "gone", 1.0)
    actions: list[Action] = []
    now_s = 1.0
    while not actions:
        now_s += 0.5
        actions = machine.tick(now_s)
    [(peer, message)] = sent(actions, Open)
    assert peer == SECOND
    joining = machine.receive(SECOND, Accept(SESSION, 1, 1), b"", now_s)
    asked = {p: m.replay_positions for p, m in sent(joining, Open) if isinstance(m, Open)}
    assert asked == {FIRST: 2, THIRD: 0}
    assert isinstance(message, Open)


def test_closing_tells_every_hop_once() -> None:
    machine = ready()
    assert [peer for peer, _ in sent(machine.close(), Close)] == [FIRST, SECOND, THIRD]
    assert machine.close() == []
    assert machine.tick(100.0) == []


def test_a_step_under_way_can_not_be_replaced() -> None:
    machine = ready()
    machine.submit(0, 1, 1, frame(), 0.0)
    with pytest.raises(LocalError):
        machine.submit(0, 1, 1, frame(), 0.0)
