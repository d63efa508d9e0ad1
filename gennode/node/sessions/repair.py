"""A broken path in, a whole one out: pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gennode.wire.ids import Hop, PeerId, Span
from gennode.wire.messages import MAX_ROUTE_HOPS

FindHops = Callable[[Span, PeerId, frozenset[PeerId]], tuple[Hop, ...] | str]
"""(layers to cover, the hop before, peers to avoid) → hops, or in words why there are none."""


_Piece = tuple[Span | None, Hop | None]
"""Layers for which hops have to be found, and then a hop that stays."""


def mend(
    path: tuple[Hop, ...],
    owner: PeerId,
    lost: frozenset[PeerId],
    avoid: frozenset[PeerId],
    find_hops: FindHops,
    standins: Mapping[Hop, tuple[Hop, ...]],
) -> tuple[Hop, ...] | str:
    """The path with the hops of lost peers replaced: only those if that can be, else all.

    `standins`: who is ready to take a hop's place, and is taken first. Returns in words why
    there is none if some layers have nobody. A lost peer that need not be avoided any longer may
    come back, if `find_hops` still knows it.

    States are rounded from hop to hop, so the same tokens need the same boundaries: another way
    to cut the layers is taken only if nobody has a lost hop's as a whole.
    """
    whole = Span(0, path[-1].span.end)
    stood_in: list[Hop] = []
    for hop in path:
        takers = standins.get(hop, ()) if hop.peer in lost else ()
        is_free = all(taker.peer not in lost | avoid for taker in takers)
        stood_in += takers if takers and is_free else (hop,)
    for gaps in (_each, _runs):
        for before in (tuple(stood_in), path):
            mended = _patch(gaps(before, lost | avoid), owner, avoid, find_hops)
            if mended and (gaps is _runs or _ends(mended) == _ends(path)):
                return mended
    return find_hops(whole, owner, avoid)


def _ends(path: tuple[Hop, ...]) -> list[int]:
    return [hop.span.end for hop in path]


def _patch(
    pieces: list[_Piece], owner: PeerId, avoid: frozenset[PeerId], find_hops: FindHops
) -> tuple[Hop, ...] | None:
    mended: list[Hop] = []
    for gap, hop in pieces:
        if gap is not None:
            found = find_hops(gap, mended[-1].peer if mended else owner, avoid)
            if isinstance(found, str):
                return None
            mended += found
        if hop is not None:
            mended.append(hop)
    # a hop is known by its peer and first layer: two alike could not be told apart
    alike = len({(hop.peer, hop.span.start) for hop in mended}) < len(mended)
    return None if alike or len(mended) > MAX_ROUTE_HOPS else tuple(mended)


def _each(path: tuple[Hop, ...], lost: frozenset[PeerId]) -> list[_Piece]:
    """Each hop, or the layers that it had if it is lost."""
    return [(hop.span, None) if hop.peer in lost else (None, hop) for hop in path]


def _runs(path: tuple[Hop, ...], lost: frozenset[PeerId]) -> list[_Piece]:
    """Each surviving hop with the run of lost layers right before it; the last hop is None."""
    pieces: list[_Piece] = []
    gap: Span | None = None
    for hop in path:
        if hop.peer in lost:
            gap = Span(gap.start if gap else hop.span.start, hop.span.end)
        else:
            pieces.append((gap, hop))
            gap = None
    return [*pieces, (gap, None)]
