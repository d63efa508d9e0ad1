"""In what numbers a machine can multiply, and what makes a linear of weights in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from gennode.engine.llama.int8 import LEVELS, LONG_TAILED_RATIO, Desk, find_kernel, make_int8
from gennode.engine.llama.linear import Linear, can_pack, make_linear
from gennode.engine.seam import Precision
from gennode.errors import DeviceError

MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], Linear]


@dataclass(frozen=True)
class Arithmetic:
    """How layers are computed on one device.

    `name`: weights and arithmetic, for a compute class. `weight_dtype`: what weights are read
    in; `weight_bytes`: what one takes once it is loaded. `linear`: from a weight of that dtype
    and a bias in fp32; `long_tailed`: the same for inputs that are products of two.
    """

    precision: Precision
    name: str
    weight_dtype: torch.dtype
    weight_bytes: int
    linear: MakeLinear
    long_tailed: MakeLinear


def arithmetic(precision: Precision, device: torch.device) -> Arithmetic:
    """What this precision means here; DeviceError where it is missing, or slower than fp32."""
    if precision not in available(device):
        names = ", ".join(available(device))
        raise DeviceError(f"{precision} can't be computed on {device.type} here",
                          hint=f"take one of {names}")  # fmt: skip
    if precision == "int8":
        kernel, desk = find_kernel(), Desk()
        # Other weights than elsewhere give other results, which nobody must take for a lie.
        name = "int8" if kernel and kernel.levels == LEVELS else "int7"
        return Arithmetic(
            precision=precision,
            name=name,
            weight_dtype=torch.float32,
            weight_bytes=1,
            linear=partial(make_int8, desk=desk),
            long_tailed=partial(make_int8, desk=desk, wide_ratio=LONG_TAILED_RATIO),
        )
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = dtypes[precision]
    return Arithmetic(precision, precision, dtype, dtype.itemsize, make_linear, make_linear)


def available(device: torch.device) -> tuple[Precision, ...]:
    """The precisions that layers can be computed in on this device, the most exact first."""
    if device.type != "cpu":
        return ("fp32", "bf16", "fp16")
    found: list[Precision] = ["fp32"]
    if _has_bf16():
        found.append("bf16")
    if find_kernel() is not None:
        found.append("int8")
    return tuple(found)


def _has_bf16() -> bool:
    """Whether the processor multiplies bf16. Without that it takes six times as long as fp32."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return can_pack() and any(getattr(torch.cpu, name, _never)() for name in tests)


def _never() -> bool:
    return False
