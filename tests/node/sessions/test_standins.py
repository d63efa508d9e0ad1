"""Stand-ins are chosen beforehand, known to the hop above, and taken first when a hop dies."""

from __future__ import annotations

from gennode.node.actions import Rerouted, Send
from gennode.node.sessions.course import Course
from gennode.node.sessions.standins import REFRESH_S, SPURN_S, StandIns
from gennode.wire.ids import Hop, PeerId, Span
from gennode.wire.messages import Acquaint, Message, Open, Ping
from tests.node.conftest import FIRST, OWNER, PATH, SECOND, SESSION, SPARE, THIRD, peer
from tests.node.sessions.company import OTHER, Company
from tests.node.sessions.scouts import TERMS, Directory, nobody, spares

LAST = peer(10)


def looked(standins: StandIns, now_s: float = 0.0) -> list[tuple[PeerId, Message]]:
    """One look at each hop: what is sent."""
    ticks = [standins.tick((), now_s) for _ in range(4)]
    return [(one.peer, one.message) for tick in ticks for one in tick if isinstance(one, Send)]


def three(directory: Directory | None = None) -> StandIns:
    directory = directory or Directory(spares(SPARE, OTHER, LAST))
    return StandIns(Course(TERMS, PATH), directory)


def test_each_hop_has_a_stand_in_of_its_own() -> None:
    standins = three()
    looked(standins)
    chosen = [standins.of(hop) for hop in PATH]
    assert [one[0].span for one in chosen] == [hop.span for hop in PATH]
    assert {one[0].peer for one in chosen} == {SPARE, OTHER, LAST}


def test_one_stands_in_for_all_where_there_is_no_other() -> None:
    standins = three(Directory(spares(SPARE)))
    looked(standins)
    assert [standins.of(hop)[0].peer for hop in PATH] == [SPARE] * 3


def test_the_hop_above_is_told_and_a_link_is_made() -> None:
    standins = three()
    sent = looked(standins)
    assert {peer for peer, m in sent if isinstance(m, Ping)} == {SPARE, OTHER, LAST}
    told = {peer: m for peer, m in sent if isinstance(m, Acquaint)}
    assert told == {
        FIRST: Acquaint(SESSION, 0, standins.of(PATH[1])[0].peer),
        SECOND: Acquaint(SESSION, 2, standins.of(PATH[2])[0].peer),
    }


def test_stand_ins_are_looked_after_now_and_then() -> None:
    directory = Directory(spares(SPARE, OTHER, LAST))
    standins = three(directory)
    looked(standins)
    searches = directory.searches
    looked(standins, REFRESH_S / 2)
    sent = looked(standins, REFRESH_S + 1)
    assert directory.searches == searches  # they are still there
    assert [type(message) for _, message in sent] == [Ping] * 3
    gone = standins.of(PATH[1])[0].peer
    directory.gone.add(gone)
    looked(standins, 3 * REFRESH_S)
    assert standins.of(PATH[1])[0].peer != gone


def test_nobody_is_searched_for_all_the_time() -> None:
    directory = Directory(nobody)
    standins = three(directory)
    for tick in range(200):
        standins.tick((), tick / 20)
    assert directory.searches == len(PATH)


def test_who_failed_is_not_asked_again_soon() -> None:
    standins = three(Directory(spares(SPARE, OTHER)))
    looked(standins)
    hop = next(hop for hop in PATH if standins.of(hop)[0].peer == SPARE)
    standins.spurn(SPARE, 1.0)
    assert standins.of(hop) == ()
    looked(standins, 2.0)
    assert standins.of(hop)[0].peer == OTHER
    assert standins.choose(hop, (OTHER,), 1.0 + SPURN_S + 1)[0].peer == SPARE


def test_two_may_stand_in_for_one() -> None:
    def halves(span: Span, _entry: PeerId, avoid: frozenset[PeerId]) -> tuple[Hop, ...] | str:
        middle = span.start + 1
        if avoid & {SPARE, OTHER}:
            return "nobody"
        return Hop(SPARE, Span(span.start, middle)), Hop(OTHER, Span(middle, span.end))

    company = Company(directory=Directory(halves))
    company.submit(40)
    company.settle()
    company.tick(0.5)
    company.drain(SECOND)
    company.tick(0.2)
    company.say(3)
    company.check()
    assert [hop.peer for hop in company.machine.path] == [FIRST, SPARE, OTHER, THIRD]
    [event] = [one for one in company.events if isinstance(one, Rerouted)]
    assert event.is_planned


def test_they_are_taken_first_when_two_hops_die_at_once() -> None:
    company = Company()
    company.submit(40)
    company.settle()
    company.say(5)
    company.tick(0.5)
    chosen = {PATH[at]: company.machine.standins[at] for at in (1, 2)}
    company.directory.find = nobody  # nobody is searched for any more
    company.dead |= {SECOND, THIRD}
    company.lose(SECOND)
    company.lose(THIRD)
    company.say(3)
    company.check()
    assert company.machine.path == (PATH[0], *(chosen[PATH[1]] or ()), *(chosen[PATH[2]] or ()))


def test_one_that_is_gone_is_not_taken() -> None:
    company = Company()
    company.submit(40)
    company.settle()
    company.tick(0.5)
    [chosen] = company.machine.standins[1] or ()
    company.directory.gone.add(chosen.peer)
    company.lose(SECOND)
    company.say(3)
    company.check()
    assert company.machine.path[1].peer == ({SPARE, OTHER} - {chosen.peer}).pop()


def test_the_first_token_waits_for_no_search() -> None:
    company = Company()
    company.submit(40)
    company.settle()
    assert company.answers
    assert company.directory.searches == 0
    assert company.machine.standins == (None, None, None)
    company.tick(0.5)
    assert None not in company.machine.standins


def test_stand_ins_get_no_seat_before_they_are_needed() -> None:
    company = Company()
    company.say(5)
    company.tick(30.0)
    assert {letter[1] for letter in company.heard(Open)} == {FIRST, SECOND, THIRD}
    assert company.hops[SPARE].sessions == company.hops[OTHER].sessions == 0
    assert OWNER not in {letter[1] for letter in company.heard(Acquaint)}
