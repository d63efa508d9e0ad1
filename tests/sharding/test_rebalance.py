"""Where newcomers go, who closes a gap, and when a pool is planned anew."""

from __future__ import annotations

import random
import time

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gennode.sharding.rebalance import (
    Move,
    after,
    least_hosted,
    next_move,
    next_moves,
    place,
    stage_rate,
    uncovered,
)
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import PeerId, Span
from gennode.wire.snapshot import Candidate, LayerCost, Snapshot
from tests.sharding.held import FAR, HERE, LAYERS, candidate, demand, snapshot


def test_a_newcomer_takes_what_nobody_holds() -> None:
    pool = snapshot(candidate("a", (0, 4)), candidate("b", (6, 8)), candidate("c", (0, 4)))
    assert place(pool, candidate("n", capacity=2)) == Span(4, 6)
    assert place(pool, candidate("n", capacity=3)).covers(Span(4, 6))
    assert place(pool, candidate("n", capacity=20)) == Span(0, LAYERS)
    assert place(pool, candidate("n", capacity=0)) == Span(0, 0)


def test_a_newcomer_strengthens_the_weakest_layers() -> None:
    strong = [candidate(name, (0, 4)) for name in "abc"]
    pool = snapshot(*strong, candidate("d", (4, 8)))
    assert place(pool, candidate("n")) == Span(4, 8)
    slow = snapshot(candidate("a", (0, 4), layer_s=0.02), candidate("d", (4, 8)))
    assert place(slow, candidate("n")) == Span(0, 4)


def test_a_newcomer_completes_what_is_near() -> None:
    far = [candidate(name, (4, 8), where=FAR) for name in "ab"]
    pool = snapshot(candidate("c", (0, 4)), *far)
    near = [msgspec.structs.replace(one, coordinate=HERE) for one in far]
    assert place(pool, candidate("n")) == Span(4, 8)
    assert place(snapshot(candidate("c", (0, 4)), *near), candidate("n")) == Span(0, 4)


def test_a_newcomer_who_is_known_does_not_count_itself() -> None:
    pool = snapshot(candidate("a", (0, 4)), candidate("n", (4, 8)))
    assert place(pool, candidate("n")) == Span(4, 8)


def test_first_newcomers_of_one_moment_spread() -> None:
    spans = {place(snapshot(), candidate(f"peer {n}", capacity=2)) for n in range(30)}
    assert spans == {Span(0, 2), Span(2, 4), Span(4, 6), Span(6, 8)}
    spans = {place(snapshot(), candidate(f"peer {n}", capacity=3)) for n in range(30)}
    assert spans == {Span(0, 3), Span(3, 6), Span(5, 8)}


def test_newcomers_one_after_the_other_cover_a_model() -> None:
    for seed in range(4):
        rng = random.Random(seed)
        peers: list[Candidate] = []
        while sum(one.capacity_layers for one in peers) < 3 * LAYERS:
            one = candidate(f"{seed} {len(peers)}", capacity=rng.randint(1, 5))
            span = place(snapshot(*peers), one)
            peers.append(msgspec.structs.replace(one, held=span))
        assert uncovered(snapshot(*peers)) == ()


def test_a_thousand_peers_take_little_time() -> None:
    rng = random.Random(5)
    peers = []
    for index in range(1000):
        start = rng.randrange(70)
        where = Coordinate(rng.uniform(0, 0.2), rng.uniform(0, 0.2))
        peers.append(candidate(f"{index:04}", (start, start + 10), 12, where=where))
    pool = snapshot(*peers, layers=80)
    times_s = []
    for _ in range(5):
        start_s = time.process_time()
        place(pool, candidate("n", capacity=12))
        times_s.append(time.process_time() - start_s)
    assert min(times_s) < 0.05
    holes = [one for one in peers if not (one.held.start < 40 < one.held.end)]
    start_s = time.process_time()
    assert next_move(snapshot(*holes, layers=80)) is not None
    assert time.process_time() - start_s < 1.0


def test_a_stages_rate_is_what_it_can_do_within_its_part_of_the_limit() -> None:
    one = candidate("a")
    assert stage_rate(one, 4, demand()) > stage_rate(one, 8, demand()) > 0
    late = stage_rate(candidate("a", layer_s=1.0), 4, demand())
    assert 0 < late < 0.01 * stage_rate(one, 4, demand())
    assert stage_rate(msgspec.structs.replace(one, memory_bytes=0), 4, demand()) == 0
    free = msgspec.structs.replace(one, cost=LayerCost(0.0, 0.0), pass_s=0.0)
    assert stage_rate(free, 4, demand()) > 0


# -- gaps -------------------------------------------------------------------------------------


def test_nothing_moves_where_nothing_is_wrong() -> None:
    assert next_move(snapshot(candidate("a", (0, 4)), candidate("b", (4, 8)))) is None


def test_a_gap_is_closed_by_who_need_not_give_anything_up() -> None:
    pool = snapshot(
        candidate("a", (0, 4)),
        candidate("b", (0, 4)),
        candidate("c", (2, 4), 6),
    )
    assert next_move(pool) == Move(PeerId("c"), Span(2, 8), "nobody holds layers 4:8")
    assert next_moves(pool) == (next_move(pool),)


def test_a_spare_host_moves_before_a_last_copy() -> None:
    pool = snapshot(candidate("a", (0, 2), 2), candidate("b", (2, 4), 2), candidate("c", (2, 4), 2))
    move = next_move(snapshot(*pool.peers, layers=6))
    assert move is not None
    assert move.peer == "b"
    assert move.span == Span(4, 6)


def test_one_layer_shifts_on() -> None:
    pool = snapshot(candidate("a", (0, 5), 5), candidate("b", (3, 7), 4))
    assert next_move(pool) == Move(PeerId("b"), Span(4, 8), "nobody holds layers 7:8")


def test_the_nearest_to_ready_closes_a_gap() -> None:
    slow, quick = candidate("a", (0, 4), 8, move_s=9.0), candidate("b", (0, 4), 8, move_s=1.0)
    move = next_move(snapshot(slow, quick))
    assert move is not None
    assert move.peer == "b"
    again = next_move(snapshot(slow, quick), without=frozenset({PeerId("b")}))
    assert again is not None
    assert again.peer == "a"


def test_no_single_move_helps() -> None:
    pool = snapshot(candidate("a", (0, 4)), candidate("b", (4, 6), 2))
    assert next_move(pool) is None
    assert next_moves(pool) == ()
    assert next_move(snapshot()) is None


def test_what_is_held_beside_is_no_gap() -> None:
    pool = snapshot(candidate("a", (0, 4), 8))
    assert next_move(pool, beside=[Span(4, 8)]) is None
    move = next_move(pool, beside=[Span(4, 6)])
    assert move is not None
    assert move.why == "nobody holds layers 6:8"


def test_two_gaps_are_closed_side_by_side() -> None:
    pool = snapshot(candidate("a", (0, 2), 4), candidate("b", (4, 6), 4))
    moves = next_moves(pool)
    assert [(move.peer, move.span) for move in moves] == [("a", Span(0, 4)), ("b", Span(4, 8))]


@st.composite
def pools(draw: st.DrawFn) -> Snapshot:
    peers = []
    for index in range(draw(st.integers(1, 8))):
        width = draw(st.integers(0, 5))
        start = draw(st.integers(0, LAYERS - width))
        capacity = width + draw(st.integers(0, 4))
        move_s = draw(st.sampled_from([0.0, 0.5, 3.0]))
        held = (start, start + width) if width else (0, 0)
        peers.append(candidate(f"p{index}", held, capacity, move_s=move_s))
    return snapshot(*peers)


def _held(pool: Snapshot) -> set[int]:
    return {layer for one in pool.peers for layer in range(one.held.start, one.held.end)}


@given(pools(), st.randoms())
def test_moves_only_ever_add_cover_and_fit(pool: Snapshot, rng: random.Random) -> None:
    shuffled = list(pool.peers)
    rng.shuffle(shuffled)
    assert next_moves(msgspec.structs.replace(pool, peers=tuple(shuffled))) == next_moves(pool)
    by_peer = {one.peer: one for one in pool.peers}
    moves = next_moves(pool)
    assert len({move.peer for move in moves}) == len(moves)
    for move in moves:
        assert 0 <= move.span.start < move.span.end <= LAYERS
        assert move.span.layers <= by_peer[move.peer].capacity_layers
        moved = after(pool, move)
        assert _held(pool) < _held(moved)
        pool = moved


@given(pools())
def test_room_beside_a_gap_is_found(pool: Snapshot) -> None:
    gaps = uncovered(pool)
    roomy = [
        one
        for one in pool.peers
        if one.held.layers and one.capacity_layers > one.held.layers
        and any(one.held.end == gap.start or one.held.start == gap.end for gap in gaps)
    ]  # fmt: skip
    if roomy:
        assert next_move(pool) is not None


@given(pools(), st.integers(0, 12))
def test_a_newcomer_is_placed_within_the_model(pool: Snapshot, capacity: int) -> None:
    span = place(pool, candidate("n", capacity=capacity))
    assert 0 <= span.start <= span.end <= LAYERS
    assert span.layers == min(capacity, LAYERS)


# -- planning anew ----------------------------------------------------------------------------


# -- where nothing is known of the others ----------------------------------------------------


def test_the_least_hosted_layers_come_first() -> None:
    assert least_hosted(12, 4, []) == Span(0, 4)
    held = [Span(0, 4), Span(8, 12)]
    assert least_hosted(12, 4, held) == Span(4, 8)
    assert least_hosted(12, 2, held) == Span(4, 6)
    assert least_hosted(12, 99, held) == Span(0, 12)
    assert least_hosted(12, 4, [*held, Span(4, 8), Span(0, 6), Span(9, 99)]) == Span(5, 9)


@given(layers=st.integers(1, 24), widths=st.lists(st.integers(1, 24), min_size=1, max_size=12))
def test_one_after_the_other_leaves_no_gap_that_there_was_room_for(
    layers: int, widths: list[int]
) -> None:
    held: list[Span] = []
    for width in widths:
        held.append(least_hosted(layers, width, held))
    covered = {layer for span in held for layer in range(*span)}
    assert len(covered) == min(layers, sum(widths))
