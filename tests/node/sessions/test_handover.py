"""Hops that are let go while they work: no token changes, and all that fails costs nothing."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from gennode.node.actions import Opened
from gennode.node.sessions.handover import (
    ACCEPT_LIMIT_S,
    PAUSE_S,
    REPLICA_POSITIONS,
    STALL_S,
    TRIES,
)
from gennode.wire.ids import PeerId
from gennode.wire.messages import Accept, CachePart, Close, Failed, Fed, Feed, Leaving, Open, Step
from tests.node.conftest import FIRST, OWNER, PATH, SECOND, SESSION, SPARE, THIRD
from tests.node.sessions.company import (
    OTHER,
    Company,
    Letter,
    after_two_parts,
    begun,
    reroutes,
    stand_in,
)
from tests.node.sessions.scouts import TERMS, Directory, nobody, spares


@pytest.mark.parametrize("leaver", [FIRST, SECOND, THIRD])
@pytest.mark.parametrize("is_quick", [True, False])
def test_a_leaver_is_replaced_while_it_works(leaver: str, is_quick: bool) -> None:
    company = begun(directory=Directory(spares(SPARE, OTHER), is_quick=is_quick))
    place = [hop.peer for hop in PATH].index(PeerId(leaver))
    taker = stand_in(company, place)
    company.drain(PeerId(leaver))
    company.tick(0.2)
    company.say(5)
    company.check()
    [event] = reroutes(company)
    assert event.is_planned
    assert (event.lost, event.reason) == ((leaver,), "is leaving")
    assert company.machine.path[place].peer == taker
    assert company.hops[PeerId(leaver)].sessions == 0  # it may go
    assert bool(company.heard(CachePart)) == is_quick


def test_a_cache_that_is_handed_over_is_computed_by_nobody_again() -> None:
    company = begun()
    before = {peer: engine.rows for peer, engine in company.engines.items()}
    taker = stand_in(company, 1)
    company.drain(SECOND)
    company.tick(0.2)
    assert company.engines[taker].rows == company.end  # taken in, as toys do it
    for peer in (FIRST, THIRD):
        assert company.engines[peer].rows == before[peer]


def test_the_session_goes_on_while_a_stand_in_is_fed() -> None:
    company = begun()
    company.held = lambda letter: isinstance(letter[2], CachePart)
    company.drain(SECOND)
    company.tick(0.2)
    company.say(20)
    assert company.heard(Feed)
    assert reroutes(company) == []
    company.held = lambda _letter: False
    company.letters.extend(company.kept)
    company.settle()
    company.say(5)
    assert len(reroutes(company)) == 1
    company.check()


def test_the_change_waits_for_a_moment_without_a_step_under_way() -> None:
    company = begun()
    company.held = lambda letter: letter[1] == OWNER and isinstance(letter[2], Step)
    company.submit()
    company.settle()
    company.drain(SECOND)
    company.tick(0.2)
    assert reroutes(company) == []
    company.held = lambda _letter: False
    company.letters.extend(company.kept)
    company.settle()
    assert len(reroutes(company)) == 1
    company.say(3)
    company.check()


def test_the_change_does_not_wait_for_ever() -> None:
    company = begun()
    company.held = lambda letter: letter[1] == OWNER and isinstance(letter[2], Step)
    company.submit()
    company.submit()
    company.settle()
    company.drain(SECOND)
    company.tick(0.8)
    assert reroutes(company) == []
    company.tick(0.6)
    assert len(reroutes(company)) == 1
    company.held = lambda _letter: False
    company.letters.extend(company.kept)  # late answers of the attempt before
    company.settle()
    company.say(3)
    company.check()


def test_a_donor_that_hands_nothing_over_is_gone_round() -> None:
    company = begun()
    company.held = lambda letter: isinstance(letter[2], CachePart)
    company.drain(SECOND)
    company.tick(STALL_S + 1)
    company.say(3)
    company.check()
    [event] = reroutes(company)
    assert event.is_planned
    feeds = [letter[2].cache for letter in company.heard(Feed) if isinstance(letter[2], Feed)]
    assert feeds == [True, False]  # its cache, then the frames of the hop above


def test_a_stand_in_that_does_not_answer_is_replaced_in_time() -> None:
    company = begun()
    taker = stand_in(company, 1)
    company.held = lambda letter: letter[0] == taker and isinstance(letter[2], Accept)
    company.drain(SECOND)
    company.tick(ACCEPT_LIMIT_S + PAUSE_S + 1)
    company.say(3)
    company.check()
    [event] = reroutes(company)
    assert event.after[1].peer == ({SPARE, OTHER} - {taker}).pop()


def test_a_cache_that_does_not_fit_is_its_donors_fault() -> None:
    company = begun()

    def spoil(letter: Letter) -> bool:
        """The first part says that it begins elsewhere."""
        source, target, message, payload = letter
        if not isinstance(message, CachePart) or message.start:
            return False
        wrong = msgspec.structs.replace(message, start=message.start + 1, end=message.end + 1)
        company.deliver((source, target, wrong, payload))
        return True

    company.held = spoil
    taker = stand_in(company, 1)
    company.drain(SECOND)
    company.tick(4.0)
    company.say(3)
    company.check()
    [event] = reroutes(company)
    assert event.is_planned
    assert event.after[1].peer == taker  # it is not blamed


def test_two_hops_may_leave_at_once() -> None:
    company = begun()
    company.drain(SECOND)
    company.drain(THIRD)
    company.tick(3.0)
    company.say(3)
    company.check()
    assert [event.is_planned for event in reroutes(company)] == [True, True]
    assert {hop.peer for hop in company.machine.path} == {FIRST, SPARE, OTHER}


def test_a_leaver_that_nobody_can_replace_is_kept() -> None:
    company = begun(directory=Directory(nobody))
    company.drain(SECOND)
    company.tick(5.0)
    company.say(3)
    company.check()
    assert reroutes(company) == []
    assert company.directory.searches < 20  # about one for each time that it says so


def test_a_leaver_that_dies_too_soon_is_an_ordinary_repair_with_what_was_fed() -> None:
    company = begun()
    company.held = after_two_parts()
    company.drain(SECOND)
    company.tick(0.2)
    company.lose(SECOND)
    company.held = lambda _letter: False
    company.say(3)
    company.check()
    [event] = reroutes(company)
    assert not event.is_planned
    [asked] = [
        letter[2]
        for letter in company.heard(Open)
        if isinstance(letter[2], Open) and letter[2].replay_positions
    ]
    assert asked.replay_from == 64  # two parts of 32
    assert asked.replay_positions == 150


def test_another_hops_death_ends_a_handover_and_nothing_is_lost() -> None:
    company = begun()
    company.held = lambda letter: isinstance(letter[2], CachePart)
    company.drain(SECOND)
    company.tick(0.2)
    company.lose(THIRD)
    company.held = lambda _letter: False
    company.tick(4.0)
    company.say(3)
    company.check()
    assert {hop.peer for hop in company.machine.path} == {FIRST, SPARE, OTHER}


def test_a_stand_in_that_dies_is_replaced_by_another() -> None:
    company = begun()
    taker = stand_in(company, 1)
    company.dead.add(taker)
    company.drain(SECOND)
    company.tick(0.2)
    company.directory.gone.add(taker)
    company.lose(taker)
    company.tick(4.0)
    company.say(3)
    company.check()
    [event] = reroutes(company)
    assert event.is_planned
    assert event.after[1].peer == ({SPARE, OTHER} - {taker}).pop()


def test_who_cries_wolf_burns_no_attempts() -> None:
    company = begun()
    company.held = lambda letter: isinstance(letter[2], CachePart | Fed)  # none gets anywhere
    cry = Leaving(SESSION, 0, 1, 150, 1000)
    for _ in range(2000):
        company.act(OWNER, company.machine.receive(SECOND, cry, b"", company.now_s))
        company.tick(0.05)
    opens = [letter for letter in company.heard(Open) if letter[1] in (SPARE, OTHER)]
    assert len(opens) == TRIES
    assert reroutes(company) == []
    company.say(3)
    company.check()


def test_a_stand_in_that_says_too_much_loses_its_place_at_most() -> None:
    company = begun()
    company.held = lambda letter: isinstance(letter[2], CachePart | Fed)
    liar = stand_in(company, 1)
    company.drain(SECOND)
    company.tick(0.1)
    attempt = next(m.attempt for _, to, m, _ in company.log if to == liar and isinstance(m, Open))
    lie = Fed(SESSION, attempt, 1, company.end)
    company.act(OWNER, company.machine.receive(liar, lie, b"", company.now_s))
    company.held = lambda _letter: False
    company.settle()
    company.say(3)
    company.tick(2.0)
    company.say(3)
    company.check()
    planned, repair = reroutes(company)
    assert (planned.is_planned, repair.is_planned) == (True, False)
    assert repair.lost == (liar,)


def test_a_late_word_of_a_donor_that_was_let_go_blames_nobody() -> None:
    company = begun()
    company.drain(SECOND)
    company.tick(0.2)
    [attempt] = {m.attempt for _, _, m, _ in company.heard(CachePart) if isinstance(m, CachePart)}
    word = Failed(SESSION, attempt, 1, 0, "there is less of a cache than was computed")
    assert company.machine.receive(SECOND, word, b"", company.now_s) == []
    company.say(3)
    company.check()
    assert len(reroutes(company)) == 1


def test_closing_lets_stand_ins_go() -> None:
    company = begun()
    company.held = lambda letter: isinstance(letter[2], CachePart)
    taker = stand_in(company, 1)
    company.drain(SECOND)
    company.tick(0.1)
    company.act(OWNER, company.machine.close())
    company.settle()
    assert {letter[1] for letter in company.heard(Close)} == {FIRST, SECOND, THIRD, taker}
    assert all(hop.sessions == 0 for hop in company.hops.values())


def test_nobody_is_fed_without_need() -> None:
    company = begun()
    company.say(3 * REPLICA_POSITIONS)
    company.tick(12.0)
    assert company.heard(Feed) == []
    assert company.heard(Failed) == []
    assert company.events == [Opened(SESSION, PATH)]


# -- copies that are kept as the session goes on ------------------------------------------------


def replicated(**fields: object) -> Company:
    """A session whose caches are copied, and that has run for a while."""
    company = begun(terms=replace(TERMS, replicate=True), **fields)
    for _ in range(3 * REPLICA_POSITIONS):
        company.say(1)
        company.tick(0.05)
    return company


def rebuilt_rows(company: Company, died: str) -> int:
    """Rows that were computed again after a worker's death."""
    before = sum(engine.rows for engine in company.engines.values())
    company.lose(PeerId(died))
    company.settle()
    return sum(engine.rows for engine in company.engines.values()) - before


def test_copies_follow_the_session() -> None:
    company = replicated()
    feeds = [letter[2] for letter in company.heard(Feed) if isinstance(letter[2], Feed)]
    starts = [feed.from_position for feed in feeds if feed.layer == PATH[1].span.start]
    assert len(starts) == 3
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert all(feed.cache for feed in feeds)
    company.check()


def test_workers_that_give_no_caches_are_not_asked_again_and_again() -> None:
    company = replicated(gives_caches=False)
    assert len(company.heard(Failed)) == len(PATH)
    assert company.heard(CachePart) == []
    company.check()


def test_with_a_copy_only_the_tail_is_computed_again() -> None:
    company = replicated()
    bare = begun()
    bare.say(3 * REPLICA_POSITIONS)
    assert rebuilt_rows(bare, SECOND) >= bare.end
    assert rebuilt_rows(company, SECOND) < 2 * REPLICA_POSITIONS
    for one in (company, bare):
        one.say(3)
        one.check()


def test_a_leaver_with_a_copy_only_gives_the_tail() -> None:
    company = replicated()
    parts = len(company.heard(CachePart))
    company.drain(SECOND)
    company.tick(0.2)
    company.say(3)
    company.check()
    assert [event.is_planned for event in reroutes(company)] == [True]
    assert len(company.heard(CachePart)) - parts <= 2 * 2  # of 32 rows each


def test_copies_go_on_after_a_repair() -> None:
    company = replicated()
    company.lose(THIRD)
    for _ in range(2 * REPLICA_POSITIONS):
        company.say(1)
        company.tick(0.05)
    company.check()
    assert rebuilt_rows(company, SECOND) < 2 * REPLICA_POSITIONS
    company.say(3)
    company.check()


def test_a_copy_of_steps_that_were_taken_back_is_let_go() -> None:
    company = replicated()
    taker = stand_in(company, 1)
    company.take_back(100)
    company.say(1)
    assert taker in {letter[1] for letter in company.heard(Close)}
    company.say(10)
    company.lose(SECOND)
    company.say(3)
    company.check()


def test_steps_taken_back_in_the_middle_of_a_repair_are_not_taken_from_a_copy() -> None:
    company = replicated()
    company.held = lambda letter: isinstance(letter[2], Accept)
    company.lose(SECOND)
    company.take_back(100)
    company.submit()
    company.held = lambda _letter: False
    company.letters.extend(company.kept)
    company.settle()
    company.say(3)
    company.check()
