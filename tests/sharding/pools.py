"""Pools of machines to plan for: of given sorts, and of any that a peer may state."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import ModelId, PeerId
from gennode.wire.snapshot import Candidate, Demand, LayerCost, Snapshot

MODEL = ModelId("a" * 64)
GIB = 1 << 30


def demand(layers: int = 12, step_limit_s: float = 0.2) -> Demand:
    """A model of layers of 100 MB, with caches of 10 MB."""
    return Demand(layers, 100_000_000, 10_000_000, 4000, step_limit_s)


def machine(
    name: str,
    layers: int,
    *,
    layer_s: float = 0.001,
    token_s: float | None = None,
    memory_bytes: int | None = None,
    at: tuple[float, float] = (0.0, 0.0),
    upload_bytes_per_s: float = 1e8,
) -> Candidate:
    """A machine for so many layers, by default with memory for 20 sessions of each."""
    room_bytes = layers * 300_000_000 if memory_bytes is None else memory_bytes
    cost = LayerCost(layer_s, layer_s / 20 if token_s is None else token_s)
    place = Coordinate(*at, 0.001, 0.1)
    return Candidate(PeerId(name), layers, room_bytes, 64, cost, 0.0005, upload_bytes_per_s, place)


def snapshot(asked: Demand, *machines: Candidate) -> Snapshot:
    """The pool of these machines."""
    return Snapshot(MODEL, 7, asked, machines)


REGIONS = ((0.0, 0.0), (0.1, 0.02), (0.05, 0.15))


def random_pool(seed: int, machines: int, layers: int = 24) -> Snapshot:
    """Machines of 4 to 40 GB in three regions, some of them slow, some behind thin lines."""
    chance = random.Random(seed)
    peers = []
    for number in range(machines):
        memory_bytes = chance.choice((4, 8, 12, 24, 40)) * GIB // 10
        speed = chance.choice((1e11, 3e11, 6e11, 1e12)) * chance.uniform(0.8, 1.2)
        x_s, y_s = chance.choice(REGIONS)
        peers.append(
            Candidate(
                PeerId(f"p{number:05}"),
                memory_bytes // 110_000_000,
                memory_bytes,
                chance.choice((8, 64)),
                LayerCost(1e8 / speed, 5e6 / speed),
                0.0005,
                chance.choice((2e6, 2e7, 2e8)),
                Coordinate(x_s + chance.uniform(-0.006, 0.006), y_s, 0.002, 0.1),
            )
        )
    return Snapshot(MODEL, 1, demand(layers), tuple(peers))


_times_s = st.sampled_from([0.0, 1e-9, 1e-4, 0.003, 0.1, 7.0, 1e6])
_axes_s = st.sampled_from([-10.0, 0.0, 0.0, 0.01, 0.1, 10.0])
_costs = st.builds(LayerCost, _times_s, _times_s)
_places = st.builds(Coordinate, _axes_s, _axes_s, st.sampled_from([0.0, 0.002, 10.0]))
_sizes_bytes = st.sampled_from([0, 1, 99, 100, 101, 220, 350, 1000, 5000, 1 << 53])
# What a snapshot may hold, odd as it is; layers are of 100 bytes and caches of 10.
SNAPSHOTS = st.tuples(
    st.integers(0, 12),
    st.sampled_from([1e-9, 0.05, 0.2, 3600.0]),
    st.lists(
        st.tuples(
            st.integers(0, 14),
            _sizes_bytes,
            st.sampled_from([0, 1, 5, 64]),
            _costs,
            _times_s,
            st.sampled_from([0.0, 1e-9, 1e3, 1e8, 1e18]),
            _places,
        ),
        max_size=14,
    ),
).map(
    lambda drawn: Snapshot(
        MODEL,
        3,
        Demand(drawn[0], 100, 10, 50, drawn[1]),
        tuple(Candidate(PeerId(f"p{number:02}"), *facts) for number, facts in enumerate(drawn[2])),
    )
)
