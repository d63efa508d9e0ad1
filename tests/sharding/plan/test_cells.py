"""Groups of machines: the best of all for a few; bounded work for many."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from gennode.sharding.plan.cells import grouped
from gennode.sharding.plan.groups import total
from gennode.sharding.plan.pipeline import Group, Pool
from gennode.sharding.predict import Stage, worth
from gennode.wire.snapshot import Candidate, LayerCost, Snapshot
from tests.sharding.pools import demand, machine, random_pool


def partitions(machines: list[int]) -> Iterator[list[Group]]:
    """All ways to put machines into groups, or to leave some out."""
    if not machines:
        yield []
        return
    first, rest = machines[0], machines[1:]
    for others in itertools.chain.from_iterable(
        itertools.combinations(rest, count) for count in range(len(rest) + 1)
    ):
        left = [one for one in rest if one not in others]
        for groups in partitions(left):
            yield [(first, *others), *groups]
    yield from partitions(rest)


def best_worth(peers: tuple[Candidate, ...], pool: Snapshot, group: Group) -> float:
    """What machines are worth in the best order and split: by trying all."""
    best = 0.0
    layers = pool.demand.layers
    for rest in itertools.permutations(group[1:]):
        ring = (group[0], *rest)
        for cuts in itertools.combinations(range(1, layers), len(ring) - 1):
            ends = [0, *cuts, layers]
            stages = [Stage(peers[index], ends[at + 1] - ends[at]) for at, index in enumerate(ring)]
            if all(one.layers <= one.candidate.capacity_layers for one in stages):
                best = max(best, worth(stages, pool.demand))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_few_machines_are_grouped_in_the_best_way(seed: int) -> None:
    pool = random_pool(seed, 5, layers=7)
    judge = Pool(pool.peers, pool.demand)
    found = total(judge, grouped(judge))
    known = {
        group: best_worth(pool.peers, pool, group)
        for count in range(1, 6)
        for group in itertools.combinations(range(5), count)
    }
    best = max(sum(known[group] for group in groups) for groups in partitions(list(range(5))))
    assert found >= 0.98 * best
    assert best > 0


def test_work_grows_no_faster_than_the_pool() -> None:
    def evaluations(machines: int) -> int:
        pool = random_pool(1, machines)
        judge = Pool(pool.peers, pool.demand)
        groups = grouped(judge)
        placed = [one for group in groups for one in group]
        assert len(placed) == len(set(placed))
        assert total(judge, groups) > 0
        return judge.evaluations

    small, large = evaluations(400), evaluations(1600)
    assert large < 4 * small
    assert large < 16 * 1600


def test_more_machines_are_worth_more() -> None:
    pool = random_pool(2, 80)
    worths = []
    for machines in (10, 20, 40, 80):
        judge = Pool(pool.peers[:machines], pool.demand)
        worths.append(total(judge, grouped(judge)))
    assert all(more >= 1.2 * fewer for fewer, more in itertools.pairwise(worths))


def test_pipelines_of_very_many_machines_are_bounded_work() -> None:
    small = [
        Candidate(one.peer, 1, 115_000_000, 1, LayerCost(0.0, 0.0), 0.0, 0.0, one.coordinate)
        for one in (machine(f"p{at:04}", 1) for at in range(700))
    ]
    judge = Pool(small, demand(300))
    groups = grouped(judge)
    assert [len(group) for group in groups] == [300, 300]
    assert judge.evaluations < 400
