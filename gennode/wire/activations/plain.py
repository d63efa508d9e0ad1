"""Codecs of one float per number: raw, bf16.

raw     dim × f32
bf16    dim × bf16, rounded to nearest, ties to even; what would round to infinity is ± the
        largest finite bf16 (0x7F7F)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gennode.errors import LocalError, RemoteError
from gennode.wire.activations.contract import (
    Buffer,
    FixedWidth,
    Rows,
    check_finite,
    check_shape,
    magnitudes,
)
from gennode.wire.fields import CodecName

_BF16_INFINITE = 0x7F80
_BF16_LARGEST = np.uint32(0x7F7F)

Halves = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Raw(FixedWidth):
    """float32 as it is."""

    name: CodecName = "raw"

    def row_bytes(self, dim: int) -> int:
        """Bytes that one token takes."""
        return 4 * dim

    def encode(self, states: Rows) -> bytes:
        """Rows to bytes; LocalError if a value is not finite or a shape is wrong."""
        check_shape(states)
        check_finite(magnitudes(states))
        return states.astype("<f4", copy=False).tobytes()

    def decode(self, payload: Buffer, dim: int, rows: int | None = None) -> Rows:
        """Bytes to rows, a new array; RemoteError if a value is not finite."""
        states = self.table(payload, dim, rows).view("<f4").astype(np.float32)
        try:
            check_finite(magnitudes(states))
        except LocalError as error:
            raise RemoteError("a frame holds a value that is not finite") from error
        return states


@dataclass(frozen=True)
class Bf16(FixedWidth):
    """The upper half of each float32, rounded."""

    name: CodecName = "bf16"

    def row_bytes(self, dim: int) -> int:
        """Bytes that one token takes."""
        return 2 * dim

    def encode(self, states: Rows) -> bytes:
        """Rows to bytes; LocalError if a value is not finite or a shape is wrong."""
        check_shape(states)
        check_finite(magnitudes(states))
        return to_bf16(states).astype("<u2", copy=False).tobytes()

    def decode(self, payload: Buffer, dim: int, rows: int | None = None) -> Rows:
        """Bytes to rows, a new array; RemoteError if a value is not finite."""
        return from_bf16(self.table(payload, dim, rows).view("<u2"))


def to_bf16(states: Rows) -> Halves:
    """Bits of the nearest bf16 of finite numbers, ties to even, held within the finite."""
    bits = states.view(np.uint32)
    halves = bits >> 16
    odd = halves & 1
    odd += 0x7FFF
    odd += bits  # no overflow: the numbers are finite
    odd >>= 16
    beyond = (odd & 0x7FFF) > _BF16_LARGEST
    if beyond.any():
        odd[beyond] = (odd[beyond] & 0x8000) | _BF16_LARGEST
    return odd.astype(np.uint16)


def from_bf16(halves: Halves) -> Rows:
    """The numbers of such bits; RemoteError if one is not finite."""
    if halves.size and np.maximum.reduce(halves & 0x7FFF, axis=None) >= _BF16_INFINITE:
        raise RemoteError("a frame holds a value that is not finite")
    bits = halves.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)
