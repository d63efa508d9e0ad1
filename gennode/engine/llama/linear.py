"""One matrix product with constant weights, in the fastest form this machine has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

Linear = Callable[[torch.Tensor], torch.Tensor]
"""Rows of inputs, fp32 [rows, in], to rows of outputs, fp32 [rows, out], in memory of their own."""

# Below 2 MiB the weights stay in the processor's cache, and what the library does around a
# product costs more than a better layout saves.
PACKED_MIN_ELEMENTS = 512 * 1024


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """`x @ weight.T + bias`; weight [out, in] in any dtype, bias fp32 [out] or None.

    Large fp32 weights on a CPU are laid out for oneDNN, which reads them at the full speed of
    the memory: 2 rows take 0.3 and 32 rows 0.5 of the time of torch's own product. So are bf16
    weights of any size, for torch's own product of those is made for one row.
    """
    dtype = weight.dtype
    large = weight.numel() >= PACKED_MIN_ELEMENTS or dtype == torch.bfloat16
    product = _plain(weight)
    if weight.device.type == "cpu" and dtype != torch.float16 and large and can_pack():
        product = _packed(weight)
    if dtype == torch.float32:
        if bias is None:
            return product
        return lambda rows: product(rows).add_(bias)
    if bias is None:
        return lambda rows: product(rows.to(dtype)).float()
    return lambda rows: product(rows.to(dtype)).float().add_(bias)


def can_pack() -> bool:
    """Whether this build of torch has the operators that its own compiler uses for this."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and all(hasattr(torch.ops.mkldnn, name) for name in names)


def _packed(weight: torch.Tensor) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    product = torch.ops.mkldnn._linear_pointwise.default

    def run(rows: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = product(rows, packed, None, "none", [], "")
        return result

    return run


def _plain(weight: torch.Tensor) -> Linear:
    return lambda rows: functional.linear(rows, weight)
