"""Pools in which peers hold layers already, for the tests of what moves."""

from __future__ import annotations

from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.snapshot import Candidate, Demand, LayerCost, Snapshot

LAYERS = 8
MODEL = ModelId("a" * 64)
HERE, FAR = Coordinate(0.0, 0.0), Coordinate(0.15, 0.0)
MIB = 1 << 20


def demand(layers: int = LAYERS, step_limit_s: float = 0.2) -> Demand:
    return Demand(layers, 10 * MIB, MIB, 4096, step_limit_s)


def candidate(
    name: str,
    held: tuple[int, int] = (0, 0),
    capacity: int = 4,
    *,
    layer_s: float = 0.002,
    where: Coordinate = HERE,
    move_s: float = 1.0,
) -> Candidate:
    cost = LayerCost(layer_s, layer_s / 8)
    memory_bytes = capacity * 30 * MIB
    return Candidate(
        PeerId(name), capacity, memory_bytes, 16, cost, 0.001, 1e7, where, Span(*held), move_s
    )


def snapshot(*peers: Candidate, layers: int = LAYERS) -> Snapshot:
    return Snapshot(MODEL, 1, demand(layers), peers)
