"""Chains are found where a plan made them, and nowhere else."""

from __future__ import annotations

from gennode.sharding.flow.chains import Host, chains_of
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import Hop, PeerId, Span
from gennode.wire.snapshot import Candidate, Demand, LayerCost

DEMAND = Demand(6, 1 << 20, 1 << 16, 1024)


def host(name: str, start: int, end: int, layer_s: float = 0.001, x_s: float = 0.0) -> Host:
    cost = LayerCost(layer_s, layer_s / 10)
    place = Coordinate(x_s=x_s, error=0.1)
    one = Candidate(PeerId(name), 6, 1 << 30, 8, cost, 0.0, 0.0, place)
    return one, Span(start, end)


def test_each_host_is_in_one_chain_and_the_quickest_comes_first() -> None:
    hosts = [
        host("a", 0, 3), host("b", 3, 6),
        host("c", 0, 3, 0.002), host("d", 3, 6, 0.002), host("e", 0, 3),
    ]  # fmt: skip
    first, second = chains_of(hosts, DEMAND)
    assert [hop.peer for hop in first] == ["a", "b"]
    assert [hop.peer for hop in second] == ["e", "d"]
    assert first == (Hop(PeerId("a"), Span(0, 3)), Hop(PeerId("b"), Span(3, 6)))


def test_near_hosts_follow_each_other() -> None:
    hosts = [host("a", 0, 3), host("b", 3, 6, x_s=0.1), host("c", 3, 6, 0.002)]
    assert [[hop.peer for hop in chain] for chain in chains_of(hosts, DEMAND)] == [["a", "c"]]


def test_gaps_overlaps_and_nothing_make_no_chain() -> None:
    assert chains_of([], DEMAND) == ()
    assert chains_of([host("a", 0, 3), host("b", 4, 6)], DEMAND) == ()
    assert chains_of([host("a", 0, 4), host("b", 3, 6)], DEMAND) == ()
    assert chains_of([host("a", 0, 0), host("b", 0, 6)], DEMAND) == (
        (Hop(PeerId("b"), Span(0, 6)),),
    )


def test_the_order_of_hosts_means_nothing() -> None:
    hosts = [host("a", 0, 2), host("b", 2, 6), host("c", 0, 2), host("d", 2, 6)]
    assert chains_of(hosts, DEMAND) == chains_of(hosts[::-1], DEMAND)
