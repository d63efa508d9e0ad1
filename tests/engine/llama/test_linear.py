"""The fast product gives what the plain one gives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from gennode.engine.llama.linear import PACKED_MIN_ELEMENTS, make_linear


@pytest.mark.parametrize("columns", [16, PACKED_MIN_ELEMENTS // 512])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 9])
def test_a_linear_is_a_matrix_product(columns: int, biased: bool, rows: int) -> None:
    chance = torch.Generator().manual_seed(1)
    weight = torch.randn((512, columns), generator=chance)
    bias = torch.randn(512, generator=chance) if biased else None
    states = torch.randn((rows, columns), generator=chance)
    with torch.inference_mode():
        linear = make_linear(weight, bias)
        found = linear(states)
        assert torch.equal(linear(states), found)
    expected = functional.linear(
        states.double(), weight.double(), None if bias is None else bias.double()
    )
    assert (found - expected).norm() / expected.norm() < 1e-6
