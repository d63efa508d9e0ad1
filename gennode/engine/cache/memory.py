"""One layer's keys and values in memory: as numbers, or as 8-bit codes with scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

_LEAST_SCALE = 2.0**-24  # the least that fp16 tells from 0
_MOST_SCALE = 65504.0  # the most
_CODES = 127


class LayerMemory(Protocol):
    """Slots for keys and values; states to be stored are [kv_heads, rows, width].

    `parts`: all that it holds, each [kv_heads, slots, …], for copies from slot to slot.
    """

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """The tensors that every slot has a row in."""

    def write(self, slots: slice | torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store rows in slots that follow each other, or in those of an index [rows]."""

    def view(self, slot: int, positions: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rows that follow each other as they lie in memory; None if they have to be decoded."""

    def decode(self, slots: slice, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the rows of `slots` to two tensors [kv_heads, rows, width]."""


@dataclass(frozen=True)
class FloatMemory:
    """Keys and values as they are, each [kv_heads, slots, width]."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """Keys and values."""
        return self.keys, self.values

    def write(self, slots: slice | torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store rows, cast to this memory's dtype."""
        _put(self.keys, slots, keys.to(self.keys.dtype))
        _put(self.values, slots, values.to(self.values.dtype))

    def view(self, slot: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The memory itself."""
        return self.keys.narrow(1, slot, positions), self.values.narrow(1, slot, positions)

    def decode(self, slots: slice, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copy rows."""
        keys.copy_(self.keys[:, slots])
        values.copy_(self.values[:, slots])


@dataclass(frozen=True)
class Codes:
    """Numbers in 8 bits: `codes` [kv_heads, slots, width], `scales` fp16 [kv_heads, slots].

    A row is divided by what its channels usually are (`usual`, [kv_heads, 1, width]), then by
    its largest number: `codes` × `scales` × `usual`. That gains what scales per channel do
    (KIVI, arXiv:2402.02750), without its pages: a row's codes don't depend on its neighbours,
    so a step that is repeated gives the same bits.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    usual: torch.Tensor | None

    def write(self, slots: slice | torch.Tensor, rows: torch.Tensor) -> None:
        """Round rows to codes: half a scale off at most, beside what fp16 scales are off."""
        rows = rows.float() if self.usual is None else rows / self.usual
        scales = rows.abs().amax(-1).div_(_CODES).clamp_(_LEAST_SCALE, _MOST_SCALE).half()
        rows = rows / scales.float()[..., None]
        _put(self.codes, slots, rows.round_().clamp_(-_CODES, _CODES).to(torch.int8))
        _put(self.scales, slots, scales)

    def decode(self, slots: slice, rows: torch.Tensor) -> None:
        """Codes to numbers, in place: converting first is quicker than a product of dtypes."""
        rows.copy_(self.codes[:, slots])
        rows.mul_(self.scales[:, slots, None])
        if self.usual is not None:
            rows.mul_(self.usual)


@dataclass(frozen=True)
class CodeMemory:
    """Keys and values in 8 bits and a scale per head and position."""

    keys: Codes
    values: Codes

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """Codes and scales of the keys, then of the values."""
        return self.keys.codes, self.keys.scales, self.values.codes, self.values.scales

    def write(self, slots: slice | torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store rows, rounded."""
        self.keys.write(slots, keys)
        self.values.write(slots, values)

    def view(self, slot: int, positions: int) -> None:
        """There is nothing to look at before it is decoded."""
        return

    def decode(self, slots: slice, keys: torch.Tensor, values: torch.Tensor) -> None:
        """What the codes stand for."""
        self.keys.decode(slots, keys)
        self.values.decode(slots, values)


@dataclass(frozen=True)
class Usual:
    """How large a layer's keys and values usually are: [kv_heads, width] each, above 0.

    Its weights tell: behind a norm, channel c of `W x` is as large as the length of row c of
    W times the norm's weights. Rotary embeddings mix a channel with the one half a head away.
    """

    keys: torch.Tensor
    values: torch.Tensor


def make_memory(
    size: tuple[int, int, int], dtype: torch.dtype, device: torch.device, usual: Usual | None = None
) -> LayerMemory:
    """Memory for [kv_heads, slots, width], not yet filled; `torch.int8` means codes.

    RuntimeError or MemoryError if there is none.
    """
    if dtype != torch.int8:
        keys, values = (torch.empty(size, dtype=dtype, device=device) for _ in range(2))
        return FloatMemory(keys, values)

    def codes(usually: torch.Tensor | None) -> Codes:
        return Codes(
            torch.empty(size, dtype=torch.int8, device=device),
            torch.empty(size[:2], dtype=torch.float16, device=device),
            None if usually is None else usually.float().to(device)[:, None],
        )

    if usual is None:
        return CodeMemory(codes(None), codes(None))
    return CodeMemory(codes(usual.keys), codes(usual.values))


def _put(part: torch.Tensor, slots: slice | torch.Tensor, rows: torch.Tensor) -> None:
    if isinstance(slots, slice):
        part[:, slots] = rows
    else:
        part.index_copy_(1, slots, rows)  # quicker than to assign by an index
