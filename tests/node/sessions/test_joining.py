"""Paths that are joined: who replays what to whom, with real hops."""

from __future__ import annotations

import msgspec
import pytest

from gennode.errors import RemoteError
from gennode.node.actions import Rerouted
from gennode.node.sessions.course import Course
from gennode.node.sessions.joining import Joining
from gennode.wire.ids import PeerId
from gennode.wire.messages import Accept, Fed, Open, Refuse, Step
from tests.node.conftest import FIRST, OWNER, PATH, SECOND, SESSION, SPARE, THIRD
from tests.node.sessions.company import OTHER, Company, Letter
from tests.node.sessions.scouts import TERMS


def begun(**fields: object) -> Company:
    company = Company(**fields)  # type: ignore[arg-type]
    company.submit(100)
    company.submit(40)
    company.settle()
    company.say(10)
    return company


def replayed_by(company: Company) -> list[PeerId]:
    """Who sent frames that only rebuild, each once."""
    sent = [(source, m) for source, _, m, _ in company.log if isinstance(m, Step) and m.rebuild]
    return list(dict.fromkeys(source for source, _ in sent))


def test_the_hop_above_replays() -> None:
    company = begun()
    company.lose(SECOND)
    assert replayed_by(company) == [FIRST]
    company.say(3)
    company.check()


def test_where_the_hop_above_has_no_frames_the_one_further_up_replays() -> None:
    company = begun(scarce=frozenset({SECOND}))
    company.lose(THIRD)
    assert [letter[0] for letter in company.heard(Refuse)] == [SECOND]
    assert replayed_by(company) == [FIRST, SECOND]  # the second passes on what it computes
    company.say(3)
    company.check()
    [event] = [one for one in company.events if isinstance(one, Rerouted)]
    assert event.lost == (THIRD,)


def test_where_nobody_has_frames_the_owner_replays() -> None:
    company = begun(scarce=frozenset({FIRST, SECOND}))
    company.lose(THIRD)
    assert [letter[0] for letter in company.heard(Refuse)] == [SECOND, FIRST]
    assert replayed_by(company) == [OWNER, FIRST, SECOND]
    company.say(3)
    company.check()


def test_a_survivor_that_lost_what_it_had_is_new() -> None:
    company = begun()
    company.hops[FIRST] = Company().hops[FIRST]  # its process was begun anew in between
    company.lose(THIRD)
    accepts = [letter[2] for letter in company.heard(Accept) if letter[0] == FIRST]
    assert [a.positions for a in accepts if isinstance(a, Accept)][-1] == 0
    assert OWNER in replayed_by(company)
    company.say(3)
    company.check()


def test_a_hop_that_dies_behind_with_a_replay_costs_no_token() -> None:
    company = begun()
    company.held = lambda letter: isinstance(letter[2], Step) and letter[2].rebuild
    company.lose(SECOND)  # who comes next is not rebuilt yet
    company.lose(THIRD)
    company.held = lambda _letter: False
    company.letters.extend(company.kept)
    company.say(3)
    company.tick(1.0)
    company.check()


def test_a_first_hop_that_claims_too_much_is_blamed_itself() -> None:
    company = begun()

    def claims(letter: Letter) -> bool:
        """Of nothing it says that it has everything."""
        source, target, message, payload = letter
        if not isinstance(message, Accept) or source not in (SPARE, OTHER) or message.positions:
            return False
        boast = msgspec.structs.replace(message, positions=1 << 20)
        company.deliver((source, target, boast, payload))
        return True

    company.held = claims
    company.lose(SECOND)
    company.held = lambda _letter: False
    company.say(3)
    company.check()
    assert replayed_by(company) == [FIRST]  # nobody fed it, so that its word counts for nothing


def test_what_a_hop_says_of_a_replay_has_to_be_possible() -> None:
    course = Course(TERMS, PATH)
    joining = Joining(course)
    course.steps.add(0, 10, 1, b"")
    joining.begin(carries_on=True)
    assert joining.fed(Fed(SESSION, 0, 2, 5))
    assert not joining.fed(Fed(SESSION, 0, 2, 5))  # no news, so that it buys no time
    assert not joining.fed(Fed(SESSION, 0, 2, 4))
    for lie in (Fed(SESSION, 0, 1, 6), Fed(SESSION, 0, 2, 11)):
        with pytest.raises(RemoteError):
            joining.fed(lie)


def test_only_the_source_of_a_replay_may_lack_its_frames() -> None:
    company = begun()
    company.held = lambda letter: isinstance(letter[2], Accept) and letter[0] != SPARE
    company.lose(SECOND)
    refusal = Refuse(SESSION, 1, 2, "the frames for a replay are no longer retained")
    company.act(OWNER, company.machine.receive(THIRD, refusal, b"", company.now_s))
    company.held = lambda _letter: False
    company.settle()
    assert THIRD not in {hop.peer for hop in company.machine.path}
    company.say(3)
    company.check()


def test_who_refuses_twice_is_replaced() -> None:
    company = begun()

    def refuses(letter: Letter) -> bool:
        source, target, message, _ = letter
        if target != FIRST or not isinstance(message, Open):
            return False
        refusal = Refuse(SESSION, message.attempt, message.index, "no frames, no more seats")
        company.letters.append((FIRST, source, refusal, b""))
        return True

    company.held = refuses
    company.lose(SECOND)
    company.settle()
    assert FIRST not in {hop.peer for hop in company.machine.path}
    company.say(3)
    company.check()
