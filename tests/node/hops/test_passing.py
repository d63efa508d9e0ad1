"""What goes out of a hop: never more than is asked for, retained until it is not needed."""

from __future__ import annotations

import msgspec

from gennode.node.actions import Run, Send
from gennode.node.hops.admission import HopLimits
from gennode.node.hops.hosted import REPLAYS_PER_S
from gennode.node.hops.spill import MemoryStore
from gennode.wire.ids import Hop, Span, session_id
from gennode.wire.messages import (
    CREDIT_BYTES,
    WINDOW_BYTES,
    Accept,
    Close,
    Credit,
    Failed,
    Fed,
    Refuse,
    Step,
)
from tests.node.conftest import FIRST, OWNER, PATH, SECOND, SESSION, SPARE, THIRD
from tests.node.hops.driven import (
    DIM,
    FRAME,
    ROWS,
    Driven,
    numbers,
    opened,
    payloads,
    sends,
    told,
    wide,
)

WINDOW = WINDOW_BYTES // CREDIT_BYTES  # frames
REROUTED = (PATH[0], PATH[1], Hop(SPARE, Span(4, 6)))


def _credit(frames: int, attempt: int = 0, layer: int = 4) -> Credit:
    return Credit(SESSION, attempt, layer, frames * CREDIT_BYTES)


# -- credit for the hop above ---------------------------------------------------------------------


def test_the_sender_hears_what_was_taken_when_it_is_much() -> None:
    hop = opened()
    assert [hop.takes(number) for number in range(2)]  # not yet computed: no word
    hop = opened()
    small = [message for number in range(8) for message in told(hop.passes(number, number, rows=1))]
    assert all(isinstance(message, Step) for message in small)
    [forward, credit] = sends(hop.passes(8, 8))
    assert isinstance(forward.message, Step)
    assert credit == Send(FIRST, Credit(SESSION, 0, 2, CREDIT_BYTES + 8 * 4 * DIM))


def test_the_first_hop_gives_its_credit_to_the_owner_and_the_last_one_too() -> None:
    first = Driven(own=FIRST, sender=OWNER, layer=0)
    first.opens(wide(0))
    assert sends(first.passes(0))[-1] == Send(OWNER, Credit(SESSION, 0, 0, CREDIT_BYTES))
    last = Driven(own=THIRD, sender=SECOND, layer=4)
    last.opens(wide(2))
    assert sends(last.passes(0))[-1] == Send(SECOND, Credit(SESSION, 0, 4, CREDIT_BYTES))


def test_what_comes_twice_is_taken_too_or_its_sender_would_wait() -> None:
    hop = opened()
    hop.passes(0)
    again = Step(SESSION, 0, 0, 2, 0, ROWS, ROWS, "raw", rebuild=False)
    [credit] = told(hop.hears(FIRST, again, FRAME))
    assert credit == Credit(SESSION, 0, 2, 2 * CREDIT_BYTES)


def test_a_new_attempt_is_counted_from_nothing() -> None:
    hop = opened()
    hop.passes(0, 0, rows=ROWS - 1)
    hop.opens(wide(1, attempt=1))
    assert [type(message) for message in told(hop.passes(0, 0, rows=ROWS - 1))] == [Step]


def test_who_is_slow_below_slows_down_those_above() -> None:
    hop = opened()
    credits = [m.taken_bytes for m in told(hop.fills(WINDOW + 2)) if isinstance(m, Credit)]
    assert credits[-1] == WINDOW_BYTES  # and no more, though all is computed
    assert hop.machine.queued_bytes == 0
    [_, credit] = told(hop.hears(THIRD, _credit(1)))
    assert credit == Credit(SESSION, 0, 2, WINDOW_BYTES + CREDIT_BYTES)


# -- what waits for the hop below -----------------------------------------------------------------


def test_no_more_than_a_window_goes_out_without_credit() -> None:
    hop = opened()
    assert numbers(hop.fills(WINDOW + 3)) == list(range(WINDOW))
    assert numbers(hop.hears(THIRD, _credit(1))) == [WINDOW]
    assert numbers(hop.hears(THIRD, _credit(1))) == []
    late = hop.hears(THIRD, _credit(3))
    assert numbers(late) == [WINDOW + 1, WINDOW + 2]
    assert [frame[:1] for frame in payloads(late)] == [b"\5", b"\6"]


def test_credit_of_strangers_and_of_older_attempts_changes_nothing() -> None:
    hop = opened()
    hop.opens(wide(1, attempt=1))
    hop.fills(WINDOW + 1)
    for stranger in (OWNER, FIRST, SPARE):
        assert hop.hears(stranger, _credit(2, attempt=1)) == []
    for wrong in (_credit(2), _credit(2, attempt=2), _credit(2, attempt=1, layer=2)):
        assert hop.hears(THIRD, wrong) == []
    assert hop.hears(THIRD, msgspec.structs.replace(_credit(2, 1), session=b"x" * 16)) == []
    assert numbers(hop.hears(THIRD, _credit(2, attempt=1))) == [WINDOW]


def test_credit_for_more_than_was_sent_is_for_the_owner_to_judge() -> None:
    # Who opens one of two workers anew, and not the other, has the two count differently.
    hop = opened()
    hop.passes(0)
    [failure] = told(hop.hears(THIRD, _credit(2)))
    assert isinstance(failure, Failed)
    assert (failure.index, failure.attempt) == (2, 0)
    assert "more than was sent" in failure.reason


def test_what_the_old_attempt_held_back_is_forgotten() -> None:
    hop = opened()
    hop.fills(WINDOW + 2)
    hop.opens(wide(1, attempt=1))
    assert hop.hears(THIRD, _credit(2)) == []
    assert numbers(hop.passes(WINDOW + 2)) == [WINDOW + 2]


def test_a_step_that_is_replaced_while_it_waits_was_never_answered() -> None:
    hop = opened()
    hop.fills(WINDOW + 1)
    failures = [m for m in told(hop.passes(WINDOW + 1, WINDOW * ROWS)) if isinstance(m, Failed)]
    assert [(one.index, one.number) for one in failures] == [(0, WINDOW)]


def test_a_step_that_is_replaced_while_it_waits_is_taken_too() -> None:
    hop = opened()
    hop.fills(WINDOW + 1)
    replaced = told(hop.passes(WINDOW + 1, WINDOW * ROWS))
    assert Credit(SESSION, 0, 2, WINDOW_BYTES + CREDIT_BYTES) in replaced


def test_a_hop_below_that_takes_nothing_in_costs_no_more_than_what_is_retained() -> None:
    hop = opened(limits=HopLimits(retained_bytes=8 * CREDIT_BYTES))
    actions = hop.fills(9)
    failures = [message for message in told(actions) if isinstance(message, Failed)]
    assert [(one.index, one.number) for one in failures] == [(2, 8)]
    assert "takes in nothing" in failures[0].reason
    assert hop.hears(THIRD, _credit(4)) == []  # nothing waits any more


# -- memory and disk ------------------------------------------------------------------------------


def test_frames_over_the_limit_are_put_aside_and_sent_all_the_same() -> None:
    store = MemoryStore(1 << 30)
    hop = opened(limits=HopLimits(retained_bytes=2 * CREDIT_BYTES), store=store)
    assert not [m for m in told(hop.fills(WINDOW + 4)) if isinstance(m, Failed)]
    assert store.held_bytes == (WINDOW + 2) * CREDIT_BYTES
    released = payloads(hop.hears(THIRD, _credit(4)))
    assert released == [bytes([number]) * CREDIT_BYTES for number in range(WINDOW, WINDOW + 4)]
    positions = WINDOW * ROWS
    again = wide(1, attempt=1, replay_positions=positions, rebuild_until=2)
    replayed = hop.opens(again)
    assert numbers(replayed) == list(range(WINDOW))
    hop.hears(OWNER, Close(SESSION))
    assert store.held_bytes == 0


def test_the_largest_session_gives_way_first() -> None:
    store = MemoryStore(1 << 30)
    hop = opened(limits=HopLimits(retained_bytes=4 * CREDIT_BYTES), store=store)
    hop.fills(3)
    other = msgspec.structs.replace(wide(1), session=session_id(OWNER, b"o" * 8))
    hop.opens(other)
    [large, small] = hop.machine._hosted.values()
    for number in range(2):
        message = Step(other.session, 0, number, 2, number * ROWS, ROWS, 1, "raw", rebuild=False)
        [run] = hop.hears(FIRST, message, FRAME)
        assert isinstance(run, Run)
        hop.does(run.job, FRAME)
    assert large.retained.memory_bytes == small.retained.memory_bytes == 2 * CREDIT_BYTES


def test_a_full_disk_costs_the_frames_and_no_more() -> None:
    store = MemoryStore(CREDIT_BYTES)
    hop = opened(limits=HopLimits(retained_bytes=2 * CREDIT_BYTES), store=store)
    assert numbers(hop.fills(WINDOW)) == list(range(WINDOW))
    assert store.held_bytes == 0
    again = wide(1, attempt=1, replay_positions=ROWS, rebuild_until=2)
    [refusal] = told(hop.hears(OWNER, again))
    assert isinstance(refusal, Refuse)
    assert "no longer retained" in refusal.reason


def test_a_broken_disk_fails_the_session_and_sends_nothing_wrong() -> None:
    store = MemoryStore(1 << 30)
    hop = opened(limits=HopLimits(retained_bytes=0), store=store)
    hop.fills(WINDOW + 1)
    store.loses = True
    [failure] = told(hop.hears(THIRD, _credit(2)))
    assert isinstance(failure, Failed)
    assert (failure.index, failure.number) == (1, WINDOW)


def test_what_is_opened_anew_lets_go_of_what_was_put_aside() -> None:
    store = MemoryStore(1 << 30)
    hop = opened(limits=HopLimits(retained_bytes=0), store=store)
    hop.fills(2)
    assert store.held_bytes == 2 * CREDIT_BYTES
    path = (Hop(FIRST, Span(0, 2)), Hop(SECOND, Span(2, 3)), Hop(THIRD, Span(3, 6)))
    hop.opens(wide(1, attempt=1, path=path))
    assert store.held_bytes == 0


# -- replays --------------------------------------------------------------------------------------


def _replays(hop: Driven, start: int, end: int) -> list[tuple[int, bool]]:
    again = wide(1, attempt=1, path=REROUTED, rebuild_until=2)
    actions = hop.opens(msgspec.structs.replace(again, replay_from=start, replay_positions=end))
    assert all(send.peer == SPARE for send in sends(actions)[:-1])
    assert sends(actions)[-1].message == Accept(SESSION, 1, 1, 5 * ROWS)
    return [(m.number, m.rebuild) for m in told(actions) if isinstance(m, Step)]


def test_only_frames_that_reach_beyond_what_the_next_hop_holds_are_replayed_whole() -> None:
    hop = opened()
    hop.fills(5)
    hop.hears(THIRD, _credit(5))
    assert _replays(hop, 2 * ROWS + 1, 4 * ROWS) == [
        (2, True), (3, True),
    ]  # fmt: skip


def test_a_replay_keeps_to_the_window_and_new_steps_wait_behind_it() -> None:
    hop = opened()
    hop.fills(5)
    hop.hears(THIRD, _credit(5))
    replayed = _replays(hop, 0, 5 * ROWS)
    assert replayed == [(number, True) for number in range(WINDOW)]
    assert numbers(hop.passes(5)) == []
    released = told(hop.hears(SPARE, _credit(2, attempt=1)))
    assert [(m.number, m.rebuild) for m in released if isinstance(m, Step)] == [
        (4, True), (5, False),
    ]  # fmt: skip


def test_a_step_that_was_rebuilt_before_it_was_answered_comes_again() -> None:
    hop = Driven()
    hop.opens(wide(1, attempt=1, rebuild_until=1))
    for number in range(3):
        assert Fed(SESSION, 1, 1, (number + 1) * ROWS) in told(hop.passes(number, rebuild=True))
    assert numbers(hop.passes(2)) == [2]
    again = Step(SESSION, 1, 2, 2, 2 * ROWS, ROWS, ROWS, "raw", rebuild=False)
    assert numbers(hop.hears(FIRST, again, FRAME)) == []


def test_hops_between_the_source_and_the_new_one_pass_on_what_they_rebuild() -> None:
    hop = opened()
    hop.fills(2)
    path = (*PATH[:2], Hop(SPARE, Span(4, 6)))
    hop.opens(wide(1, attempt=1, path=path, rebuild_until=2))
    [forward] = sends(hop.passes(0, rebuild=True))[:1]
    assert isinstance(forward.message, Step)
    assert (forward.peer, forward.message.rebuild) == (SPARE, True)


def test_an_owner_that_asks_for_replays_again_and_again_gets_few() -> None:
    hop = opened()
    hop.passes(0)

    def replays(attempts: range) -> list[type[object]]:
        asked = [wide(1, attempt=n, replay_positions=ROWS, rebuild_until=2) for n in attempts]
        return [type(told(hop.hears(OWNER, one))[0]) for one in asked]

    assert replays(range(1, 8)) == [Step] * 4 + [Refuse] * 3
    hop.now_s = 1 / REPLAYS_PER_S
    assert replays(range(8, 10)) == [Step, Refuse]
    [accept] = told(hop.hears(OWNER, wide(1, attempt=10)))  # nothing to replay
    assert accept == Accept(SESSION, 10, 1, ROWS)
