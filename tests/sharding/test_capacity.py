"""One accounting: its inverses agree with it, and its times are those of a roofline."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.sharding import capacity, predict
from gennode.wire.announcement import Machine
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import PeerId
from gennode.wire.manifest import ModelShape
from gennode.wire.snapshot import Candidate, Demand, LayerCost

TINY_LLAMA = ModelShape("LlamaForCausalLM", 22, 2048, 32, 4, 64, 5632, 32000, 2048)
GPT_OSS_120B = ModelShape(
    "GptOssForCausalLM", 36, 2880, 64, 8, 64, 2880, 201088, 131072, 128, 4, 2880
)
MIXTRAL = ModelShape("MixtralForCausalLM", 32, 4096, 32, 8, 128, 14336, 32000, 32768, 8, 2, 14336)


def machine(flops_per_s: float, memory_bytes_per_s: float, memory_bytes: int = 0) -> Machine:
    return Machine(memory_bytes, flops_per_s, memory_bytes_per_s, 0.0, 0.0, Coordinate())


experts = st.integers(1, 256).flatmap(
    lambda count: st.tuples(
        st.just(count), st.integers(1, count), st.integers(1, 8192), st.integers(0, 4096)
    )
)
shapes = st.builds(
    lambda layers, dim, kv_heads, group, ffn, mixture: ModelShape(
        "Any", layers, dim, kv_heads * group, kv_heads, 64, ffn, 32000, 8192, *mixture
    ),
    st.integers(1, 128),
    st.integers(64, 16384),
    st.integers(1, 16),
    st.integers(1, 8),
    st.integers(64, 32768),
    st.just((0, 0, 0, 0)) | experts,
)
machines = st.builds(machine, st.floats(1e9, 1e15), st.floats(1e9, 1e13))
weights = st.sampled_from([0.5625, 1.0625, 2, 4])


def test_one_layer_of_tinyllama_weighs_what_its_tensors_add_up_to() -> None:
    attention = 2 * 2048 * 2048 + 2 * 2048 * 256
    weights = attention + 3 * 2048 * 5632 + 2 * 2048
    assert capacity.layer_bytes(TINY_LLAMA) == 4 * weights
    assert capacity.layer_bytes(TINY_LLAMA, weight_bytes=1.0625) == -(-17 * weights // 16)
    assert capacity.position_bytes(TINY_LLAMA) == 4 * 2 * 4 * 64
    assert capacity.position_bytes(TINY_LLAMA, number_bytes=2) == 2 * 2 * 4 * 64


@given(
    memory_bytes=st.integers(-(10**9), 10**10),
    sessions=st.integers(0, 16),
    positions=st.integers(1, 4096),
    weight_bytes=weights,
)
def test_what_fits_fits_and_one_layer_more_does_not(
    memory_bytes: int, sessions: int, positions: int, weight_bytes: float
) -> None:
    def needed_bytes(layers: int) -> int:
        return capacity.hosting_bytes(
            TINY_LLAMA, layers, sessions=sessions, positions=positions, weight_bytes=weight_bytes
        )

    fit = capacity.layers_that_fit(
        TINY_LLAMA,
        memory_bytes,
        sessions=sessions,
        positions=positions,
        weight_bytes=weight_bytes,
    )
    assert 0 <= fit <= TINY_LLAMA.layers
    assert fit == 0 or needed_bytes(fit) <= memory_bytes
    assert fit == TINY_LLAMA.layers or needed_bytes(fit + 1) > memory_bytes


@pytest.mark.parametrize("sessions", [0, 1, 7])
def test_sessions_invert_the_same_formula(sessions: int) -> None:
    memory_bytes = capacity.hosting_bytes(TINY_LLAMA, 5, sessions=sessions, positions=512)
    for spare_bytes, expected in ((0, sessions), (-1, max(0, sessions - 1))):
        assert expected == capacity.sessions_that_fit(
            TINY_LLAMA, memory_bytes + spare_bytes, layers=5, positions=512
        )


@given(shapes, st.integers(0, 1 << 40), st.integers(0, 1 << 30), st.integers(1, 4), weights)
def test_more_memory_never_holds_less(
    shape: ModelShape, memory_bytes: int, more_bytes: int, sessions: int, weight_bytes: float
) -> None:
    def found(memory_bytes: int) -> capacity.Account:
        return capacity.account(shape, memory_bytes, sessions=sessions, weight_bytes=weight_bytes)

    little, much = found(memory_bytes), found(memory_bytes + more_bytes)
    assert little.fitting_layers <= much.fitting_layers
    assert little.weights_bytes + little.caches_bytes <= memory_bytes
    assert little.sessions >= (sessions if little.fitting_layers else 0)


@given(shapes, st.sampled_from([(0.5625, 1.0625), (1.0625, 2), (2, 4)]))
def test_quantised_layers_weigh_less_and_are_read_in_less_time(
    shape: ModelShape, sizes: tuple[float, float]
) -> None:
    small, large = (capacity.layer_bytes(shape, weight_bytes=each) for each in sizes)
    assert small < large
    slow = machine(1e15, 1e9)
    quick_s, slow_s = (
        capacity.layer_time(shape, slow, batch=1, weight_bytes=each).time_s for each in sizes
    )
    assert quick_s < slow_s


@given(shapes, machines, st.integers(1, 500), st.integers(1, 500), st.integers(1, 4096))
def test_a_larger_batch_never_takes_less_time_nor_more_per_token(
    shape: ModelShape, machine: Machine, batch: int, more: int, positions: int
) -> None:
    def time_s(batch: int) -> float:
        return capacity.layer_time(shape, machine, batch=batch, positions=positions).time_s

    assert time_s(batch) <= time_s(batch + more)
    assert time_s(batch + more) / (batch + more) <= time_s(batch) / batch * (1 + 1e-9)


@given(shapes, machines, st.integers(1, 32), st.integers(1, 8192), weights)
def test_the_line_is_as_far_off_as_it_says(
    shape: ModelShape, machine: Machine, batch: int, positions: int, weight_bytes: float
) -> None:
    cost = capacity.layer_cost(shape, machine, positions=positions, weight_bytes=weight_bytes)
    true_s = capacity.layer_time(
        shape, machine, batch=batch, positions=positions, weight_bytes=weight_bytes
    ).time_s
    assert cost.fixed_s >= 0
    assert cost.token_s >= 0
    ratio = cost.pass_s(batch) / true_s
    if batch in (1, 32):
        assert ratio == pytest.approx(1)
    least = 0.44 if shape.experts else 1 - 1e-9
    assert least <= ratio <= 1.7


def test_the_line_is_nearly_as_far_off_as_it_may_be() -> None:
    """So that what the docstring states is the worst, and not some number above it."""
    narrow = ModelShape("Any", 1, 8192, 8, 1, 8, 65536, 32000, 8192)
    apart = machine(3e9, 1e9)  # arithmetic overtakes reading at 6 tokens
    cost = capacity.layer_cost(narrow, apart, positions=1)
    true_s = capacity.layer_time(narrow, apart, batch=6, positions=1).time_s
    assert 1.68 < cost.pass_s(6) / true_s < 1.7
    few = ModelShape("Any", 1, 4096, 8, 1, 8, 64, 32000, 8192, 97, 20, 16384)
    cost = capacity.layer_cost(few, machine(1e17, 1e9), positions=1)
    true_s = capacity.layer_time(few, machine(1e17, 1e9), batch=6, positions=1).time_s
    assert 0.44 < cost.pass_s(6) / true_s < 0.45


def test_experts_are_drawn_as_by_chance() -> None:
    assert capacity.expected_experts(TINY_LLAMA, 5) == 0
    assert capacity.expected_experts(MIXTRAL, 0) == 0
    assert capacity.expected_experts(MIXTRAL, 1) == 2
    assert capacity.expected_experts(MIXTRAL, 2) == 2 + 2 * 6 / 8
    for tokens in range(40):
        expected = 128 * (1 - (124 / 128) ** tokens)
        assert capacity.expected_experts(GPT_OSS_120B, tokens) == pytest.approx(expected)


def test_what_bounds_a_layer_is_named() -> None:
    """A machine of 1e14 operations and 1e12 bytes per second turns at 200 tokens in fp32."""
    fast = machine(1e14, 1e12)
    one = capacity.layer_time(TINY_LLAMA, fast, batch=1, positions=1)
    assert one.bound_by == "memory bandwidth"
    assert one.time_s == pytest.approx(capacity.layer_bytes(TINY_LLAMA) / 1e12, rel=1e-4)
    many = capacity.layer_time(TINY_LLAMA, fast, batch=1000, positions=1)
    assert many.bound_by == "compute"
    assert many.time_s == pytest.approx(1000 * 2 * TINY_LLAMA.layer_parameters / 1e14, rel=1e-3)
    long = capacity.layer_time(TINY_LLAMA, fast, batch=64, positions=100_000)
    assert long.bound_by == "memory bandwidth"  # the caches


@given(
    shapes,
    st.floats(0, 1e18) | st.just(float("nan")),
    st.floats(0, 1e18) | st.just(float("nan")),
)
def test_any_claim_gives_a_cost_that_a_snapshot_may_carry(
    shape: ModelShape, flops_per_s: float, memory_bytes_per_s: float
) -> None:
    cost = capacity.layer_cost(shape, machine(flops_per_s, memory_bytes_per_s))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(cost), type=LayerCost) == cost


def test_a_demand_is_what_sessions_of_the_planned_length_take() -> None:
    demand = capacity.demand_of(TINY_LLAMA)
    assert demand.layer_bytes == capacity.layer_bytes(TINY_LLAMA)
    assert demand.session_bytes == 2048 * capacity.position_bytes(TINY_LLAMA)
    assert demand.frame_bytes == 2249  # as measured with all headers
    short = msgspec.structs.replace(TINY_LLAMA, max_positions=100)
    assert 20 * capacity.demand_of(short).session_bytes < demand.session_bytes
    assert capacity.demand_of(TINY_LLAMA, step_limit_s=1.5).step_limit_s == 1.5


def test_the_largest_shape_there_may_be_makes_a_demand_that_a_snapshot_may_carry() -> None:
    width, deep = 1 << 20, 1 << 24
    largest = ModelShape(
        architecture="Any",
        layers=1024,
        dim=width,
        heads=width,
        kv_heads=width,
        head_dim=width,
        ffn_dim=width,
        vocab=deep,
        max_positions=deep,
        experts=1 << 16,
        experts_used=1 << 16,
        expert_dim=width,
        shared_dim=width,
    )
    for positions in (1, 1 << 24):
        demand = capacity.demand_of(largest, positions=positions)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(demand), type=Demand) == demand


@given(shapes, st.integers(1, 128), st.integers(0, 1 << 44), st.integers(1, 4096), weights)
def test_plans_count_sessions_as_accounts_do(
    shape: ModelShape, layers: int, memory_bytes: int, positions: int, weight_bytes: float
) -> None:
    demand = capacity.demand_of(shape, weight_bytes=weight_bytes, positions=positions)
    plenty = 1 << 53
    peer = Candidate(
        PeerId("p"), layers, memory_bytes, plenty, LayerCost(0, 0), 0.0, 0.0, Coordinate()
    )
    assert predict.sessions_of(peer, layers, demand) == capacity.sessions_that_fit(
        shape, memory_bytes, layers=layers, positions=positions, weight_bytes=weight_bytes
    )


def test_an_account_says_in_words_what_it_decides() -> None:
    each = capacity.hosting_bytes(TINY_LLAMA, 1, sessions=4, positions=2048)
    found = capacity.account(TINY_LLAMA, 3 * each + 5, machine(1e11, 1e10))
    assert found.fitting_layers == capacity.layers_that_fit(
        TINY_LLAMA, 3 * each + 5, sessions=4, positions=2048
    )
    assert found.caches_bytes == 3 * each + 5 - 3 * capacity.layer_bytes(TINY_LLAMA)
    assert found.sessions == 4
    assert "hold 3 of 22 layers" in found.words
    assert "4 sessions of 2048 positions" in found.words
    assert "18 ms per layer, bound by memory bandwidth" in found.words
    fewer = capacity.account(TINY_LLAMA, 3 * each + 5, layers=1)
    assert fewer.fitting_layers == 1
    assert fewer.sessions > 4
    assert "bound by" not in fewer.words
    none = capacity.account(TINY_LLAMA, each - 1)
    assert (none.fitting_layers, none.sessions, none.caches_bytes) == (0, 0, 0)
    assert none.words.startswith("184.0 MiB hold no layer: each takes 184.0 MiB")
    assert msgspec.json.decode(msgspec.json.encode(found), type=capacity.Account) == found
