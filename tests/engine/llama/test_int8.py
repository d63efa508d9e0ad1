"""Eight-bit products: near the exact ones, and none can change another's bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from gennode.engine.llama import int8
from gennode.engine.llama.int8 import LEVELS, Desk, Kernel, find_kernel, make_int8, quantise

SIZES = [(2048, 512), (5632, 256), (300, 70)]
KERNELS = {
    "fbgemm": Kernel("fbgemm", LEVELS, int8._pack_fbgemm, int8._run_fbgemm),
    "onednn": Kernel("onednn", LEVELS, int8._pack_onednn, int8._run_onednn),
}


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """Each kernel that is right here, as if it were the only one."""
    found = KERNELS[request.param]
    if not int8._is_right(found):
        pytest.skip(f"{found.name} is not here, or its sums overflow")
    monkeypatch.setattr(int8, "find_kernel", lambda: found)
    with torch.inference_mode():
        yield found


def hard_rows(count: int, width: int) -> torch.Tensor:
    """What trained models have: a channel that is large everywhere, single large rows, and rows
    with some massive values; and a row of zeros."""
    rows = torch.randn((count, width), generator=torch.Generator().manual_seed(2))
    rows[:, 17] *= 60
    rows[3] *= 50
    rows[5, :16] *= 80
    rows[9] = 0
    return rows


def weights(width: int, outputs: int) -> torch.Tensor:
    return 0.02 * torch.randn((outputs, width), generator=torch.Generator().manual_seed(1))


def errors(found: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    exact = rows.double() @ weight.double().T
    missed, size = torch.linalg.vector_norm(found - exact, dim=1), exact.norm(dim=1)
    relative: torch.Tensor = missed / size.clamp_min(1e-9)
    return relative


@pytest.mark.parametrize(("width", "outputs"), SIZES)
def test_errors_are_small_with_and_without_large_values(
    kernel: Kernel, width: int, outputs: int
) -> None:
    weight = weights(width, outputs)
    linear = make_int8(weight, None, Desk())
    normal = torch.randn((64, width), generator=torch.Generator().manual_seed(3))
    for rows in (normal, hard_rows(64, width)):
        error = errors(linear(rows), rows, weight)
        assert error.median() < 0.016
        assert error.max() < 0.035


@pytest.mark.parametrize(("width", "outputs"), SIZES)
def test_a_rows_bits_do_not_depend_on_the_other_rows(
    kernel: Kernel, width: int, outputs: int
) -> None:
    linear = make_int8(weights(width, outputs), torch.randn(outputs), Desk())
    rows = hard_rows(64, width)
    together = linear(rows)
    for count in (1, 3, 8):
        for start in range(0, 64 - count, count):
            part = linear(rows[start : start + count])
            assert torch.equal(part, together[start : start + count])
    backwards = linear(rows.flip(0))
    assert torch.equal(backwards.flip(0), together)


def test_a_row_that_is_not_finite_spoils_no_other(kernel: Kernel) -> None:
    linear = make_int8(weights(2048, 256), None, Desk())
    rows = hard_rows(32, 2048)
    expected = linear(rows)
    for bad in (np.inf, -np.inf, np.nan):
        broken = rows.clone()
        broken[20, 100] = bad
        broken[21] = bad
        found = linear(broken)
        others = [index for index in range(32) if index not in (20, 21)]
        assert torch.equal(found[others], expected[others])
        assert found[20:22].isnan().all()


def test_a_bias_is_added_exactly(kernel: Kernel) -> None:
    weight, bias = weights(300, 70), torch.randn(70)
    rows = hard_rows(12, 300)
    plain, biased = make_int8(weight, None, Desk()), make_int8(weight, bias, Desk())
    assert torch.equal(biased(rows), plain(rows) + bias)


def test_weights_have_a_scale_per_output() -> None:
    weight = weights(300, 70)
    weight[8] *= 1000
    codes, scales = quantise(weight, LEVELS)
    assert codes[:, 300:].abs().max() == 0
    assert (codes.abs().amax(dim=1) == LEVELS).all()
    assert ((codes[:, :300] * scales[:, None] - weight).abs() <= 0.501 * scales[:, None]).all()


def test_a_kernel_whose_sums_overflow_is_found_out() -> None:
    def saturating(rows: torch.Tensor, packed: object) -> torch.Tensor:
        return int8._run_onednn(rows, packed).clamp(-32768, 32767)

    assert not int8._is_right(Kernel("bad", LEVELS, int8._pack_onednn, saturating))


def test_this_machine_has_a_kernel() -> None:
    found = find_kernel()
    assert found is not None
    assert found.levels in (LEVELS, LEVELS // 2)
