"""What hops say of their pace: who is named the cause, and how little a lie can do."""

from __future__ import annotations

import pytest

from gennode.node.sessions.paces import Paces
from gennode.node.sessions.patience import MIN_PATIENCE_S, P99_FACTOR
from gennode.wire.ids import Hop, PeerId
from gennode.wire.messages import Pong, Progress
from tests.node.conftest import FIRST, PATH, SECOND, SESSION, SPARE, THIRD


def told(
    paces: Paces, token_s: dict[PeerId, float], ping_s: dict[PeerId, float] | None = None
) -> None:
    for hop in PATH:
        progress = (Progress(hop.span.start, 0, False, token_s.get(hop.peer, 0.0)),)
        paces.heard(hop.peer, Pong(SESSION, 0, progress), (ping_s or {}).get(hop.peer, 0.01))


def test_the_hop_that_says_that_it_slowed_down_is_the_cause() -> None:
    paces = Paces(PATH)
    told(paces, {FIRST: 0.1, SECOND: 0.1, THIRD: 0.1})
    told(paces, {FIRST: 0.11, SECOND: 0.9, THIRD: 0.1})
    assert paces.cause(0.9) == PATH[1]


def test_where_no_hop_says_so_the_one_that_pings_take_longer_to_is() -> None:
    paces = Paces(PATH)
    told(paces, {FIRST: 0.1, SECOND: 0.1, THIRD: 0.1})
    told(paces, {FIRST: 0.2, SECOND: 0.1, THIRD: 0.1}, {THIRD: 0.4})
    assert paces.cause(0.9) == PATH[2]


def test_nobody_is_the_cause_of_what_nothing_shows() -> None:
    paces = Paces(PATH)
    told(paces, {FIRST: 0.1, SECOND: 0.1, THIRD: 0.1})
    told(paces, {FIRST: 0.1, SECOND: 0.1, THIRD: 0.1}, {THIRD: 0.02})
    assert paces.cause(0.9) is None


@pytest.mark.parametrize("lie_s", [0.0, 1e-9, 1e9])
def test_a_liar_can_name_nobody_but_itself(lie_s: float) -> None:
    paces = Paces(PATH)
    told(paces, {FIRST: 0.1, SECOND: 0.1, THIRD: 0.1})
    told(paces, {FIRST: 0.1, SECOND: lie_s, THIRD: 0.1})
    assert paces.cause(0.5) in (None, PATH[1])


def test_what_others_say_of_a_hop_is_not_heard() -> None:
    paces = Paces(PATH)
    lie = Pong(SESSION, 0, tuple(Progress(hop.span.start, 0, False, 50.0) for hop in PATH))
    paces.heard(SPARE, lie, None)
    paces.heard(FIRST, lie, None)
    assert [paces.limit_s(hop, 1) for hop in PATH[1:]] == [None, None]


def test_a_hop_may_take_a_few_times_what_it_usually_does() -> None:
    paces = Paces(PATH)
    assert paces.limit_s(PATH[0], 1) is None
    told(paces, {FIRST: 0.1, SECOND: 1.0})
    assert paces.limit_s(PATH[0], 1) == MIN_PATIENCE_S
    assert paces.limit_s(PATH[1], 1) == P99_FACTOR
    assert paces.limit_s(PATH[0], 100) == pytest.approx(P99_FACTOR * 10)


def test_other_hops_begin_anew() -> None:
    paces = Paces(PATH)
    told(paces, {FIRST: 0.1, SECOND: 1.0})
    other = Hop(SPARE, PATH[1].span)
    paces.follow((PATH[0], other, PATH[2]))
    assert paces.limit_s(other, 1) is None
    assert paces.limit_s(PATH[0], 1) == MIN_PATIENCE_S
