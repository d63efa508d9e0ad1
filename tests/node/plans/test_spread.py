"""Telling of plans and asking for them: to whom, how often, and what is never done."""

from __future__ import annotations

from random import Random

import pytest

from gennode.errors import RemoteError
from gennode.node.actions import Send
from gennode.node.plans.spread import (
    ANSWER_LIMIT_S,
    EXCHANGE_INTERVAL_S,
    FAN_OUT,
    MAX_ASKED,
    MAX_ASKED_ALIKE,
    MAX_OFFERS,
    REPLY_INTERVAL_S,
    SEND_AGAIN_S,
    SHUN_S,
    Spread,
    standing,
)
from gennode.wire.ids import PeerId
from gennode.wire.messages import PlanDigest, PlanSent, PlanWanted
from gennode.wire.proposal import MAX_PROPOSAL_BYTES, place_in_line
from tests.node.plans.planners import MODEL

OTHERS = [PeerId(f"peer {number}") for number in range(9)]
EPOCH = 7
LINE = sorted(OTHERS, key=lambda peer: place_in_line(MODEL, EPOCH, peer))
SENT = b"a proposal"


def digest(name: int = 1, *, publisher: PeerId = LINE[1], epoch: int = EPOCH) -> PlanDigest:
    return PlanDigest(MODEL, epoch, publisher, bytes([name]) * 32)


def spread() -> Spread:
    return Spread(MODEL, Random(1))


def tick(one: Spread, now_s: float, *, wants: bool = True) -> list[Send]:
    return one.tick(now_s, OTHERS, EPOCH, lambda _digest: wants)


def hear(one: Spread, teller: PeerId, told: PlanDigest, now_s: float) -> list[Send]:
    return one.heard(teller, told, now_s, is_known=True)


def asked(sends: list[Send]) -> list[PeerId]:
    return [send.peer for send in sends if isinstance(send.message, PlanWanted)]


def told(sends: list[Send]) -> list[PeerId]:
    return [send.peer for send in sends if isinstance(send.message, PlanDigest)]


def test_the_newest_epoch_wins_then_the_first_in_line_then_the_lowest_id() -> None:
    ordered = [
        digest(9, publisher=LINE[5], epoch=EPOCH + 1),
        digest(9, publisher=LINE[0]),
        digest(1),
        digest(2),
        digest(0, publisher=LINE[2]),
        digest(0, epoch=EPOCH - 1),
        PlanDigest(MODEL, 0, PeerId(""), bytes(32)),
    ]
    shuffled = Random(2).sample(ordered, len(ordered))
    assert sorted(shuffled, key=standing) == ordered


def test_news_is_told_to_a_few_and_first_to_those_who_would_publish_next() -> None:
    one = spread()
    assert len(told(tick(one, 0.0))) == 1  # that we follow none
    one.follow(digest(), SENT, LINE[2:5])
    sends = tick(one, 0.1)
    assert set(told(sends)) > set(LINE[2:5])
    assert len(told(sends)) <= FAN_OUT + 3
    assert all(send.message == digest() and not send.payload for send in sends)
    assert tick(one, 0.2) == []
    assert len(told(tick(one, EXCHANGE_INTERVAL_S))) == 1


def test_who_tells_of_a_worse_plan_is_told_of_ours_at_times() -> None:
    one = spread()
    tick(one, 0.0)
    assert hear(one, OTHERS[0], digest(2), 0.0) == []  # we follow none
    one.follow(digest(1), SENT)
    assert hear(one, OTHERS[0], digest(2), 1.0) == [Send(OTHERS[0], digest(1))]
    assert hear(one, OTHERS[0], digest(2), 1.5) == []
    assert len(hear(one, OTHERS[0], digest(2), 1.0 + REPLY_INTERVAL_S)) == 1
    assert hear(one, OTHERS[1], digest(1), 1.0) == []
    assert hear(one, OTHERS[1], digest(0), 1.0) == []


def test_a_plan_that_nobody_may_take_any_more_is_not_told_as_an_answer() -> None:
    one = spread()
    one.follow(digest(), SENT)
    one.tick(0.0, OTHERS, EPOCH + 2, lambda _digest: True)
    assert hear(one, OTHERS[0], digest(2), 1.0) == []


def test_a_plan_that_is_ahead_of_all_clocks_wins_no_more_once_ours_is_right() -> None:
    one = spread()
    one.follow(digest(epoch=EPOCH + 2), SENT)
    tick(one, 0.0)
    hear(one, OTHERS[0], digest(), 0.0)
    assert asked(tick(one, 0.1)) == [OTHERS[0]]


def test_strangers_are_told_and_not_believed() -> None:
    one = spread()
    tick(one, 0.0)
    assert one.heard(OTHERS[0], digest(1), 0.0, is_known=False) == []
    assert tick(one, 0.1) == []
    one.follow(digest(1), SENT)
    stranger = one.heard(OTHERS[0], digest(2), 0.2, is_known=False)
    assert stranger == [Send(OTHERS[0], digest(1))]


def test_a_better_plan_is_asked_for_once_it_is_wanted() -> None:
    one = spread()
    tick(one, 0.0)
    hear(one, OTHERS[0], digest(), 0.0)
    assert tick(one, 0.1, wants=False) == []
    assert tick(one, 0.2) == [Send(OTHERS[0], PlanWanted(MODEL, digest().proposal))]
    assert tick(one, 0.3) == []
    assert one.answered(OTHERS[0], PlanSent(MODEL, digest().proposal), SENT) == digest()
    assert one.answered(OTHERS[0], PlanSent(MODEL, digest().proposal), SENT) is None


def test_only_few_are_asked_at_a_time_and_fewer_for_the_same() -> None:
    one = spread()
    tick(one, 0.0)
    for peer in OTHERS:
        hear(one, peer, digest(), 0.0)
    assert len(asked(tick(one, 0.1))) == MAX_ASKED_ALIKE
    for number, peer in enumerate(OTHERS):
        hear(one, peer, digest(10 + number), 0.2)
    assert len(asked(tick(one, 0.3))) == MAX_ASKED - MAX_ASKED_ALIKE


def test_who_does_not_send_what_it_told_of_is_not_asked_for_a_while() -> None:
    one = spread()
    tick(one, 0.0)
    hear(one, OTHERS[0], digest(1), 0.0)
    assert asked(tick(one, 0.0)) == [OTHERS[0]]
    gone_s = ANSWER_LIMIT_S + 0.1
    tick(one, gone_s)
    hear(one, OTHERS[0], digest(0), gone_s)
    hear(one, OTHERS[1], digest(2), gone_s)
    assert asked(tick(one, gone_s)) == [OTHERS[1]]
    one.answered(OTHERS[1], PlanSent(MODEL, digest(2).proposal), b"")  # no longer there
    back_s = gone_s + SHUN_S
    tick(one, back_s)
    for peer in OTHERS[:2]:
        hear(one, peer, digest(0), back_s)
    assert sorted(asked(tick(one, back_s))) == OTHERS[:2]


def test_each_asker_gets_a_proposal_once_in_a_while() -> None:
    one = spread()
    one.follow(digest(), SENT)
    wanted, answer = PlanWanted(MODEL, digest().proposal), PlanSent(MODEL, digest().proposal)
    assert one.wanted(OTHERS[0], wanted, 0.0) == [Send(OTHERS[0], answer, SENT)]
    assert one.wanted(OTHERS[0], wanted, SEND_AGAIN_S - 1) == []
    assert one.wanted(OTHERS[0], wanted, SEND_AGAIN_S) == [Send(OTHERS[0], answer, SENT)]
    other = PlanWanted(MODEL, bytes(32))
    assert one.wanted(OTHERS[1], other, 0.0) == [Send(OTHERS[1], PlanSent(MODEL, bytes(32)))]


def test_large_proposals_are_sent_so_often_only() -> None:
    one = spread()
    one.follow(digest(), bytes(MAX_PROPOSAL_BYTES))
    wanted = PlanWanted(MODEL, digest().proposal)
    answers = [one.wanted(peer, wanted, 0.0)[0].payload for peer in OTHERS]
    assert [bool(payload) for payload in answers] == [True, True] + [False] * 7
    late = one.wanted(PeerId("late"), wanted, 4.0)[0]
    assert late.payload


def test_an_answer_is_never_larger_than_a_proposal() -> None:
    one = spread()
    with pytest.raises(RemoteError, match="too large"):
        one.answered(OTHERS[0], PlanSent(MODEL, bytes(32)), bytes(MAX_PROPOSAL_BYTES + 1))


def test_what_is_remembered_of_others_is_bounded() -> None:
    one = spread()
    for number in range(5000):
        peer = PeerId(f"teller {number}")
        hear(one, peer, digest(1), 0.0)
        one.wanted(peer, PlanWanted(MODEL, bytes(32)), 0.0)
    assert len(one._offers) == MAX_OFFERS
    assert len(one._callers) <= 1024
