"""The default codec's encoder on a device: the bits of `gennode.wire.activations`, in torch.

A device that returned float32 rows would send 16 KiB per token of dim 4096 over its bus; rows
that are encoded there take 4.2 KiB, copied to pinned memory while the device goes on. The same
operations run on CPU tensors, which is how their bits are compared with numpy's.
"""

from __future__ import annotations

import torch

from gennode.errors import LocalError
from gennode.wire.activations import BLOCK, OUTLIERS, codec

_TOP = 127.0
_F16_MAX = 65504.0
_INDEX_BITS = 16


def encode_rows(states: torch.Tensor) -> torch.Tensor:
    """Finite float32 rows [rows, dim] as int8-outlier bytes, uint8 [rows, row_bytes], same device.

    Only single operations that are rounded to nearest: compiled or fused they might divide by
    reciprocals, and give other bits.
    """
    rows, dim = states.shape
    magnitude = states.contiguous().view(torch.int32) & 0x7FFF_FFFF
    place = torch.arange(dim, device=states.device)
    key = (magnitude.long() << _INDEX_BITS) | ((1 << _INDEX_BITS) - 1 - place)  # ties: the lowest
    index = key.topk(min(OUTLIERS, dim), dim=1).indices.sort(dim=1).values
    values = states.gather(1, index).clamp(-_F16_MAX, _F16_MAX).half()
    rest = torch.nn.functional.pad(states, (0, -dim % BLOCK)).scatter(1, index, 0.0)
    cut = rest.reshape(rows, -1, BLOCK)
    # A divisor on the device: by a number of Python's, CUDA multiplies with the reciprocal.
    top = torch.full((1,), _TOP, device=states.device)
    scale = (cut.abs().amax(dim=2) / top).clamp(max=_F16_MAX).half()
    used = scale.float()
    used = used.masked_fill(used == 0, torch.inf)
    codes = (cut / used[:, :, None]).round().clamp(-_TOP, _TOP).to(torch.int8)
    parts = (index.to(torch.int16), values, scale, codes.reshape(rows, -1)[:, :dim].contiguous())
    return torch.cat([part.view(torch.uint8) for part in parts], dim=1)


class Outgoing:
    """One step's states on their way out of a CUDA device, in pinned memory that is kept.

    `start` returns at once; until `payload` was called nothing else may be started.
    """

    def __init__(self, max_rows: int, dim: int) -> None:
        width = codec("int8-outlier").row_bytes(dim)
        self._pinned = torch.empty((max_rows, width), dtype=torch.uint8, pin_memory=True)
        self._finite = torch.empty(1, dtype=torch.bool, pin_memory=True)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._rows = 0

    def start(self, states: torch.Tensor) -> None:
        """Queue the encoding and the copy of [rows, dim] behind what computes the states."""
        self._rows = len(states)
        self._finite.copy_(states.isfinite().all().reshape(1), non_blocking=True)
        self._pinned[: self._rows].copy_(encode_rows(states), non_blocking=True)
        self._done.record()

    def payload(self) -> bytes:
        """Wait for the copy alone; LocalError if a value was not finite."""
        self._done.synchronize()
        if not self._finite.item():
            raise LocalError(
                "states hold a value that is not finite", hint="are the weights sound?"
            )
        return self._pinned[: self._rows].numpy().tobytes()
