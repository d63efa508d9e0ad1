"""One attempt after the other: wherever a repair falls into another, no token changes."""

from __future__ import annotations

import pytest

from gennode.node.sessions.session import AVOID_S
from gennode.wire.ids import PeerId
from gennode.wire.messages import Accept
from tests.node.conftest import FIRST, SECOND, SPARE, THIRD
from tests.node.sessions.company import OTHER, Company, reroutes
from tests.node.sessions.crowd import crowd
from tests.node.sessions.scouts import Directory, nobody, spares

EVERYBODY = (SPARE, OTHER, FIRST, SECOND, THIRD)
MOVES = 60  # more than a whole repair needs


@pytest.mark.parametrize("first", [FIRST, SECOND, THIRD])
@pytest.mark.parametrize("second", [FIRST, SECOND, THIRD, SPARE])
@pytest.mark.parametrize("is_dead", [True, False])
def test_a_second_repair_anywhere_in_the_first_changes_no_token(
    first: PeerId, second: PeerId, is_dead: bool
) -> None:
    for moves in range(MOVES):
        company = crowd(moves, *EVERYBODY)
        company.go_on(moves % 7)
        company.miss(first)
        company.go_on(moves)
        company.kill(second) if is_dead else company.miss(second)
        company.ends_well()


def test_who_accepts_an_attempt_that_was_given_up_resumes_nothing() -> None:
    company = Company(directory=Directory(spares(SPARE)))
    company.submit(20)
    company.settle()
    company.held = lambda letter: isinstance(letter[2], Accept)
    company.lose(SECOND)
    company.lose(THIRD)  # nobody is there for it, as long as its replacement is
    company.directory.find = nobody
    company.lose(FIRST)
    company.held = lambda _letter: False
    company.letters.extend(company.kept)
    company.settle()
    assert not reroutes(company)
    company.directory.find = spares(OTHER)
    company.tick(1.0)
    company.say(2)
    company.check()


def test_a_hop_that_comes_back_with_what_was_taken_back_meanwhile_is_rebuilt_whole() -> None:
    company = crowd(1, SPARE)
    company.settle()
    company.deaf.add(SECOND)
    company.miss(SECOND)
    company.settle()
    company.take_back(3)
    company.say(2)  # other tokens than those of which the second hop still knows
    company.directory.find = spares(SECOND)
    company.kill(SPARE)
    company.still.add((FIRST, SECOND))
    company.tick(AVOID_S + 1, step_s=1.0)
    assert [hop.peer for hop in company.machine.path] == [FIRST, SECOND, THIRD]
    company.directory.find = spares(OTHER)
    company.miss(FIRST)  # nothing of its replay has come to the second hop
    company.settle()
    company.ends_well()
