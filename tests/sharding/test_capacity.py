"""Memory accounting: one formula, and its inverses agree with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.sharding import capacity
from gennode.wire.manifest import ModelShape

TINY_LLAMA = ModelShape("LlamaForCausalLM", 22, 2048, 32, 4, 64, 5632, 32000, 2048)


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
    weight_bytes=st.sampled_from([0.5625, 1, 2, 4]),
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
