"""Between plans: where one newcomer helps most, and which one peer moves to close a gap.

One peer moves where one is enough; `replan.py` tells when a whole pool is better planned anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from gennode.sharding.flow.flow import flow
from gennode.sharding.flow.worth import flowing
from gennode.sharding.predict import sessions_of, stage_s
from gennode.wire.ids import PeerId, Span
from gennode.wire.snapshot import Candidate, Demand, Snapshot

# Of a step's limit, how far away a host may be and still count half: a route of some eight hops
# spends all of its time on the way then.
NEAR_SHARE = 1 / 8

# Where all layers have hosts, and no more hosts than this, a newcomer's windows are judged by what
# would flow: the neediest one and some others. It takes milliseconds for each.
MAX_JUDGED_HOSTS, JUDGED_WINDOWS = 16, 5

# Who takes longer to load comes after all who close less of a gap, but sooner: prompts wait.
LONG_LOAD_S = 30.0

# Gaps are closed one after the other, the first few of them now.
MAX_GAPS = 16

_Supply = npt.NDArray[np.float64]
_Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Move:
    """One peer goes over to another span, and why, in words."""

    peer: PeerId
    span: Span
    why: str


def place(snapshot: Snapshot, newcomer: Candidate) -> Span:
    """The span that a newcomer should load, given what all others hold; they stay.

    The window of its whole capacity that needs it most: first the one with most layers that
    nobody holds, then the one whose layers have the least supply, the weakest compared first. In
    a small pool that covers the model, some others are tried as well, and what flows decides.
    Supply is tokens per second that a layer's hosts could compute, and far hosts count for less
    the further they are: a route through both would spend its time on the way. This is the rule
    of Petals (block_selection.py) with distance in it, and without its restarts by chance. Ties
    go to the lowest start; but where nobody holds anything, several may come at the same
    moment, so each begins at a multiple of its width that a hash of its id draws.
    """
    demand = snapshot.demand
    width = min(newcomer.capacity_layers, demand.layers)
    hosts = [one for one in hosts_of(snapshot) if one.peer != newcomer.peer]
    if width <= 0:
        return Span(0, 0)
    if not hosts:
        return _drawn_window(newcomer.peer, width, demand.layers)
    counts = _counts(hosts, demand.layers)
    supply = _supply(hosts, demand, newcomer)
    neediest = _neediest_window(counts, supply, width, Span(0, 0))
    if len(hosts) > MAX_JUDGED_HOSTS or width == demand.layers or not counts.all():
        return neediest
    held = [(one, one.held) for one in hosts]
    last = demand.layers - width
    starts = sorted({last * n // (JUDGED_WINDOWS - 1) for n in range(JUDGED_WINDOWS)})
    best, limit_s = flowing([*held, (newcomer, neediest)], demand, ())
    for span in (Span(start, start + width) for start in starts):
        rate = flow([*held, (newcomer, span)], demand, limit_s).rate_token_s
        if rate > best:
            best, neediest = rate, span
    return neediest


def least_hosted(layers: int, width: int, held: Iterable[Span]) -> Span:
    """The window of `width` layers that fewest spans hold, compared from the least held on: for
    where nothing is known of those who hold them."""
    counts = np.zeros(layers, dtype=np.int64)
    for span in held:
        counts[span.start : span.end] += 1
    return _neediest_window(counts, counts.astype(np.float64), min(width, layers), Span(0, 0))


def next_move(
    snapshot: Snapshot,
    *,
    without: frozenset[PeerId] = frozenset(),
    beside: Iterable[Span] = (),
) -> Move | None:
    """The one move that is due because nobody holds some layers; None if none is, or can help.

    Whoever moves closes as much of the gaps as one peer can, and gives up no layer of which it
    holds the only copy. Among those that close as many layers the first is who gives up nothing
    at all, then who has loaded soonest, then who computes soonest, then the lowest id. All who
    know of the same peers name the same one. `without`: peers that were named and did not move.
    `beside`: what peers hold beside the one span that a snapshot tells of.
    """
    demand = snapshot.demand
    hosts = hosts_of(snapshot)
    counts = _counts(hosts, demand.layers)
    for span in beside:
        counts[span.start : span.end] += 1
    gaps = _runs(counts == 0)
    if not gaps:
        return None
    supply = _supply(hosts, demand, None)
    best: tuple[tuple[float, ...], PeerId, Span] | None = None
    for one in sorted(snapshot.peers, key=lambda one: one.peer):
        if one.peer in without:
            continue
        for span in _moves_of(one, gaps, counts, supply):
            key = (_move_key(one, span, counts, demand), one.peer, span)
            if key[0][1] < 0 and (best is None or key < best):
                best = key
    if best is None:
        return None
    _, peer, span = best
    return Move(peer, span, f"nobody holds layers {named(gaps)}")


def next_moves(
    snapshot: Snapshot,
    *,
    without: frozenset[PeerId] = frozenset(),
    beside: Iterable[Span] = (),
) -> tuple[Move, ...]:
    """The moves that close all gaps that can be closed, of different peers, one after the other.

    Each is the `next_move` of what is held once those before it are done. They can be made side
    by side, if nobody lets go of a layer before another really holds it.
    """
    moves: list[Move] = []
    beside = tuple(beside)
    while len(moves) < MAX_GAPS:
        moved = without | {move.peer for move in moves}
        move = next_move(snapshot, without=moved, beside=beside)
        if move is None:
            break
        moves.append(move)
        snapshot = after(snapshot, move)
    return tuple(moves)


def uncovered(snapshot: Snapshot) -> tuple[Span, ...]:
    """The layers that nobody holds, as maximal spans."""
    return tuple(_runs(_counts(hosts_of(snapshot), snapshot.demand.layers) == 0))


def named(spans: Sequence[Span]) -> str:
    """Spans in words, the first few of them."""
    return ", ".join(str(span) for span in spans[:MAX_GAPS])


def after(snapshot: Snapshot, move: Move) -> Snapshot:
    """What is held once a peer has moved."""
    peers = tuple(
        msgspec.structs.replace(one, held=move.span) if one.peer == move.peer else one
        for one in snapshot.peers
    )
    return msgspec.structs.replace(snapshot, peers=peers)


# -- supply -----------------------------------------------------------------------------------


def hosts_of(snapshot: Snapshot) -> list[Candidate]:
    """Who holds layers, by peer; spans that reach past the model's end are cut."""
    layers, hosts = snapshot.demand.layers, []
    for one in sorted(snapshot.peers, key=lambda one: one.peer):
        held = Span(one.held.start, min(one.held.end, layers))
        if held.layers > 0:
            hosts.append(one)
    return hosts


def _counts(hosts: Iterable[Candidate], layers: int) -> _Counts:
    """How many peers hold each layer."""
    counts = np.zeros(layers, dtype=np.int64)
    for one in hosts:
        counts[one.held.start : one.held.end] += 1
    return counts


def _supply(hosts: Sequence[Candidate], demand: Demand, near: Candidate | None) -> _Supply:
    """Tokens per second that each layer's hosts could compute, as they count from `near`."""
    supply = np.zeros(demand.layers)
    scale_s = demand.step_limit_s * NEAR_SHARE
    for one in hosts:
        weight = 1.0
        if near is not None:
            weight = scale_s / (scale_s + one.coordinate.rtt_s(near.coordinate))
        supply[one.held.start : one.held.end] += weight * stage_rate(one, one.held.layers, demand)
    return supply


def stage_rate(candidate: Candidate, layers: int, demand: Demand) -> float:
    """Tokens per second through one stage, if a token may spend its layers' part of the limit.

    The fluid limit of `predict.stage_s`, solved for the rate: a token waits for half a pass and
    then for its own. A stage that is too slow even when it is idle counts with the pace that it
    has, times the square of how far it misses, as in `predict.worth`. `layers` is at least 1.
    """
    alone_s = stage_s(candidate, layers, 0.0)
    fixed_s = layers * candidate.cost.fixed_s + candidate.pass_s
    token_s = layers * candidate.cost.token_s
    allowed_s = demand.step_limit_s * layers / demand.layers
    share = min(1.0, allowed_s / alone_s) if alone_s > 0 else 1.0
    pass_s = max(alone_s, allowed_s * 2 / 3)
    sessions = sessions_of(candidate, layers, demand)
    if pass_s <= 0 or sessions <= 0:
        return 0.0
    rate = sessions / pass_s
    if token_s > 0:
        rate = min(rate, max(1 - fixed_s / pass_s, token_s / pass_s) / token_s)
    return rate * share * share


def _drawn_window(peer: PeerId, width: int, layers: int) -> Span:
    windows = -(-layers // width)
    drawn = int.from_bytes(hashlib.sha256(peer.encode()).digest()[:8]) % windows
    start = min(drawn * width, layers - width)
    return Span(start, start + width)


def _neediest_window(counts: _Counts, supply: _Supply, width: int, within: Span) -> Span:
    """The window of `width` layers around `within` that lacks hosts most, then supply."""
    layers = len(counts)
    starts = range(layers - width + 1)
    if within.layers > 0:
        starts = range(max(0, within.end - width), min(within.start, layers - width) + 1)

    def need(start: int) -> tuple[int, list[float]]:
        window = slice(start, start + width)
        held = int(np.count_nonzero(counts[window]))
        return held, sorted(supply[window].tolist())

    start = min(starts, key=need)
    return Span(start, start + width)


# -- moves ------------------------------------------------------------------------------------


def _runs(where: npt.NDArray[np.bool_]) -> list[Span]:
    """Maximal runs of true values."""
    runs: list[Span] = []
    for layer in np.flatnonzero(where).tolist():
        if runs and runs[-1].end == layer:
            runs[-1] = Span(runs[-1].start, layer + 1)
        else:
            runs.append(Span(layer, layer + 1))
    return runs


def _moves_of(
    one: Candidate, gaps: Sequence[Span], counts: _Counts, supply: _Supply
) -> Iterator[Span]:
    """Spans that a peer could hold instead of what it holds, and that close a gap or part of it.

    What it holds alone stays in all of them.
    """
    layers = len(counts)
    held = Span(min(one.held.start, layers), min(one.held.end, layers))
    width = min(max(one.capacity_layers, held.layers), layers)
    if width <= 0:
        return
    last = [layer for layer in range(held.start, held.end) if counts[layer] == 1]
    alone = Span(last[0], last[-1] + 1) if last else Span(0, 0)
    for gap in gaps[:MAX_GAPS]:
        if held.layers > 0:
            yield from _towards(held, alone, gap, width, upwards=held.start <= gap.start)
        if not alone.layers:
            wanted = max(gap.layers, held.layers) if held.layers > 0 else width
            first = Span(gap.start, min(gap.end, gap.start + width))
            yield _neediest_window(counts, supply, min(width, wanted), first)


def _towards(held: Span, alone: Span, gap: Span, width: int, *, upwards: bool) -> Iterator[Span]:
    """What is held with a gap above or below it, cut to `width` at the far end: as much of the
    gap as what has to stay leaves room for."""
    if upwards:
        start = alone.start if alone.layers else gap.start
        end = min(gap.end, start + width)
        span = Span(max(min(held.start, start), end - width), end)
    else:
        end = alone.end if alone.layers else gap.end
        start = max(gap.start, end - width)
        span = Span(start, min(max(held.end, end), start + width))
    if span.covers(alone) or not alone.layers:
        yield span


def _move_key(one: Candidate, span: Span, counts: _Counts, demand: Demand) -> tuple[float, ...]:
    """The lower the better: whether loading takes long, minus the layers that are closed, whether
    layers are given up, when all is loaded, when a token has been computed."""
    kept = max(0, min(span.end, one.held.end) - max(span.start, one.held.start))
    closed = int(np.count_nonzero(counts[span.start : span.end] == 0))
    gives_up = kept < min(one.held.end, demand.layers) - min(one.held.start, demand.layers)
    load_s = (span.layers - kept) * one.move_s
    is_late = float(load_s > LONG_LOAD_S)
    return is_late, -closed, float(gives_up), load_s, stage_s(one, span.layers, 0.0)
