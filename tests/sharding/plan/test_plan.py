"""Placement: full pipelines, fair shares, cover where it is weakest; for pools and newcomers."""

from __future__ import annotations

import itertools
import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gennode.errors import LocalError
from gennode.sharding.plan.plan import plan, split
from gennode.sharding.plan.spare import room_layers
from gennode.sharding.predict import Stage, max_sessions
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.snapshot import Candidate, Demand, LayerCost, Snapshot
from tests.sharding.pools import SNAPSHOTS, demand, machine, snapshot

MODEL = ModelId("a" * 64)


@given(pool=SNAPSHOTS, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_a_plan_is_sound_whatever_the_pool(pool: Snapshot, seed: int) -> None:
    made = plan(pool)
    shuffled = tuple(random.Random(seed).sample(pool.peers, len(pool.peers)))
    again = plan(msgspec.structs.replace(pool, peers=shuffled))
    assert (again, again.digest) == (made, made.digest)

    layers, peers = pool.demand.layers, {one.peer: one for one in pool.peers}
    loaded = {hop.peer: hop.span for hop in made.hosts}
    assert list(loaded) == sorted(loaded)
    for peer, span in loaded.items():
        assert 0 <= span.start < span.end <= layers
        assert span.layers <= peers[peer].capacity_layers
        assert span.layers * pool.demand.layer_bytes <= peers[peer].memory_bytes
    seen = [hop.peer for pipeline in made.pipelines for hop in pipeline]
    assert len(seen) == len(set(seen))
    for pipeline in made.pipelines:
        ends = [0, *(hop.span.end for hop in pipeline)]
        assert [hop.span.start for hop in pipeline] == ends[:-1]
        assert ends[-1] == layers
        assert all(loaded[hop.peer].covers(hop.span) for hop in pipeline)
        stages = [Stage(peers[hop.peer], hop.span.layers) for hop in pipeline]
        assert max_sessions(stages, pool.demand) > 0

    room = {one.peer: room_layers(one, pool.demand) for one in pool.peers}
    covered = {layer for span in loaded.values() for layer in range(*span)}
    assert len(covered) == min(layers, sum(room.values()))
    assert set(loaded) == {peer for peer, width in room.items() if width}  # nobody is idle
    with_caches = sum(room_layers(one, pool.demand, 1) for one in pool.peers if one.max_sessions)
    assert bool(made.pipelines) == (0 < layers <= with_caches)
    assert bool(made.missing) == (layers > with_caches)
    assert made.rate_token_s >= 0
    assert math.isfinite(made.rate_token_s + made.step_s)


def test_a_pool_too_small_says_what_it_lacks() -> None:
    asked = demand(12)
    made = plan(snapshot(asked, machine("a", 4), machine("b", 3)))
    assert made.missing == ("the pool holds 7 of 12 layers: it needs room for 5 more (476.8 MiB)")
    assert [hop.span for hop in made.hosts] == [Span(0, 4), Span(4, 7)]
    assert (made.pipelines, made.rate_token_s, made.step_s) == ((), 0.0, 0.0)
    assert plan(snapshot(asked)).missing.startswith("the pool holds 0 of 12 layers")


def test_a_few_bytes_too_few_are_called_so() -> None:
    nearly = machine("a", 12, memory_bytes=1_199_000_000)
    assert plan(snapshot(demand(12), nearly)).missing == (
        "the pool holds 11 of 12 layers: it needs room for 1 more (95.4 MiB), "
        "or 1.0 MiB more where layers nearly fit"
    )
    without_caches = machine("a", 12, memory_bytes=1_310_000_000)
    assert plan(snapshot(demand(12), without_caches)).missing == (
        "the pool holds all 12 layers, but the caches of a session beside 11 alone: "
        "it needs 9.5 MiB more"
    )


def test_shares_follow_speed_when_memory_forces_one_pipeline() -> None:
    speeds = {"a": 1, "b": 2, "c": 2, "d": 3, "e": 4}
    pool = [
        machine(name, 19, layer_s=1e-5, token_s=0.012 / speed, memory_bytes=1 << 36)
        for name, speed in speeds.items()
    ]
    made = plan(snapshot(demand(48, step_limit_s=60.0), *pool))
    assert len(made.pipelines) == 1
    layers = {hop.peer: hop.span.layers for hop in made.hosts}
    for name, speed in speeds.items():
        assert abs(layers[PeerId(name)] - 4 * speed) <= 1


def test_far_regions_never_mix_where_each_has_enough() -> None:
    pool = [machine(f"near{i}", 4, layer_s=0.002) for i in range(6)]
    pool += [machine(f"over{i}", 4, layer_s=0.002, at=(0.15, 0.0)) for i in range(6)]
    made = plan(snapshot(demand(12), *pool))
    assert made.pipelines
    for pipeline in made.pipelines:
        assert len({hop.peer[:4] for hop in pipeline}) == 1


def test_a_spare_machine_goes_where_least_is_computed() -> None:
    fast, slow = machine("fast", 4, layer_s=0.001), machine("slow", 4, layer_s=0.01)
    # it would only slow the pipeline down
    spare = machine("spare", 2, layer_s=0.05, at=(5.0, 5.0))
    made = plan(snapshot(demand(8), fast, slow, spare))
    spans = {hop.peer: hop.span for hop in made.hosts}
    assert [hop.peer for hop in made.pipelines[0]] == ["fast", "slow"]
    assert (spans[fast.peer], spans[slow.peer]) == (Span(0, 4), Span(4, 8))
    assert spans[spare.peer] == Span(4, 6)


def test_machines_keep_what_they_hold_where_that_costs_nothing() -> None:
    pool = [machine(name, 4) for name in "abc"]
    spans = {hop.peer: hop.span for hop in plan(snapshot(demand(12), *pool)).hosts}
    assert sorted(spans.values()) == [Span(0, 4), Span(4, 8), Span(8, 12)]
    for start in (0, 4, 8):
        held = Span(start, start + 4)
        moved = [msgspec.structs.replace(pool[0], held=held), *pool[1:]]
        hosts = {hop.peer: hop.span for hop in plan(snapshot(demand(12), *moved)).hosts}
        assert hosts[pool[0].peer] == held


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


@pytest.mark.parametrize(
    ("layer_times_s", "parts"),
    [
        ((0.001, 0.0015, 0.002, 0.003, 0.004), {5}),
        ((0.004, 0.004, 0.004, 0.004, 0.004), {5}),
        ((0.002, 0.002, 0.004, 0.004, 0.008), {4}),  # the last would not make it quicker
    ],
)
def test_five_machines_get_layers_in_proportion_to_their_speed(
    layer_times_s: tuple[float, ...], parts: set[int]
) -> None:
    peers = tuple(
        Candidate(
            PeerId(f"p{number}"), 9, 1 << 40, 64, LayerCost(0.0, time_s), 0.0001, 0.0,
            Coordinate(error=0.1),
        )
        for number, time_s in enumerate(layer_times_s)
    )  # fmt: skip
    [pipeline] = plan(Snapshot(MODEL, 1, Demand(24, 1 << 20, 1 << 10, 1000), peers)).pipelines
    speeds = {f"p{number}": 1 / time_s for number, time_s in enumerate(layer_times_s)}
    total = sum(speeds[hop.peer] for hop in pipeline)
    assert {len(pipeline)} == parts
    assert all(abs(hop.span.layers - 24 * speeds[hop.peer] / total) <= 1 for hop in pipeline)
