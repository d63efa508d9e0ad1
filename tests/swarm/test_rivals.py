"""What placements are measured against: pools, Parallax's and Petals' rules, and the optimum."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import _optimum, _parallax, _petals
from bench._pools import MODELS, Pool, pool_of
from bench._trial import Task, run
from gennode.sharding.flow.flow import flow
from gennode.sharding.predict import Stage, best_rate, worth
from gennode.wire.announcement import Machine
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import PeerId, Span
from gennode.wire.snapshot import Candidate, Demand, LayerCost


def tiny(seed: int, machines: int, layers: int) -> tuple[list[Candidate], Demand]:
    """A few machines, near and far, and a model of few layers."""
    rng = random.Random(seed)
    demand = Demand(layers, 100, 10, 4000, step_limit_s=rng.uniform(0.02, 0.2))
    return [
        Candidate(
            PeerId(f"p{number}"),
            rng.randint(1, layers),
            rng.randrange(300, 3000),
            rng.choice((2, 64)),
            LayerCost(rng.uniform(1e-4, 5e-3), rng.uniform(1e-5, 1e-3)),
            1e-3,
            rng.choice((1e6, 1e8)),
            Coordinate(rng.uniform(0, 0.05), 0.0, 0.001),
        )
        for number in range(machines)
    ], demand


def tried(group: list[Candidate], demand: Demand) -> float:
    """The best rate of one pipeline of all of a group within the limit: every order and split."""
    best = 0.0
    for order in itertools.permutations(group):
        for cuts in itertools.combinations(range(1, demand.layers), len(order) - 1):
            ends = (*cuts, demand.layers)
            counts = [end - start for start, end in zip((0, *cuts), ends, strict=True)]
            pairs = list(zip(order, counts, strict=True))
            if all(count <= one.capacity_layers for one, count in pairs):
                stages = [Stage(one, count) for one, count in pairs]
                best = max(best, best_rate(stages, demand, demand.step_limit_s))
    return best


@given(seed=st.integers(0, 9999), machines=st.integers(1, 3), layers=st.integers(3, 6))
@settings(deadline=None, max_examples=50)
def test_the_best_of_a_group_is_what_trying_all_finds(
    seed: int, machines: int, layers: int
) -> None:
    group, demand = tiny(seed, machines, layers)
    found, hops = _optimum.best_group(group, demand)
    by_peer = {one.peer: one for one in group}
    if hops:
        stages = [Stage(by_peer[hop.peer], hop.span.layers) for hop in hops]
        assert worth(stages, demand) == pytest.approx(found, rel=1e-3)
    if expected := tried(group, demand):
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("seed", range(2))
def test_the_best_of_a_pool_is_at_least_any_partition(seed: int) -> None:
    pool, demand = tiny(seed, 4, 5)
    found, pipelines = _optimum.disjoint(pool, demand)
    peers = [hop.peer for hops in pipelines for hop in hops]
    assert len(peers) == len(set(peers))
    for labels in itertools.product(range(4), repeat=4):
        groups = [[one for one, at in zip(pool, labels, strict=True) if at == n] for n in range(4)]
        total = sum(_optimum.best_group(group, demand)[0] for group in groups if group)
        assert found >= total * 0.999


def test_sharing_machines_gains_little_over_the_best_disjoint_pipelines() -> None:
    """So the best of disjoint pipelines is a fair yardstick for all placements."""
    for seed in range(2):
        pool, demand = tiny(seed, 3, 4)
        best, pipelines = _optimum.disjoint(pool, demand)
        by_peer = {one.peer: one for one in pool}
        hosts = [(by_peer[hop.peer], hop.span) for hops in pipelines for hop in hops]
        apart = flow(hosts, demand, demand.step_limit_s, pipelines).rate_token_s
        shared = _optimum.overlapping(pool, demand, demand.step_limit_s)
        assert best == pytest.approx(apart, rel=1e-3)
        assert apart * 0.999 <= shared <= apart * 1.1


def drawn(memories: list[int], flops: list[float], layers: int) -> Pool:
    """A pool of machines of so many layers of room (Parallax's 0.65 taken care of)."""
    demand = Demand(layers, 1000, 10, 4000)
    machines = tuple(
        Machine(-(-memory * 100_000 // 65), power, 1e12, 1e-3, 1e8, Coordinate())
        for memory, power in zip(memories, flops, strict=True)
    )
    candidates = tuple(
        Candidate(
            PeerId(f"p{number}"),
            layers,
            machine.memory_bytes,
            64,
            LayerCost(1e-3, 1e-5),
            1e-3,
            1e8,
            Coordinate(),
        )
        for number, machine in enumerate(machines)
    )
    return Pool(0, MODELS[0], demand, candidates, machines)


def test_parallax_makes_two_pipelines_of_three_and_fills_them_like_water() -> None:
    """Its authors' own example: 70 layers on nodes of 40, 40, 20, 20, 10 and 10."""
    hosts, pipelines = _parallax.placed(
        drawn([40, 40, 20, 20, 10, 10], [4.0, 4.0, 2.0, 2.0, 1.0, 1.0], 70)
    )
    assert len(hosts) == 6
    assert [[hop.span.layers for hop in chain] for chain in pipelines] == [[40, 20, 10]] * 2
    _, pipelines = _parallax.placed(drawn([50, 50], [3.0, 1.0], 60))
    assert [hop.span for hop in pipelines[0]] == [Span(0, 45), Span(45, 60)]
    _, pipelines = _parallax.placed(drawn([50, 50], [9.0, 1.0], 60))
    assert [hop.span for hop in pipelines[0]] == [Span(0, 50), Span(50, 60)]


def test_parallax_gives_up_on_many_states_and_goes_on_greedily() -> None:
    pool = drawn([7, 6, 5, 4, 3, 3, 2, 2, 2, 1], [1.0] * 10, 11)
    for max_states in (10, 100_000):
        hosts, pipelines = _parallax.placed(pool, max_states)
        assert pipelines
        for chain in pipelines:
            ends = [0, *(hop.span.end for hop in chain)]
            assert [hop.span.start for hop in chain] == ends[:-1]
            assert ends[-1] == 11
        assert len(hosts) == 10


def test_parallax_raises_where_its_two_accounts_of_the_ends_disagree() -> None:
    """Some pools of the bench do it, and none without the ends' weights."""
    pools = [pool_of(seed, 12, MODELS[2]) for seed in range(12)]
    assert any(_parallax.crashes(pool) for pool in pools)
    assert any(_parallax.placed(pool)[1] for pool in pools if _parallax.crashes(pool))


def test_petals_covers_what_can_be_covered_and_evens_it_out() -> None:
    pool = pool_of(5, 24, MODELS[0])
    hosts = _petals.placed(pool, 1)
    assert {layer for _, span in hosts for layer in range(*span)} == set(range(32))
    assert _petals.placed(pool, 1) == hosts
    for one, span in hosts:
        assert span.layers * pool.demand.layer_bytes < one.memory_bytes


def test_pools_replay_and_some_lack_memory() -> None:
    assert pool_of(3, 8, MODELS[1]) == pool_of(3, 8, MODELS[1])
    lack = [not pool_of(seed, 8, model).layers_fit for seed in range(60) for model in MODELS]
    assert 0.02 < sum(lack) / len(lack) < 0.3
    ways_s = [
        one.coordinate.rtt_s(other.coordinate)
        for one, other in itertools.combinations(pool_of(3, 64, MODELS[0]).candidates, 2)
    ]
    assert all(way_s < 0.04 or 0.06 < way_s < 0.21 for way_s in ways_s)


@pytest.mark.parametrize(("seed", "size", "model"), [(3, 12, 1), (9, 8, 2), (20, 8, 2)])
def test_ours_is_not_behind_where_it_once_was(seed: int, size: int, model: int) -> None:
    # caches that were short, pipelines that were all late, and machines worth sharing
    result = run(Task(seed, size, model))
    assert not result.crash
    assert result.duels
    assert all(duel.ratio >= 0.98 for duel in result.duels)
