"""Feeding stand-ins: what they get, in what portions, who may ask for it, and what ends it."""

from __future__ import annotations

import msgspec
import pytest

from gennode.errors import ResourceError
from gennode.node.actions import Action, Exported, ExportJob, Run, Send
from gennode.node.hops.admission import HopLimits
from gennode.node.hops.feeds import FEED_IDLE_S, FEED_INTERVAL_S
from gennode.node.hops.spill import MemoryStore
from gennode.wire.ids import Hop, PeerId, SessionId, Span, session_id
from gennode.wire.messages import (
    CREDIT_BYTES,
    WINDOW_BYTES,
    CachePart,
    Close,
    Credit,
    Failed,
    Feed,
    Open,
    Step,
)
from tests.node.conftest import FIRST, OWNER, PATH, SECOND, SESSION, SPARE, THIRD, peer
from tests.node.hops.driven import ROWS, Driven, feed, job, numbers, opened, sends, told, wide

WINDOW = WINDOW_BYTES // CREDIT_BYTES  # frames or parts
STAND_IN = 7  # the attempt under which it was opened
REROUTED = (PATH[0], PATH[1], Hop(SPARE, Span(4, 6)))
PART = bytes(CREDIT_BYTES)


def _credit(count: int, layer: int, attempt: int = STAND_IN) -> Credit:
    return Credit(SESSION, attempt, layer, count * CREDIT_BYTES)


def _hop(count: int = 3, **options: object) -> Driven:
    """A hop that has passed on so many frames, and all were taken."""
    hop = opened(**options)
    for number in range(count):
        hop.passes(number)
        assert hop.hears(THIRD, _credit(number + 1, 4, attempt=0)) == []
    return hop


def _reason(actions: list[Action], attempt: int = STAND_IN) -> str:
    [failure] = told(actions)
    assert isinstance(failure, Failed)
    assert (failure.attempt, failure.index) == (attempt, 1)
    return failure.reason


def _exports(actions: list[Action]) -> ExportJob:
    asked = job(actions)
    assert isinstance(asked, ExportJob)
    return asked


def _gives(hop: Driven, asked: ExportJob, rows: int = ROWS) -> list[Action]:
    """The engine exports so many positions."""
    return hop.does(asked, Exported("fp32", asked.start, asked.start + rows, PART))


def _parts(actions: list[Action]) -> list[tuple[int, int]]:
    return [(one.start, one.end) for one in told(actions) if isinstance(one, CachePart)]


# -- frames, to a worker of the next layers -------------------------------------------------------


def test_a_stand_in_below_is_sent_the_frames_that_were_retained() -> None:
    hop = _hop()
    fed = hop.hears(OWNER, feed(cache=False))
    assert [send.peer for send in sends(fed)] == [SPARE] * 3
    assert [
        (m.attempt, m.number, m.layer, m.position, m.rebuild)
        for m in told(fed)
        if isinstance(m, Step)
    ] == [(STAND_IN, number, 4, number * ROWS, True) for number in range(3)]
    [forward, _] = sends(hop.passes(3))  # the session goes on meanwhile
    assert (forward.peer, forward.message) == (
        THIRD, Step(SESSION, 0, 3, 4, 3 * ROWS, ROWS, ROWS, "raw", rebuild=False),
    )  # fmt: skip


def test_it_is_sent_no_more_than_a_window_without_credit() -> None:
    hop = _hop()
    for number in range(3, WINDOW + 2):
        hop.passes(number)
    assert numbers(hop.hears(OWNER, feed(cache=False))) == list(range(WINDOW))
    assert numbers(hop.hears(THIRD, _credit(4, 4))) == []  # it is not for this one to say
    assert numbers(hop.hears(SPARE, _credit(1, 4))) == [WINDOW]
    assert numbers(hop.hears(SPARE, _credit(2, 4))) == [WINDOW + 1]


def test_asked_again_it_sends_what_came_since() -> None:
    hop = _hop()
    hop.hears(OWNER, feed(cache=False))
    hop.passes(3)
    assert numbers(hop.hears(OWNER, feed(cache=False))) == [3]
    assert hop.hears(OWNER, feed(cache=False, from_position=ROWS)) == []


def test_frames_below_what_the_stand_in_holds_are_not_sent() -> None:
    fed = _hop().hears(OWNER, feed(cache=False, from_position=ROWS + 1))
    assert numbers(fed) == [1, 2]


def test_frames_that_are_replaced_while_they_wait_are_not_sent() -> None:
    hop = _hop(WINDOW)
    hop.passes(WINDOW)
    assert numbers(hop.hears(OWNER, feed(cache=False))) == list(range(WINDOW))
    hop.passes(WINDOW + 1, WINDOW * ROWS)  # it was answered, and taken back
    assert hop.hears(SPARE, _credit(WINDOW, 4)) == []
    assert numbers(hop.hears(OWNER, feed(cache=False))) == [WINDOW + 1]


def test_when_the_stand_in_takes_over_it_is_sent_the_rest_alone() -> None:
    hop = _hop()
    hop.hears(OWNER, feed(cache=False))
    hop.passes(3)
    hop.passes(4)
    again = wide(1, attempt=STAND_IN, path=REROUTED, rebuild_until=2)
    switched = hop.opens(
        msgspec.structs.replace(again, replay_from=2 * ROWS, replay_positions=5 * ROWS)
    )
    assert numbers(switched) == [3]  # one window, all in all
    released = hop.hears(SPARE, _credit(2, 4))
    assert [(m.number, m.rebuild) for m in told(released) if isinstance(m, Step)] == [(4, True)]
    [forward, _] = sends(hop.passes(5))
    assert isinstance(forward.message, Step)
    assert (forward.peer, forward.message.rebuild) == (SPARE, False)


def test_what_a_stand_in_was_fed_but_not_sent_yet_comes_before_new_steps() -> None:
    hop = _hop(WINDOW)
    hop.passes(WINDOW)
    hop.hears(OWNER, feed(cache=False))
    hop.opens(wide(1, attempt=STAND_IN, path=REROUTED, rebuild_until=2))
    assert numbers(hop.passes(WINDOW + 1)) == []
    released = [m for m in told(hop.hears(SPARE, _credit(2, 4))) if isinstance(m, Step)]
    assert [(m.number, m.rebuild) for m in released] == [(WINDOW, True), (WINDOW + 1, False)]


def test_an_unanswered_step_that_was_fed_is_sent_again_without_a_complaint() -> None:
    hop = _hop(WINDOW)
    hop.passes(WINDOW)
    hop.hears(OWNER, feed(cache=False))
    hop.opens(wide(1, attempt=STAND_IN, path=REROUTED, rebuild_until=2))
    assert hop.passes(WINDOW) == []  # in place of the frame that waits
    [again, _] = told(hop.hears(SPARE, _credit(1, 4)))
    assert again == Step(  # to be answered, and not only to rebuild what is below
        SESSION, STAND_IN, WINDOW, 4, WINDOW * ROWS, ROWS, ROWS, "raw", rebuild=False
    )
    assert numbers(hop.hears(SPARE, _credit(2, 4))) == []


def test_a_stand_in_that_is_needed_under_another_attempt_is_fed_by_that() -> None:
    hop = _hop(WINDOW)
    hop.passes(WINDOW)
    hop.hears(OWNER, feed(cache=False))
    again = wide(1, attempt=STAND_IN + 1, path=REROUTED, replay_positions=ROWS, rebuild_until=2)
    assert numbers(hop.opens(again)) == [0]
    assert hop.hears(SPARE, _credit(4, 4)) == []


def test_a_repair_elsewhere_leaves_a_feed_alone() -> None:
    hop = _hop(WINDOW)
    hop.passes(WINDOW)
    hop.hears(OWNER, feed(cache=False))
    hop.opens(wide(1, attempt=STAND_IN + 1))
    assert numbers(hop.hears(SPARE, _credit(1, 4))) == [WINDOW]


# -- a cache, to a worker of the same layers ------------------------------------------------------


def test_a_cache_is_handed_over_part_by_part() -> None:
    hop = _hop()
    first = _exports(hop.hears(OWNER, feed(cache=True)))
    assert (first.start, first.max_bytes) == (0, CREDIT_BYTES)
    given = _gives(hop, first)
    assert sends(given) == [Send(SPARE, CachePart(SESSION, STAND_IN, 2, "fp32", 0, ROWS), PART)]
    given = _gives(hop, _exports(given), rows=2 * ROWS)
    assert _parts(given) == [(ROWS, 3 * ROWS)]
    assert not [action for action in given if isinstance(action, Run)]  # all that was known


def test_no_more_than_one_part_waits_for_credit() -> None:
    hop = _hop(WINDOW + 3)
    actions = hop.hears(OWNER, feed(cache=True))
    for number in range(WINDOW):
        actions = _gives(hop, _exports(actions))
        assert _parts(actions) == [(number * ROWS, (number + 1) * ROWS)]
    assert _gives(hop, _exports(actions)) == []  # waits, and no more is asked of the engine
    assert hop.hears(SPARE, _credit(1, 4)) == []  # of other layers
    actions = hop.hears(SPARE, _credit(1, 2))
    assert _parts(actions) == [(WINDOW * ROWS, (WINDOW + 1) * ROWS)]
    assert _exports(actions).start == (WINDOW + 1) * ROWS


def test_asked_again_a_cache_goes_on_from_what_the_stand_in_holds() -> None:
    hop = _hop(2)
    actions = hop.hears(OWNER, feed(cache=True))
    _gives(hop, _exports(actions), rows=2 * ROWS)
    assert hop.hears(OWNER, feed(cache=True, from_position=2 * ROWS)) == []
    hop.passes(2)
    asked = _exports(hop.hears(OWNER, feed(cache=True, from_position=2 * ROWS)))
    assert hop.hears(OWNER, feed(cache=True, from_position=2 * ROWS)) == []  # one at a time
    assert _parts(_gives(hop, asked)) == [(2 * ROWS, 3 * ROWS)]


def test_a_part_that_was_asked_for_before_steps_were_taken_back_is_not_sent() -> None:
    hop = _hop(3)
    overtaken = _exports(_gives(hop, _exports(hop.hears(OWNER, feed(cache=True)))))
    assert hop.hears(OWNER, feed(cache=True)) == []
    begun_anew = _gives(hop, overtaken)
    assert _parts(begun_anew) == []
    assert _exports(begun_anew).start == 0


def test_steps_that_are_taken_back_end_a_feed_early() -> None:
    hop = _hop(3)
    asked = _exports(_gives(hop, _exports(hop.hears(OWNER, feed(cache=True)))))
    assert hop.does(asked, Exported("fp32", ROWS, ROWS, b"")) == []
    hop.now_s = FEED_IDLE_S + 1
    assert hop.machine.tick(hop.now_s) == []  # there is nothing that could be idle


def test_an_engine_that_fails_ends_the_feed_and_not_the_session() -> None:
    hop = _hop()
    asked = _exports(hop.hears(OWNER, feed(cache=True)))
    assert "no memory" in _reason(hop.does(asked, ResourceError("no memory")))
    assert "given up" in _reason(hop.hears(OWNER, feed(cache=True)))
    assert numbers(hop.passes(3)) == [3]


# -- who may ask ----------------------------------------------------------------------------------


def test_only_the_owner_may_have_a_stand_in_fed() -> None:
    hop = _hop()
    for stranger in (FIRST, THIRD, SPARE):
        for cache in (False, True):
            assert hop.hears(stranger, feed(cache=cache)) == []
    other = msgspec.structs.replace(feed(cache=True), session=SessionId(b"x" * 16))
    assert hop.hears(OWNER, other) == []
    assert hop.hears(OWNER, msgspec.structs.replace(feed(cache=True), layer=4)) == []


def test_what_can_not_be_fed_is_refused_in_words() -> None:
    hop = _hop(strangers=frozenset({peer(99)}))
    assert "not known" in _reason(hop.hears(OWNER, feed(cache=False, peer=peer(99))))
    own = feed(cache=False, attempt=0)
    assert "attempt of its own" in _reason(hop.hears(OWNER, own), attempt=0)
    last = Driven(own=THIRD, sender=SECOND, layer=4)
    last.opens(wide(2))
    [failure] = told(last.hears(OWNER, Feed(SESSION, 4, SPARE, STAND_IN, 0, cache=False)))
    assert isinstance(failure, Failed)
    assert "no hop is below" in failure.reason


def test_a_cache_that_can_not_be_handed_over_is_refused() -> None:
    hop = opened()
    model = hop.machine._admission.models[wide(1).model]
    hop.machine.host(
        type(model)(model.model, model.layers, model.dim, model.max_positions, model.can_host)
    )
    assert "can't be handed over" in _reason(hop.hears(OWNER, feed(cache=True)))


def test_a_storm_of_feeds_draws_one_window() -> None:
    # Each names another worker, or another attempt, which would be sent a window at once.
    hop = _hop(WINDOW + 1)
    sent = numbers(hop.hears(OWNER, feed(cache=False)))
    for number in range(50):
        storm = feed(cache=False, peer=peer(20 + number), attempt=STAND_IN + number)
        assert "fed already" in _reason(hop.hears(OWNER, storm), attempt=STAND_IN + number)
        sent += numbers(hop.hears(OWNER, feed(cache=False)))
    assert sent == list(range(WINDOW))
    hop.now_s = FEED_INTERVAL_S
    fed = hop.hears(OWNER, feed(cache=False, peer=THIRD, attempt=STAND_IN + 1))
    assert {send.peer for send in sends(fed)} == {THIRD}
    assert hop.hears(SPARE, _credit(2, 4)) == []  # a newer feed replaces it


def test_a_storm_of_feeds_has_the_engine_export_one_part() -> None:
    hop = _hop()
    hop.hears(OWNER, feed(cache=True))
    for _ in range(50):
        assert hop.hears(OWNER, feed(cache=True)) == []


def test_caches_handed_over_at_a_time_are_counted_in_all_and_by_owner() -> None:
    hop = Driven(limits=HopLimits(max_cache_feeds=3, max_cache_feeds_of_one_owner=2))
    reasons: list[str] = []
    for owner in (OWNER, peer(50)):
        for number in range(3):
            session = session_id(PeerId(owner), bytes([number]) * 8)
            _begin(hop, owner, session)
            asked = msgspec.structs.replace(feed(cache=True), session=session)
            actions = hop.hears(owner, asked)
            reasons += [m.reason for m in told(actions) if isinstance(m, Failed)]
    assert reasons == ["too many caches are handed over now"] * 3


def _begin(hop: Driven, owner: str, session: SessionId) -> None:
    """One session with one frame behind it."""
    message = msgspec.structs.replace(wide(1), session=session)
    hop.does(job(hop.machine.receive(owner, message, b"", 0.0)))  # type: ignore[arg-type]
    step = Step(session, 0, 0, 2, 0, ROWS, ROWS, "raw", rebuild=False)
    hop.does(job(hop.hears(FIRST, step, PART)), PART)


# -- what ends a feed -----------------------------------------------------------------------------


def test_credit_for_more_than_was_sent_ends_the_feed_alone() -> None:
    hop = _hop()
    hop.hears(OWNER, feed(cache=False))
    assert "more than was sent" in _reason(hop.hears(SPARE, _credit(4, 4)))
    assert hop.hears(SPARE, _credit(4, 4)) == []
    assert numbers(hop.passes(3)) == [3]


@pytest.mark.parametrize("cache", [False, True])
def test_a_stand_in_that_takes_nothing_in_is_given_up(cache: bool) -> None:
    hop = _hop(WINDOW + 2)
    actions = hop.hears(OWNER, feed(cache=cache))
    for _ in range(WINDOW + 1 if cache else 0):
        actions = _gives(hop, _exports(actions))
    hop.now_s = FEED_IDLE_S
    assert hop.machine.tick(hop.now_s) == []
    hop.now_s += 0.1
    assert "took nothing in" in _reason(hop.machine.tick(hop.now_s))
    assert hop.machine.tick(hop.now_s + 100.0) != []  # the owner is forgotten, and nothing else
    assert hop.hears(SPARE, _credit(2, 2 if cache else 4)) == []


def test_a_slow_engine_is_not_the_stand_ins_fault() -> None:
    hop = _hop()
    hop.hears(OWNER, feed(cache=True))
    hop.now_s = 3 * FEED_IDLE_S
    assert hop.machine.tick(hop.now_s) == []


def test_a_stand_in_that_can_not_be_reached_is_told_to_the_owner() -> None:
    hop = _hop()
    hop.hears(OWNER, feed(cache=False))
    assert "can't be reached" in _reason(hop.machine.peer_down(SPARE, 0.0))
    assert hop.machine.peer_down(SPARE, 0.0) == []


def test_a_session_that_ends_takes_its_feed_along() -> None:
    hop = _hop(WINDOW + 1)
    asked = _exports(hop.hears(OWNER, feed(cache=True)))
    hop.hears(OWNER, Close(SESSION))
    assert _gives(hop, asked) == []
    assert hop.hears(SPARE, _credit(1, 2)) == []


def test_frames_that_were_given_up_can_not_be_fed() -> None:
    hop = _hop(WINDOW + 1, limits=HopLimits(retained_bytes=(WINDOW + 1) * CREDIT_BYTES))
    hop.hears(OWNER, feed(cache=False))
    failures = [m for m in told(hop.passes(WINDOW + 1)) if isinstance(m, Failed)]
    assert [(one.attempt, one.reason) for one in failures] == [
        (STAND_IN, "the frames for it are no longer retained")
    ]


def test_frames_that_the_disk_lost_end_the_feed_and_not_the_session() -> None:
    store = MemoryStore(1 << 30)
    hop = _hop(3, limits=HopLimits(retained_bytes=CREDIT_BYTES), store=store)
    store.loses = True
    assert "can't be read" in _reason(hop.hears(OWNER, feed(cache=False)))
    assert numbers(hop.passes(3)) == [3]


def test_credit_is_known_to_be_for_a_feed_or_not() -> None:
    hop = _hop()
    hop.hears(OWNER, feed(cache=True))
    assert hop.machine.feeds(SPARE, _credit(1, 2))
    assert not hop.machine.feeds(SPARE, _credit(1, 2, attempt=0))
    assert not hop.machine.feeds(THIRD, _credit(1, 2))


def test_opened_under_the_stand_ins_attempt_with_another_below_it_is_fed_no_more() -> None:
    hop = _hop(WINDOW + 1)
    hop.hears(OWNER, feed(cache=False))
    again: Open = wide(1, attempt=STAND_IN)
    hop.opens(again)
    assert numbers(hop.passes(WINDOW + 1)) == [WINDOW + 1]
