"""What peers announce becomes what a plan depends on: bounded, in one order, never an error."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.engine.gguf.format import KINDS
from gennode.sharding import capacity, snapshots
from gennode.wire.announcement import Announcement, Hosting, Machine
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.manifest import ModelShape
from gennode.wire.snapshot import Candidate, LayerCost, Snapshot
from tests.wire import strategies

MODEL, OTHER = ModelId("ab" * 32), ModelId("cd" * 32)
SHAPE = ModelShape("LlamaForCausalLM", 22, 2048, 32, 4, 64, 5632, 32000, 2048)
HERE = Coordinate(0.1, 0.2, 0.01, 0.3)
GIB = 1024**3


def hosting(**changes: object) -> Hosting:
    plain = Hosting(MODEL, (Span(2, 6),), 3, 0.01, 0.5, 16, "fp32-cpu", further_time_s=0.002)
    return msgspec.structs.replace(plain, **changes)


def machine(**changes: object) -> Machine:
    return msgspec.structs.replace(Machine(8 * GIB, 1e11, 1e10, 1e-4, 1e6, HERE), **changes)


def announcement(
    *hostings: Hosting, machine: Machine | None = None, peer: str = "p", sequence: int = 1
) -> Announcement:
    return Announcement(
        peer=PeerId(peer),
        sequence=sequence,
        instance=1,
        lifetime_s=60.0,
        hosting=hostings,
        sessions=0,
        relay=False,
        reach="direct",
        addresses=(),
        machine=machine,
    )


def candidate(of: Hosting, machine: Machine | None = None) -> Candidate:
    found = snapshots.candidate_of(announcement(of, machine=machine), MODEL, SHAPE)
    assert found is not None
    return found


def test_what_was_measured_on_the_model_wins_over_what_the_machine_promises() -> None:
    found = candidate(hosting(), machine())
    assert found == Candidate(
        peer=PeerId("p"),
        capacity_layers=7,
        memory_bytes=8 * GIB,
        max_sessions=16,
        cost=LayerCost(0.01 - 0.002, 0.002),
        pass_s=1e-4,
        upload_bytes_per_s=1e6,
        coordinate=HERE,
        held=Span(2, 6),
        move_s=0.5,
    )


def test_what_was_not_measured_follows_from_the_machine() -> None:
    expected = capacity.layer_cost(SHAPE, machine())
    batches = candidate(hosting(layer_time_s=0.0, further_time_s=0.0), machine())
    assert batches.cost.pass_s(1) == pytest.approx(expected.pass_s(1))
    assert batches.cost.token_s == pytest.approx(expected.token_s)
    one_by_one = candidate(hosting(layer_time_s=0.0, further_time_s=None), machine())
    assert one_by_one.cost.fixed_s == 0
    assert one_by_one.cost.token_s == pytest.approx(expected.pass_s(1))
    narrow = hosting(layer_time_s=0.0, compute_class="bf16-cuda")
    assert candidate(narrow, machine()).cost.pass_s(1) == pytest.approx(expected.pass_s(1) / 2)


def test_without_a_machine_a_peer_has_room_for_what_it_offers_and_no_more() -> None:
    for unknown in (None, machine(memory_bytes=0)):
        found = candidate(hosting(), unknown)
        assert found.capacity_layers == 7
        assert found.memory_bytes == capacity.hosting_bytes(SHAPE, 7, sessions=4, positions=2048)
    found = candidate(hosting())
    assert (found.pass_s, found.upload_bytes_per_s) == (0.0, 0.0)
    assert found.coordinate == snapshots.FAR_AWAY


def test_room_that_the_memory_contradicts_is_not_counted_but_what_is_held_is() -> None:
    each = capacity.hosting_bytes(SHAPE, 1, sessions=1, positions=2048)
    wishful = hosting(spare_layers=1000)
    assert candidate(wishful, machine(memory_bytes=10 * each)).capacity_layers == 10
    assert candidate(wishful, machine(memory_bytes=each)).capacity_layers == 4
    assert candidate(wishful, machine(memory_bytes=1000 * each)).capacity_layers == 22
    # bf16 takes half of what the plan counts with, so there is room for twice as much.
    narrow = hosting(spare_layers=1000, compute_class="bf16-cuda")
    found = candidate(narrow, machine(memory_bytes=10 * each))
    assert (found.capacity_layers, found.memory_bytes) == (20, 20 * each)
    # int8 takes a quarter for weights, and on a CPU as much as planned for caches.
    planned, own = (
        capacity.hosting_bytes(SHAPE, 1, sessions=4, positions=2048, weight_bytes=weight_bytes)
        for weight_bytes in (4, 1)
    )
    eighth = candidate(hosting(compute_class="int8-cpu"), machine(memory_bytes=10 * each))
    assert eighth.memory_bytes == int(10 * each * (planned / own))
    assert snapshots.formats("int8-cuda") == (1.0, 2)
    assert snapshots.formats("something-new") is None


def test_a_cache_in_8_bits_counts_a_byte_and_its_part_of_a_scale() -> None:
    for weights, device in (("fp32", "cpu"), ("int8", "cpu"), ("bf16", "cuda")):
        found = snapshots.formats(f"{weights}-kv8-{device}")
        assert found is not None
        assert found[1] == pytest.approx(1.07)
    weights_bytes, _ = snapshots.formats("int8-kv8-cpu") or (0, 0)
    assert weights_bytes == 1


def test_each_kind_of_gguf_counts_the_blocks_that_its_weights_are_in() -> None:
    for kind in KINDS.values():
        found = snapshots.formats(f"gguf-{kind.name.lower()}-cpu")
        assert found == (kind.size_bytes / kind.values, 2)
    assert snapshots.formats("gguf-q2_k-cpu") is None
    assert snapshots.formats("gguf-cpu") is None


def test_an_unknown_further_time_is_that_of_the_first_and_none_is_longer() -> None:
    assert candidate(hosting(further_time_s=None)).cost == LayerCost(0.0, 0.01)
    assert candidate(hosting(further_time_s=0.02)).cost == LayerCost(0.0, 0.01)


@pytest.mark.parametrize("speed", [0.0, 1e-300])
def test_nobody_is_quicker_than_machines_are(speed: float) -> None:
    for claimed in (
        candidate(hosting(layer_time_s=speed, further_time_s=speed)),
        candidate(hosting(layer_time_s=0.0), machine(flops_per_s=1e18, memory_bytes_per_s=1e18)),
    ):
        assert claimed.cost.pass_s(1) >= snapshots.FASTEST_LAYER_S
        assert claimed.cost.token_s >= snapshots.FASTEST_TOKEN_S


@pytest.mark.parametrize(
    ("spans", "held", "layers"),
    [
        ((), Span(0, 0), 0),
        ((Span(0, 2), Span(2, 5)), Span(0, 5), 5),
        ((Span(0, 2), Span(9, 12), Span(14, 17)), Span(9, 12), 8),
        ((Span(20, 30),), Span(20, 22), 2),
        ((Span(22, 30), Span(40, 41)), Span(0, 0), 0),
    ],
)
def test_held_is_the_longest_run_of_layers_that_there_are(
    spans: tuple[Span, ...], held: Span, layers: int
) -> None:
    found = candidate(hosting(spans=spans))
    assert (found.held, found.capacity_layers) == (held, layers + 3)


def test_who_neither_hosts_nor_offers_is_no_candidate() -> None:
    elsewhere = announcement(hosting(model=OTHER), machine=machine(), peer="a")
    full = announcement(hosting(spans=(), spare_layers=0), machine=machine(), peer="b")
    gone = announcement(machine=machine(), peer="c")
    willing = announcement(hosting(spans=()), machine=machine(), peer="d")
    assert snapshots.candidate_of(elsewhere, MODEL, SHAPE) is None
    everybody = [elsewhere, full, gone, willing]
    snapshot = snapshots.snapshot_of(everybody, model=MODEL, shape=SHAPE, epoch=5)
    assert [one.peer for one in snapshot.peers] == ["d"]
    assert (snapshot.epoch, snapshot.model) == (5, MODEL)
    assert snapshot.demand == capacity.demand_of(SHAPE)


def test_peers_are_in_order_once_each_whatever_the_order_of_announcements() -> None:
    said = [announcement(hosting(), peer=f"p{index:03}", sequence=2) for index in range(100)]
    old = [msgspec.structs.replace(one, sequence=1, hosting=()) for one in said]
    first = snapshots.snapshot_of(said, model=MODEL, shape=SHAPE, epoch=1)
    everything = said + old
    random.Random(5).shuffle(everything)
    assert snapshots.snapshot_of(everything, model=MODEL, shape=SHAPE, epoch=1) == first
    assert [one.peer for one in first.peers] == [f"p{index:03}" for index in range(100)]


def test_a_crowd_too_large_for_a_snapshot_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MAX_SNAPSHOT_PEERS", 3)
    said = [announcement(hosting(), peer=f"p{index}") for index in range(5)]
    found = snapshots.snapshot_of(said, model=MODEL, shape=SHAPE, epoch=1)
    assert [one.peer for one in found.peers] == ["p0", "p1", "p2"]


@given(
    st.lists(strategies.announcements, max_size=4),
    st.integers(0, 1024),
    st.sampled_from([0.5625, 1.0625, 2.0, 4.0]),
)
def test_whatever_peers_announce_makes_a_snapshot_that_others_accept(
    said: list[Announcement], layers: int, weight_bytes: float
) -> None:
    shape = msgspec.structs.replace(SHAPE, layers=layers)
    models = {one.model for each in said for one in each.hosting} | {MODEL}
    for model in sorted(models):
        found = snapshots.snapshot_of(
            said, model=model, shape=shape, epoch=1, weight_bytes=weight_bytes
        )
        encoded = msgspec.msgpack.encode(found)
        assert msgspec.msgpack.decode(encoded, type=Snapshot) == found
        for one in found.peers:
            assert 0 < one.capacity_layers <= layers
            assert one.held.layers <= one.capacity_layers


@given(st.integers(0, 1 << 53), st.integers(0, 1 << 53), st.integers(0, 1024))
def test_more_memory_never_means_fewer_layers(
    memory_bytes: int, more_bytes: int, spare_layers: int
) -> None:
    """But for a peer that does not say how much it has: it is taken at its word."""
    offer = hosting(spare_layers=spare_layers)
    little, much = (
        candidate(offer, machine(memory_bytes=min(each, 1 << 53)))
        for each in (memory_bytes + 1, memory_bytes + 1 + more_bytes)
    )
    assert little.capacity_layers <= much.capacity_layers
    assert little.memory_bytes <= much.memory_bytes
