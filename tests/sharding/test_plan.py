"""Placement: full pipelines, fair shares, cover where it is weakest; for pools and newcomers."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.errors import LocalError
from gennode.sharding.plan import Candidate, Snapshot, place, plan, speed_of, split
from gennode.wire.announcement import Announcement, Hosting
from gennode.wire.ids import ModelId, PeerId, Span

CANDIDATES = st.lists(
    st.tuples(st.integers(0, 14), st.sampled_from([0.0, 0.001, 0.002, 0.005, 0.02])), max_size=12
).map(
    lambda pool: tuple(
        Candidate(PeerId(f"p{number:02}"), capacity, time_s)
        for number, (capacity, time_s) in enumerate(pool)
    )
)


MODEL, OTHER = ModelId("a" * 64), ModelId("b" * 64)


def hosting(
    peer: str, spans: list[Span], layer_time_s: float = 0.001, model: ModelId = MODEL
) -> Announcement:
    hosted = Hosting(model, tuple(spans), 0, layer_time_s, 0.1, 4, "")
    return Announcement(PeerId(peer), 1, 0, 30.0, (hosted,), 0, False, "unknown", ())


@given(layers=st.integers(0, 12), peers=CANDIDATES, seed=st.integers(0, 99))
def test_a_plan_is_full_within_capacity_and_blind_to_order(
    layers: int, peers: tuple[Candidate, ...], seed: int
) -> None:
    made = plan(Snapshot(7, layers, peers))
    shuffled = random.Random(seed).sample(peers, len(peers))
    assert plan(Snapshot(7, layers, tuple(shuffled))) == made

    room = {peer.peer: min(peer.capacity_layers, layers) for peer in peers}
    loaded = {hop.peer: hop.span for hop in made.hosts}
    assert {peer: span.layers for peer, span in loaded.items()} == {
        peer: width for peer, width in room.items() if width
    }
    seen = [hop.peer for pipeline in made.pipelines for hop in pipeline]
    assert len(seen) == len(set(seen))
    for pipeline in made.pipelines:
        ends = [0, *(hop.span.end for hop in pipeline)]
        assert [hop.span.start for hop in pipeline] == ends[:-1]
        assert ends[-1] == layers
        assert all(loaded[hop.peer].covers(hop.span) for hop in pipeline)
    assert bool(made.pipelines) == (0 < layers <= sum(room.values()))
    covered = {layer for span in loaded.values() for layer in range(*span)}
    assert len(covered) == min(layers, sum(room.values()))
    assert bool(made.missing) == (len(covered) < layers)


def test_a_pool_too_small_says_what_it_lacks() -> None:
    made = plan(Snapshot(1, 12, (Candidate(PeerId("a"), 4, 0.1), Candidate(PeerId("b"), 3, 0.1))))
    assert made.missing == "the pool holds 7 of 12 layers: it needs room for 5 more"
    assert [hop.span for hop in made.hosts] == [Span(0, 4), Span(4, 7)]
    assert plan(Snapshot(1, 12, ())).missing.startswith("the pool holds 0 of 12")


def test_as_many_pipelines_as_fit() -> None:
    def pipelines(layers: int, *capacities: int) -> int:
        peers = tuple(Candidate(PeerId(f"p{i}"), c, 0.1) for i, c in enumerate(capacities))
        return len(plan(Snapshot(1, layers, peers)).pipelines)

    assert pipelines(12, 12, 20, 12) == 3
    assert pipelines(12, 6, 6, 6, 6) == 2
    assert pipelines(12, 8, 8, 8) == 1  # 24 layers of room, but no peer is in two pipelines
    assert pipelines(12, 10, 8, 4, 2) == 2


def test_spare_room_goes_to_the_weakest_layers() -> None:
    fast, slow, spare = (PeerId(name) for name in ("fast", "slow", "spare"))
    made = plan(
        Snapshot(
            1, 8, (Candidate(fast, 4, 0.001), Candidate(slow, 4, 0.1), Candidate(spare, 2, 1.0))
        )
    )
    spans = {hop.peer: hop.span for hop in made.hosts}
    assert spans == {fast: Span(0, 4), slow: Span(4, 8), spare: Span(4, 6)}


@given(
    stages=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 6)), min_size=1, max_size=4),
    layers=st.integers(0, 10),
)
def test_no_cut_has_a_quicker_slowest_stage(stages: list[tuple[int, int]], layers: int) -> None:
    speeds = [float(speed) for speed, _ in stages]
    capacities = [capacity for _, capacity in stages]
    if sum(capacities) < layers:
        with pytest.raises(LocalError):
            split(layers, speeds, capacities)
        return
    spans = split(layers, speeds, capacities)
    counts = [span.layers for span in spans]
    assert [span.start for span in spans] == [sum(counts[:i]) for i in range(len(counts))]
    assert spans[-1].end == layers

    least = 1 if layers >= len(stages) else 0
    choices = itertools.product(*(range(least, capacity + 1) for capacity in capacities))
    valid = [choice for choice in choices if sum(choice) == layers]
    assert tuple(counts) in valid
    best_s = min(max(n / s for n, s in zip(choice, speeds, strict=True)) for choice in valid)
    assert max(n / s for n, s in zip(counts, speeds, strict=True)) == best_s


def test_a_split_is_proportional() -> None:
    assert split(12, [2.0, 1.0, 1.0], [12, 12, 12]) == [Span(0, 6), Span(6, 9), Span(9, 12)]
    assert split(12, [100.0, 1.0], [12, 12]) == [Span(0, 11), Span(11, 12)]
    assert split(12, [100.0, 1.0], [5, 12]) == [Span(0, 5), Span(5, 12)]
    assert [span.layers for span in split(2, [1.0, 9.0, 5.0], [4, 4, 4])] == [0, 1, 1]


def test_newcomers_cover_an_empty_swarm_first_and_then_gaps() -> None:
    assert place(MODEL, 12, 4, []) == Span(0, 4)
    here = [hosting("a", [Span(0, 4)])]
    assert place(MODEL, 12, 4, here) == Span(4, 8)
    here.append(hosting("b", [Span(8, 12)]))
    assert place(MODEL, 12, 4, here) == Span(4, 8)
    assert place(MODEL, 12, 2, here) == Span(4, 6)
    assert place(MODEL, 12, 99, here) == Span(0, 12)
    assert place(MODEL, 12, 0, here) == Span(0, 0)
    here.append(hosting("c", [Span(4, 8)], model=OTHER))
    assert place(MODEL, 12, 4, here) == Span(4, 8)


def test_a_newcomer_joins_the_slowest_of_covered_layers() -> None:
    here = [
        hosting("a", [Span(0, 6)], 0.001),
        hosting("b", [Span(6, 12)], 0.002),
        hosting("c", [Span(9, 99)], 0.0),  # too good to be true, and beyond the model's layers
    ]
    assert place(MODEL, 12, 3, here) == Span(6, 9)
    assert place(MODEL, 12, 3, reversed(here)) == Span(6, 9)


@given(layers=st.integers(1, 24), capacities=st.lists(st.integers(1, 24), min_size=1, max_size=12))
def test_one_after_the_other_leaves_no_gap_that_there_was_room_for(
    layers: int, capacities: list[int]
) -> None:
    swarm: list[Announcement] = []
    for number, capacity in enumerate(capacities):
        swarm.append(hosting(f"p{number}", [place(MODEL, layers, capacity, swarm)]))
    covered = {layer for one in swarm for layer in range(*one.hosting[0].spans[0])}
    assert len(covered) == min(layers, sum(capacities))


def test_no_claim_of_speed_is_infinite() -> None:
    assert speed_of(0.0) == speed_of(1e-6) == pytest.approx(1e6)
