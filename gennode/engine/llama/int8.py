"""Products of 8-bit weights with 8-bit rows, of which none can change another's bits.

Each row is divided by its own largest value (W8A8 with a scale per row and per output), and its
sums are whole numbers, so that they don't depend on the order of adding, nor on other rows.

A few values of a trained model's states are a hundred times larger than the others, and one
scale for both would leave nothing of the small ones. Such a row is computed as the sum of two:
its large values, and what is left of all of them. That needs no list of large channels (as
LLM.int8 does, arXiv:2208.07339) and costs nothing where reading the weights is what takes time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from gennode.engine.llama.linear import Linear
from gennode.errors import DeviceError

Packed = Any
"""Weights in whatever form a kernel wants them."""

LEVELS = 127  # of rows, on either side of zero
_GRID = 127.5  # a kernel that is shown the range −1 to 1 makes 255 steps of it

# A row's largest value, as multiples of its mean. Normal rows reach 5, and 16 make an error of
# 0.03; beyond that a row is parted at 6, and its rest has an error as if it were normal. What
# comes from a product of two, as before the last linear of a layer, has long tails by nature:
# there 40 make no more of an error, and parting at 16 gained nothing on trained models.
WIDE_RATIO = 16.0
LONG_TAILED_RATIO = 40.0
PART_RATIO = 6.0

# Two of these features are always +1 and −1, so that each call sees one range; kernels take 16
# at once, and are not left with a part of that.
_FEATURES = 16

_BLOCK_ROWS = 1024  # of weights quantised at once: as small as what is held twice should be
_TINY = 1e-30  # divides rows of zeros

_DEPRECATED = r"torch\.quantize_per_tensor, torch\.quantize_per_channel and other"


@dataclass(frozen=True)
class Kernel:
    """One library's product.

    `levels`: of weights, on either side of zero, so that no sum inside overflows here.
    `pack`: codes int8 [out, in] and scales fp32 [out] to what `run` takes; `run`: rows fp32
    [rows, in] in [−1, 1] to fp32 [rows, out].
    """

    name: str
    levels: int
    pack: Callable[[torch.Tensor, torch.Tensor], Packed]
    run: Callable[[torch.Tensor, Packed], torch.Tensor]


@dataclass(frozen=True)
class _Rows:
    """Rows in [−1, 1], the large parts of some of them below, and what to multiply with.

    `wide`: which rows have a large part, and those parts' scales; None if no row has.
    """

    rows: torch.Tensor
    scale: torch.Tensor
    wide: tuple[torch.Tensor, torch.Tensor] | None


class Desk:
    """Where rows are made ready. One for all products that run in one thread."""

    def __init__(self) -> None:
        self._tiny = torch.full((1, 1), _TINY)
        self._space: dict[int, torch.Tensor] = {}
        self._views: dict[int, tuple[int, torch.Tensor, torch.Tensor]] = {}

    def lay_out(self, rows: torch.Tensor, wide_ratio: float) -> _Rows:
        """Rows fp32 [rows, in], ready for a kernel; valid until the next call."""
        count, width = rows.shape
        sizes = rows.abs()
        largest, total = sizes.amax(-1, keepdim=True), sizes.sum(-1, keepdim=True)
        scale = torch.add(self._tiny, largest, alpha=_GRID / LEVELS)
        over = torch.sub(largest, total, alpha=wide_ratio / width)
        if over.amax().item() <= 0:  # false for numbers that aren't
            ready, inner = self._take(count, width)
            torch.div(rows, scale, out=inner)
            return _Rows(ready, scale, None)
        wide = torch.nonzero((over <= 0).logical_not()[:, 0])[:, 0]
        ready, inner = self._take(count + len(wide), width)
        torch.div(rows, scale, out=inner[:count])
        picked, reach = rows[wide], largest[wide]
        codes = torch.round(picked * (LEVELS / reach))
        codes[picked.abs() <= total[wide] * (PART_RATIO / width)] = 0
        rest = picked - codes * (reach / LEVELS)
        rest_scale = (rest.abs().amax(-1, keepdim=True) * (_GRID / LEVELS)).add_(_TINY)
        # What is not finite must not reach the kernel: it would change the range of all rows.
        finite = reach.isfinite()
        inner[wide] = torch.where(finite, rest / rest_scale, 0.0)
        inner[count:] = torch.where(finite, codes / _GRID, 0.0)
        scale[wide] = torch.where(finite, rest_scale, torch.nan)
        return _Rows(ready, scale, (wide, reach * (_GRID / LEVELS)))

    def _take(self, rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Space for so many rows, and the part of it that values go to."""
        views = self._views.get(width)
        if views is None or views[0] != rows:
            space = self._space.get(width)
            if space is None or len(space) < rows:
                space = torch.zeros(rows, padded(width))
                space[:, width], space[:, width + 1] = 1, -1
                self._space[width] = space
            views = rows, space[:rows], space[:rows, :width]
            self._views[width] = views
        return views[1], views[2]


def padded(width: int) -> int:
    """Features that a kernel is given for so many values."""
    return -(-(width + 2) // _FEATURES) * _FEATURES


def make_int8(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    desk: Desk,
    *,
    wide_ratio: float = WIDE_RATIO,
) -> Linear:
    """`x @ weight.T + bias` in 8 bits; weight fp32 [out, in], bias fp32 [out] or None.

    Rows whose largest value is over `wide_ratio` of their mean are computed in two parts.
    A row's result is the same to the last bit whatever other rows are there. Against fp32 the
    median error is 1.3 % on normal rows. DeviceError if no kernel here computes it rightly.
    """
    kernel = find_kernel()
    if kernel is None:
        raise DeviceError("this build of torch has no 8-bit product that is right here",
                          hint="take the precision fp32, or another torch")  # fmt: skip
    packed = kernel.pack(*quantise(weight, kernel.levels))
    run = kernel.run

    def product(rows: torch.Tensor) -> torch.Tensor:
        laid = desk.lay_out(rows, wide_ratio)
        result = run(laid.rows, packed)
        if laid.wide is not None:
            which, scale = laid.wide
            above = result[len(rows) :] * scale
            result = result[: len(rows)].mul_(laid.scale)
            result[which] += above
        else:
            result.mul_(laid.scale)
        return result if bias is None else result.add_(bias)

    return product


def quantise(weight: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 [out, padded in] and scales fp32 [out] of fp32 [out, in]."""
    outputs, width = weight.shape
    codes = torch.zeros((outputs, padded(width)), dtype=torch.int8)
    scales = torch.empty(outputs)
    for start in range(0, outputs, _BLOCK_ROWS):
        block = weight[start : start + _BLOCK_ROWS]
        scale = (block.abs().amax(-1) / levels).clamp_min_(_TINY)
        codes[start : start + _BLOCK_ROWS, :width] = (block / scale[:, None]).round_()
        scales[start : start + _BLOCK_ROWS] = scale
    return codes, scales


@cache
def find_kernel() -> Kernel | None:
    """The first kernel that is right on this machine, or None.

    Without an instruction for it (VNNI), products of two codes are added in 16 bits and may
    overflow in silence; then weights get half as many levels.
    """
    for levels in (LEVELS, LEVELS // 2):
        for kernel in (
            Kernel("fbgemm", levels, _pack_fbgemm, _run_fbgemm),
            Kernel("onednn", levels, _pack_onednn, _run_onednn),
        ):
            if _is_right(kernel):
                return kernel
    return None


def _is_right(kernel: Kernel) -> bool:
    """Whether the largest numbers there can be give what they should."""
    width, outputs = 512, 64
    codes = torch.zeros((outputs, padded(width)), dtype=torch.int8)
    codes[:, :width] = kernel.levels
    rows = torch.zeros((3, padded(width)))
    rows[:, width], rows[:, width + 1] = 1, -1
    rows[0, :width], rows[1, :width] = LEVELS / _GRID, -LEVELS / _GRID
    try:
        found = kernel.run(rows, kernel.pack(codes, torch.ones(outputs)))
    except (AttributeError, RuntimeError):
        return False
    expected = width * kernel.levels * LEVELS / _GRID
    wanted = torch.tensor([expected, -expected, 0.0])[:, None].expand_as(found)
    return torch.allclose(found, wanted, rtol=1e-5, atol=1e-3)


def _pack_fbgemm(codes: torch.Tensor, scales: torch.Tensor) -> Packed:
    zeros = torch.zeros(len(codes), dtype=torch.int64)
    with warnings.catch_warnings():
        # Known, and provided for: `find_kernel` goes on to the next one when these are gone.
        warnings.filterwarnings("ignore", message=_DEPRECATED, category=UserWarning)
        weight = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
    packed: Packed = torch.ops.quantized.linear_prepack(weight, None)
    return packed


def _run_fbgemm(rows: torch.Tensor, packed: Packed) -> torch.Tensor:
    """The range, and with it a code's meaning, is that of all rows: [−1, 1] by two features."""
    result: torch.Tensor = torch.ops.quantized.linear_dynamic(rows, packed, False)
    return result


def _pack_onednn(codes: torch.Tensor, scales: torch.Tensor) -> Packed:
    packed = torch.ops.onednn.qlinear_prepack(codes, None)
    return packed, scales, torch.zeros(len(codes), dtype=torch.int64)


def _run_onednn(rows: torch.Tensor, packed: Packed) -> torch.Tensor:
    weight, scales, zeros = packed
    # Of signed codes it makes 700 ms where it takes 1 of unsigned ones.
    codes = torch.mul(rows, _GRID).round_().add_(128).clamp_(0, 255).to(torch.uint8)
    result: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1 / _GRID, 128, weight, scales, zeros,
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return result
