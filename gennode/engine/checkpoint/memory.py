"""Tensors in memory of their own, that goes back to the system with them."""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def copied(mapped: torch.Tensor) -> torch.Tensor:
    """A tensor that does not look through at its file, which may be truncated later."""
    if mapped.ndim == 0:
        return mapped.clone()
    return new_tensor(tuple(mapped.shape), mapped.dtype).copy_(mapped)


def new_tensor(size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory of its own that goes back to the system when the tensor is dropped.

    Most weights are repacked and then dropped; on the C heap the holes that they leave among
    their packed forms added a third to what a loaded model takes.
    """
    import torch  # not sooner: a node that opens a folder reads no tensor of it

    try:
        buffer = mmap.mmap(-1, math.prod(size) * dtype.itemsize)
    except OSError as error:
        raise MemoryError(f"no memory for a tensor of {size}") from error
    return torch.frombuffer(buffer, dtype=dtype).view(size)
