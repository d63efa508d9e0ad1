"""Broken paths are mended at the boundaries that they had, as long as anybody can."""

from __future__ import annotations

from gennode.node.sessions.repair import mend
from gennode.wire.ids import Hop, PeerId, Span
from tests.node.conftest import FIRST, LAYERS, OWNER, PATH, SECOND, SPARE, THIRD
from tests.node.sessions.scouts import nobody, spare

NOBODY: dict[Hop, tuple[Hop, ...]] = {}


def test_neighbours_that_die_at_once_keep_their_boundary() -> None:
    lost = frozenset({SECOND, THIRD})
    mended = mend(PATH, OWNER, lost, lost, spare, NOBODY)
    assert mended == (PATH[0], Hop(SPARE, PATH[1].span), Hop(SPARE, PATH[2].span))


def test_layers_are_cut_otherwise_only_where_nobody_has_a_hops_as_a_whole() -> None:
    lost = frozenset({SECOND})

    def halves(span: Span, _entry: PeerId, _avoid: frozenset[PeerId]) -> tuple[Hop, ...]:
        middle = span.start + 1
        return (Hop(SPARE, Span(span.start, middle)), Hop(FIRST, Span(middle, span.end)))

    mended = mend(PATH, OWNER, lost, lost, halves, NOBODY)
    assert isinstance(mended, tuple)
    assert [hop.peer for hop in mended] == [FIRST, SPARE, FIRST, THIRD]


def test_another_way_over_all_layers_is_the_last_resort() -> None:
    lost = frozenset({SECOND})

    def whole(span: Span, _entry: PeerId, _avoid: frozenset[PeerId]) -> tuple[Hop, ...] | str:
        return (Hop(SPARE, span),) if span == Span(0, LAYERS) else "nobody has these alone"

    assert mend(PATH, OWNER, lost, lost, whole, NOBODY) == (Hop(SPARE, Span(0, LAYERS)),)
    assert isinstance(mend(PATH, OWNER, lost, lost, nobody, NOBODY), str)


def test_stand_ins_come_first_if_they_live() -> None:
    stands_in = Hop(PeerId("ready"), PATH[1].span)
    lost = frozenset({SECOND})
    mended = mend(PATH, OWNER, lost, lost, spare, {PATH[1]: (stands_in,)})
    assert mended == (PATH[0], stands_in, PATH[2])
    dead = frozenset({SECOND, stands_in.peer})
    mended = mend(PATH, OWNER, lost, dead, spare, {PATH[1]: (stands_in,)})
    assert mended == (PATH[0], Hop(SPARE, PATH[1].span), PATH[2])
