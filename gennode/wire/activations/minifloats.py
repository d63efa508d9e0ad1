"""Codecs of small floats under a scale per block: fp8, and the Microscaling formats of OCP.

    fp8      ceil(dim / 128) × f16 scale | dim × e4m3
    mxfp8    ceil(dim / 32) × e8m0 scale | dim × e4m3
    mxfp6    ceil(dim / 32) × e8m0 scale | dim × e2m3, six bits each, see `packing`
    mxfp4    ceil(dim / 32) × e8m0 scale | dim × e2m1, four bits each, see `packing`

OCP Microscaling Formats (MX) v1.0, 2023, and OCP 8-bit Floating Point (OFP8) v1.0, 2023. An
element is sign | exponent | mantissa from the highest bit on; an exponent field of 0 means
subnormal. Exponents are biased by 7 (e4m3) or 1; there is no infinity, and NaN, which only e4m3
has, is never sent.

The last block may be short. fp8: scale = f16(min(f32(max |x| / 448), 65504)), and all elements
are zeros where it is 0. MX (section 6.3): scale = 2 ** (floor(log2(max |x|)) − e), where e
is the exponent of the largest element (8 for e4m3, 2 for the others), as a byte that is 127
higher; at least 0, so also for a block of zeros. The element is the nearest to f32(x / scale),
ties to the even mantissa; beyond the largest it is the largest; it keeps the sign of x, even as a
zero. The value that comes back is f32(element × scale).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gennode.errors import RemoteError
from gennode.wire.activations.contract import (
    MAGNITUDE,
    Buffer,
    Bytes,
    FixedWidth,
    Rows,
    Words,
    any_of,
    blocks_of,
    check_finite,
    check_shape,
    tiles,
)
from gennode.wire.activations.outliers import F16_MAX
from gennode.wire.activations.packing import pack, packed_bytes, unpack
from gennode.wire.fields import CodecName

_F16_LARGEST = 0x7BFF
_F32_BIAS, _F32_MANTISSA = 127, 23


@dataclass(frozen=True)
class Element:
    """A small float without infinities. `largest`: code of the largest number."""

    exponent_bits: int
    mantissa_bits: int
    bias: int
    largest: int

    @property
    def bits(self) -> int:
        """Bits of a code, the sign among them."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def emax(self) -> int:
        """Exponent of the largest number."""
        return (self.largest >> self.mantissa_bits) - self.bias

    def values(self) -> Rows:
        """The number of each code, shape [2 ** bits]; NaN where it is none."""
        code = np.arange(1 << (self.bits - 1))
        exponent, mantissa = code >> self.mantissa_bits, code & ((1 << self.mantissa_bits) - 1)
        hidden = (exponent > 0) << self.mantissa_bits
        shift = np.maximum(exponent, 1) - self.bias - self.mantissa_bits
        positive = np.ldexp((hidden + mantissa).astype(np.float32), shift).astype(np.float32)
        positive[self.largest + 1 :] = np.nan
        return np.concatenate([positive, -positive])

    def encode(self, numbers: Rows) -> Bytes:
        """The nearest element of each finite number."""
        bits = numbers.view(np.int32)
        magnitude = bits & MAGNITUDE
        shift = _F32_MANTISSA - self.mantissa_bits
        # To nearest, ties to even, at the last mantissa bit that stays; a carry into the exponent
        # is right. Below the normal numbers the step is constant, so that adding a number whose
        # last bit is worth a step does the same.
        code = magnitude >> shift
        code &= 1
        code += magnitude
        code += (1 << shift - 1) - 1
        code >>= shift
        code -= _F32_BIAS - self.bias << self.mantissa_bits
        step = np.float32(2.0 ** (_F32_MANTISSA + 1 - self.bias - self.mantissa_bits))
        is_small = magnitude < np.float32(2.0 ** (1 - self.bias)).view(np.int32)
        small = magnitude.view(np.float32) + step
        np.copyto(code, small.view(np.int32) - step.view(np.int32), where=is_small)
        np.minimum(code, self.largest, out=code)
        code |= (bits < 0).astype(np.int32) << self.bits - 1
        return code.astype(np.uint8)


E4M3 = Element(exponent_bits=4, mantissa_bits=3, bias=7, largest=0x7E)
E2M3 = Element(exponent_bits=2, mantissa_bits=3, bias=1, largest=0x1F)
E2M1 = Element(exponent_bits=2, mantissa_bits=1, bias=1, largest=0x07)


@dataclass(frozen=True)
class Minifloats(FixedWidth):
    """Elements under a scale for each `block`; `is_mx`: scales are powers of two, not f16."""

    name: CodecName
    element: Element
    block: int
    is_mx: bool

    def row_bytes(self, dim: int) -> int:
        """Bytes that one token takes."""
        return self._scale_bytes(dim) + packed_bytes(dim, self.element.bits)

    def encode(self, states: Rows) -> bytes:
        """Rows to bytes; LocalError if a value is not finite or a shape is wrong."""
        check_shape(states)
        rows, dim = states.shape
        payload = np.empty((rows, self.row_bytes(dim)), np.uint8)
        for start, end in tiles(rows, dim):
            self._encode(states[start:end], payload[start:end])
        return payload.tobytes()

    def _encode(self, states: Rows, target: Bytes) -> None:
        rows, dim = states.shape
        blocks, scale_bytes = blocks_of(dim, self.block), self._scale_bytes(dim)
        padded = np.zeros((rows, blocks * self.block), np.float32)
        padded[:, :dim] = states
        cut = padded.reshape(rows, blocks, self.block)
        largest = np.maximum.reduce(cut.view(np.int32) & MAGNITUDE, axis=2)
        check_finite(largest)
        stored, used = self._power(largest) if self.is_mx else self._fraction(largest)
        np.divide(cut, used[:, :, None], out=cut)
        target[:, :scale_bytes] = stored.view(np.uint8)
        pack(self.element.encode(padded)[:, :dim], self.element.bits, target[:, scale_bytes:])

    def _power(self, largest: Words) -> tuple[Bytes, Rows]:
        byte = np.maximum((largest >> _F32_MANTISSA) - self.element.emax, 0).astype(np.uint8)
        return byte, _powers()[byte]

    def _fraction(self, largest: Words) -> tuple[npt.NDArray[np.float16], Rows]:
        top = np.float32(self.element.values()[self.element.largest])
        stored = np.minimum(largest.view(np.float32) / top, F16_MAX).astype("<f2")
        used = stored.astype(np.float32)
        used[used == 0] = np.inf
        return stored, used

    def decode(self, payload: Buffer, dim: int, rows: int | None = None) -> Rows:
        """Bytes to rows, a new array; RemoteError if no encoder can have written them."""
        table = self.table(payload, dim, rows)
        states = np.empty((len(table), dim), np.float32)
        for start, end in tiles(len(table), dim):
            self._decode(table[start:end], states[start:end])
        return states

    def _decode(self, table: Bytes, states: Rows) -> None:
        dim, scale_bytes = states.shape[1], self._scale_bytes(states.shape[1])
        scales = self._scales(table[:, :scale_bytes])
        codes = unpack(table[:, scale_bytes:], self.element.bits, dim)
        if any_of((codes & (1 << self.element.bits - 1) - 1) > self.element.largest):
            raise RemoteError("a frame holds an element that is no number")
        np.take(_values(self.element), codes, out=states, mode="clip")
        states *= np.repeat(scales, self.block, axis=1)[:, :dim]

    def _scales(self, stored: Bytes) -> Rows:
        if self.is_mx:
            # With a higher one the largest element would be beyond float32.
            if any_of(stored > 254 - self.element.emax):
                raise RemoteError("a frame's scale is higher than any that is written")
            return _powers()[stored]
        bits = np.ascontiguousarray(stored).view("<u2")
        if any_of(bits > _F16_LARGEST):
            raise RemoteError("a frame's scale is not a finite, positive number")
        return bits.view("<f2").astype(np.float32)

    def _scale_bytes(self, dim: int) -> int:
        return blocks_of(dim, self.block) * (1 if self.is_mx else 2)


@lru_cache
def _values(element: Element) -> Rows:
    return element.values()


@lru_cache
def _powers() -> Rows:
    """The number of each e8m0 byte but 255, which is NaN; 2 ** −127 is subnormal, and exact."""
    return np.ldexp(np.ones(255, np.float32), np.arange(255) - _F32_BIAS).astype(np.float32)
