"""Stand-ins that are fed: what they may say, and what they are believed."""

from __future__ import annotations

import pytest

from gennode.errors import RemoteError
from gennode.node.sessions.course import Course
from gennode.node.sessions.feeding import Feeding
from gennode.node.sessions.handover import Handovers
from gennode.node.sessions.standins import StandIns
from gennode.wire.ids import Hop, PeerId
from gennode.wire.messages import (
    Accept,
    Credit,
    Failed,
    Fed,
    Feed,
    Leaving,
    Refuse,
    Step,
)
from tests.node.conftest import FIRST, OWNER, PATH, SECOND, SESSION, SPARE, THIRD, frame
from tests.node.sessions.company import OTHER, after_two_parts, begun, reroutes
from tests.node.sessions.scouts import TERMS, Directory, opens, sent, spares


def course(steps: int = 10) -> Course:
    """A session with answered steps of one position each."""
    made = Course(TERMS, PATH)
    for position in range(steps):
        made.steps.answer(made.steps.add(position, 1, 1, frame()))
    return made


def fed(place: int, *, by_cache: bool) -> tuple[Course, Feeding]:
    made = course()
    hop = PATH[place]
    return made, Feeding(made, hop, (Hop(SPARE, hop.span),), 0.0, by_cache=by_cache)


@pytest.mark.parametrize("by_cache", [True, False])
def test_a_stand_in_is_opened_on_the_path_to_be(by_cache: bool) -> None:
    made, feeding = fed(1, by_cache=by_cache)
    [(peer, message)] = opens(feeding.open())
    assert peer == SPARE
    assert message.path == (PATH[0], Hop(SPARE, PATH[1].span), PATH[2])
    assert (message.attempt, message.index, message.rebuild_until) == (1, 1, 1)
    assert message.donor == (SECOND if by_cache else None)
    assert made.attempt == 0  # the session goes on as it was


def test_who_feeds_it() -> None:
    for place, by_cache, source, layer in ((1, True, SECOND, 2), (1, False, FIRST, 0)):
        _, feeding = fed(place, by_cache=by_cache)
        [(peer, message)] = sent(feeding.accepted(place, 0.0), Feed)
        assert (peer, message) == (source, Feed(SESSION, layer, SPARE, 1, 0, by_cache))
    _, feeding = fed(0, by_cache=False)
    steps = [m for peer, m in sent(feeding.accepted(0, 0.0), Step) if peer == SPARE]
    assert all(isinstance(m, Step) and m.rebuild and m.attempt == 1 for m in steps)
    assert len(steps) == 10


def test_it_is_fed_when_it_has_what_was_known() -> None:
    made, feeding = fed(1, by_cache=True)
    assert not feeding.is_fed
    feeding.accepted(1, 0.0)
    made.steps.answer(made.steps.add(10, 1, 1, frame()))
    known = []
    for positions in (9, 10, 3):  # the last one is late
        feeding.took(1, positions, 0.0)
        known.append((feeding.fed, feeding.is_fed))
    assert known == [(9, False), (10, True), (10, True)]


def test_drafts_that_went_through_it_meanwhile_do_not_count() -> None:
    made, feeding = fed(1, by_cache=True)
    feeding.accepted(1, 0.0)
    made.steps.add(10, 4, 4, frame(4))  # and two of them will be taken back
    feeding.took(1, 14, 0.0)
    assert (feeding.fed, feeding.is_fed) == (10, True)


@pytest.mark.parametrize(("index", "positions"), [(1, 11), (1, 1 << 20), (0, 5), (2, 5), (63, 5)])
def test_what_it_can_not_have_is_a_breach(index: int, positions: int) -> None:
    _, feeding = fed(1, by_cache=True)
    feeding.accepted(1, 0.0)
    with pytest.raises(RemoteError):
        feeding.took(index, positions, 0.0)


def handed_over(place: int = 1) -> Handovers:
    """A handover that has begun."""
    made, directory = course(), Directory(spares(SPARE, OTHER))
    handovers = Handovers(made, directory, StandIns(made, directory))
    handovers.is_leaving(PATH[place], 10, 1000)
    assert opens(handovers.tick((), 0.0))
    return handovers


STRANGER = PeerId("12D3KooWStranger")


@pytest.mark.parametrize(
    ("sender", "message"),
    [
        (STRANGER, Accept(SESSION, 1, 1)),
        (SECOND, Accept(SESSION, 1, 1)),
        (SPARE, Accept(SESSION, 1, 0)),
        (SPARE, Accept(SESSION, 1, 63)),
        (STRANGER, Refuse(SESSION, 1, 1, "no")),
        (STRANGER, Failed(SESSION, 1, 1, 0, "no")),
        (STRANGER, Credit(SESSION, 1, 0, 0)),
        (SPARE, Credit(SESSION, 1, 2, 0)),
        (STRANGER, Fed(SESSION, 1, 1, 5)),
        (FIRST, Fed(SESSION, 1, 1, 5)),
        (SPARE, Fed(SESSION, 1, 0, 5)),
        (SPARE, Fed(SESSION, 1, 1, 1 << 20)),
        (THIRD, Leaving(SESSION, 1, 1, 0, 0)),
    ],
)
def test_breaches_are_the_senders(sender: PeerId, message: Accept) -> None:
    handovers = handed_over()
    feeding = handovers.under(1)
    assert feeding is not None
    with pytest.raises(RemoteError):
        handovers.receive(feeding, sender, message, 0.1)
    assert handovers.under(1) is feeding  # and it goes on


def test_credit_of_a_first_hop_to_be_counts_for_what_it_was_sent() -> None:
    handovers = handed_over(0)
    feeding = handovers.under(1)
    assert feeding is not None
    with pytest.raises(RemoteError):
        handovers.receive(feeding, SPARE, Credit(SESSION, 1, 0, 1), 0.1)


@pytest.mark.parametrize(
    ("sender", "message"),
    [
        (SPARE, Refuse(SESSION, 1, 1, "no room")),
        (SPARE, Leaving(SESSION, 1, 1, 0, 0)),
        (SPARE, Failed(SESSION, 1, 1, 0, "the cache does not fit")),
        (SECOND, Failed(SESSION, 1, 1, 0, "the cache can't be handed over")),
    ],
)
def test_what_goes_wrong_ends_it_and_it_is_tried_again(sender: PeerId, message: Accept) -> None:
    handovers = handed_over()
    feeding = handovers.under(1)
    assert feeding is not None
    handovers.receive(feeding, sender, message, 0.1)
    assert handovers.under(1) is None
    [(peer, again)] = opens(handovers.tick((), 3.0))
    is_spared = isinstance(message, Failed)  # it may well be the donor's fault
    assert peer == (SPARE if is_spared else OTHER)
    assert again.attempt == 2
    assert again.donor is None  # by frames this time


@pytest.mark.parametrize(("place", "bystander"), [(1, FIRST), (1, THIRD), (0, SECOND), (0, THIRD)])
def test_who_neither_feeds_nor_is_fed_does_not_end_it(place: int, bystander: PeerId) -> None:
    handovers = handed_over(place)
    feeding = handovers.under(1)
    assert feeding is not None
    assert handovers.receive(feeding, bystander, Failed(SESSION, 1, 1, 0, "no"), 0.1) == []
    assert handovers.under(1) is feeding


def test_who_sends_the_frames_can_end_it() -> None:
    _, feeding = fed(1, by_cache=False)
    who = [one for one in (FIRST, SECOND, THIRD, SPARE, OTHER) if feeding.concerns(one)]
    assert who == [FIRST, SPARE]
    _, feeding = fed(0, by_cache=False)  # the owner does
    who = [one for one in (FIRST, SECOND, THIRD, SPARE, OTHER) if feeding.concerns(one)]
    assert who == [SPARE]


# -- steps that are taken back while others hold them -------------------------------------------


def test_steps_taken_back_in_the_middle_of_a_handover_are_replayed() -> None:
    company = begun()
    company.held = after_two_parts()
    company.drain(SECOND)
    company.tick(0.2)
    company.take_back(100)
    company.say(3)
    assert [event.is_planned for event in reroutes(company)] == [True]
    company.check()


def test_what_a_stand_in_said_before_steps_were_taken_back_is_out_of_date() -> None:
    company = begun()
    company.held = lambda letter: isinstance(letter[2], Fed)
    company.drain(SECOND)
    company.tick(0.2)
    company.take_back(100)
    company.say(3)
    company.held = lambda _letter: False
    company.letters.extend(company.kept)
    company.settle()
    company.say(3)
    assert [event.is_planned for event in reroutes(company)] == [True]
    company.check()


def test_a_donor_that_refuses_is_gone_round_at_once() -> None:
    company = begun()
    company.held = lambda letter: isinstance(letter[2], Feed) and letter[2].cache
    company.drain(SECOND)
    company.tick(0.2)
    [(_, donor, asked, _)] = company.kept
    assert isinstance(asked, Feed)
    refusal = Failed(asked.session, asked.attempt, 1, 0, "this cache can't be handed over")
    company.deliver((donor, OWNER, refusal, b""))
    company.tick(0.2)  # much less than the pause between other tries
    [event] = reroutes(company)
    assert event.is_planned
    company.say(3)
    company.check()
