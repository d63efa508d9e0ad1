"""One pipeline: its ring, its split and what it is worth, against trying everything."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest

from gennode.sharding.plan.pipeline import Pool, curve_index, regions
from gennode.sharding.predict import Stage, worth
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import Span
from gennode.wire.snapshot import Candidate, Demand, Snapshot
from tests.sharding.pools import demand, machine, random_pool


def best_split_worth(stages: list[Candidate], asked: Demand) -> float:
    """What the best split of a ring is worth: by trying all."""
    best = 0.0
    for cuts in itertools.combinations(range(1, asked.layers), len(stages) - 1):
        ends = [0, *cuts, asked.layers]
        counts = [ends[at + 1] - ends[at] for at in range(len(stages))]
        if all(n <= one.capacity_layers for n, one in zip(counts, stages, strict=True)):
            pipeline = [Stage(one, n) for n, one in zip(counts, stages, strict=True)]
            best = max(best, worth(pipeline, asked))
    return best


def judged(pool: Snapshot, group: tuple[int, ...]) -> tuple[float, float]:
    """A group's worth as the search sees it, and by the formulas for the same split."""
    judge = Pool(pool.peers, pool.demand)
    judge.judge([group])
    found = judge.judged(group)
    stages = [
        Stage(pool.peers[index], layers)
        for index, layers in zip(found.ring, found.layers, strict=True)
    ]
    return found.worth, worth(stages, pool.demand) if stages else -1.0


@pytest.mark.parametrize("step_limit_s", [0.05, 0.2, 2.0])
def test_splits_are_nearly_the_best_of_all(step_limit_s: float) -> None:
    ratios = []
    for seed in range(12):
        pool = random_pool(seed, 8, layers=12)
        asked = demand(12, step_limit_s)
        pool = Snapshot(pool.model, 1, asked, pool.peers)
        group = tuple(sorted(random.Random(seed).sample(range(8), 2 + seed % 3)))
        found, real = judged(pool, group)
        ring = Pool(pool.peers, asked).ring(group)[0]
        best = best_split_worth([pool.peers[index] for index in ring], asked)
        if best <= 0:
            assert found <= 0
            continue
        assert found == pytest.approx(real, rel=0.02)
        ratios.append(real / best)
    assert len(ratios) > 6
    assert min(ratios) > 0.97
    assert sum(ratios) / len(ratios) > 0.995


def test_judging_together_or_alone_gives_the_same_bits() -> None:
    pool = random_pool(3, 20)
    groups = [tuple(sorted(random.Random(at).sample(range(20), 1 + at % 9))) for at in range(60)]
    together = Pool(pool.peers, pool.demand)
    together.judge(groups)
    for group in groups:
        alone = Pool(pool.peers, pool.demand)
        alone.judge([group])
        assert alone.judged(group) == together.judged(group)
    assert together.evaluations <= 60


def test_groups_without_room_are_worth_nothing() -> None:
    pool = Pool([machine("a", 5), machine("b", 5)], demand(12))
    pool.judge([(0,), (0, 1)])
    assert (pool.worth((0,)), pool.worth((0, 1)), pool.worth(())) == (0.0, 0.0, 0.0)
    assert pool.evaluations == 0


def test_rings_are_short() -> None:
    chance = random.Random(5)
    for _ in range(10):
        spots = [(chance.uniform(0, 0.2), chance.uniform(0, 0.2)) for _ in range(7)]
        pool = Pool([machine(f"p{at}", 4, at=spot) for at, spot in enumerate(spots)], demand(12))
        ring, way_s = pool.ring(tuple(range(7)))
        assert sorted(ring) == list(range(7))

        def around_s(order: tuple[int, ...], pool: Pool = pool) -> float:
            places = [pool.candidates[index].coordinate for index in order]
            return sum(places[at - 1].rtt_s(place) / 2 for at, place in enumerate(places))

        shortest_s = min(around_s((0, *rest)) for rest in itertools.permutations(range(1, 7)))
        assert way_s == pytest.approx(around_s(ring))
        assert way_s <= 1.1 * shortest_s


def test_near_places_share_a_region_and_follow_along_the_curve() -> None:
    here, near, far = Coordinate(0.0, 0.0), Coordinate(0.02, 0.01), Coordinate(0.1, 0.1)
    assert regions([here, far, near, far]) == [0, 1, 0, 1]
    assert len(set(regions([Coordinate(at / 5, -9.0) for at in range(60)]))) == 32
    line = sorted((far, near, here), key=curve_index)
    assert line in ([here, near, far], [far, near, here])
    assert curve_index(Coordinate(10.0, 10.0)) != curve_index(Coordinate(-10.0, -10.0))


def test_a_pipeline_begins_where_machines_keep_most() -> None:
    def hops(**held: Span) -> list[tuple[str, Span]]:
        ones = [
            msgspec.structs.replace(machine(name, 4), held=held.get(name, Span(0, 0)))
            for name in "abc"
        ]
        pool = Pool(ones, demand(12))
        pool.judge([(0, 1, 2)])
        return [(hop.peer, hop.span) for hop in pool.hops((0, 1, 2))]

    assert hops()[0][0] == "a"
    assert hops(c=Span(0, 4))[0] == ("c", Span(0, 4))
    assert dict(hops(c=Span(4, 8), a=Span(8, 12)))["c"] == Span(4, 8)
