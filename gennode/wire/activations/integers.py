"""Codecs of whole numbers under a scale per block: int8, int8-outlier, int6-outlier.

    int8           scales | codes
    int8-outlier   outliers | scales | codes
    int6-outlier   outliers | scales | codes

outliers: see `outliers`; they count as zero in their blocks. scales: ceil(dim / 64) × f16, one for
each 64 numbers (the last block may be short), f16(min(f32(max |x| / top), 65504)), where top is
127 for eight bits and 31 for six. codes: dim two's complement numbers of eight or six bits,
see `packing`. A code is rint(f32(x / scale)), held within ±top; 0 where the scale is 0. All
divisions are of float32, rounded to nearest, as are the steps to f16, ties to even. The value
that comes back is f32(code × scale), or the outlier.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gennode.errors import RemoteError
from gennode.wire.activations import outliers
from gennode.wire.activations.contract import (
    MAGNITUDE,
    Buffer,
    Bytes,
    FixedWidth,
    Rows,
    any_of,
    blocks_of,
    check_finite,
    check_shape,
    tiles,
)
from gennode.wire.activations.outliers import F16_MAX, F16_MAX_BITS, HalfWords
from gennode.wire.activations.packing import pack, packed_bytes, unpack
from gennode.wire.fields import CodecName

BLOCK = 64  # numbers that share a scale

# Added to a float32 below 2 ** 22 in size, it leaves the nearest whole number, ties to even, in
# the lowest bits of the sum, in two's complement.
_TO_WHOLE = np.array(1.5 * 2**23, np.float32)
_F16_NORMAL = np.array(2**-14, np.float32)  # the least normal f16
_F16_LARGEST = np.array(0x7BFF, np.uint16)  # bits of the largest
_LARGEST = {bits: np.array((1 << bits - 1) - 1, np.float32) for bits in (6, 8)}  # codes

Halves = npt.NDArray[np.float16]


class _Layout(NamedTuple):
    """Where what lies in a row. `signs`: which bits of outliers and scales, as words, have to be
    those of a finite f16: scales have no sign.
    """

    kept: int
    blocks: int
    head_bytes: int
    row_bytes: int
    signs: HalfWords


@lru_cache(maxsize=64)
def _layout(dim: int, bits: int, apart: bool) -> _Layout:
    kept, blocks = outliers.kept_of(dim) if apart else 0, blocks_of(dim, BLOCK)
    head_bytes = 4 * kept + 2 * blocks
    signs = np.repeat(np.array([0x7FFF, 0xFFFF], np.uint16), [kept, blocks])
    return _Layout(kept, blocks, head_bytes, head_bytes + packed_bytes(dim, bits), signs)


@dataclass(frozen=True)
class Integers(FixedWidth):
    """`bits`: of a code, 8 or 6. `apart`: whether outliers are sent apart."""

    name: CodecName
    bits: int
    apart: bool

    def row_bytes(self, dim: int) -> int:
        """Bytes that one token takes."""
        return _layout(dim, self.bits, self.apart).row_bytes

    def encode(self, states: Rows) -> bytes:
        """Rows to bytes; LocalError if a value is not finite or a shape is wrong."""
        check_shape(states)
        rows, dim = states.shape
        layout = _layout(dim, self.bits, self.apart)
        payload = np.empty((rows, layout.row_bytes), np.uint8)
        for start, end in tiles(rows, dim):
            self._encode(states[start:end], payload[start:end], layout)
        return payload.tobytes()

    def _encode(self, states: Rows, target: Bytes, layout: _Layout) -> None:
        rows, dim = states.shape
        kept, blocks, head_bytes, _, _ = layout
        rest = _padded(states, blocks * BLOCK)
        magnitude = np.bitwise_and(rest.view(np.int32), MAGNITUDE)
        head = target[:, :head_bytes].view("<u2")
        if kept:
            places, top = outliers.find(magnitude, kept)
            values = rest.reshape(-1)[places]
            outliers.write(values, places, rest.shape[1], head, top)
            magnitude.reshape(-1)[places] = 0
            rest.reshape(-1)[places] = 0.0
        largest = np.maximum.reduce(magnitude.reshape(-1, BLOCK), axis=1)
        if not kept:
            top = check_finite(largest)
        scale = self._divide(rest.reshape(-1, BLOCK), largest.view(np.float32), top)
        head.view("<f2")[:, 2 * kept :] = scale.reshape(rows, blocks)
        np.add(rest, _TO_WHOLE, out=rest)
        codes, whole = target[:, head_bytes:], rest.view(np.int32)
        if dim % BLOCK:
            whole = whole[:, :dim]
        if self.bits == 8:
            np.copyto(codes.view(np.int8), whole, casting="unsafe")
        else:
            small = whole.astype(np.uint8)
            small &= 63
            pack(small, self.bits, codes)

    def _divide(self, cut: Rows, largest: Rows, top: int) -> Halves:
        """Divide blocks by their scales, in place, and hold them within ± top; the scales.

        `top`: the largest magnitude of all, as bits.
        """
        scale = largest / self._largest
        if top > F16_MAX_BITS:
            np.minimum(scale, F16_MAX, out=scale)
        stored = scale.astype(np.float16)
        used = stored.astype(np.float32)
        if top <= F16_MAX_BITS and not any_of(used < _F16_NORMAL):
            # A scale that is a normal number is so close to max / top that no code is beyond it.
            np.divide(cut, used[:, None], out=cut)
            return stored
        used[used == 0] = np.inf
        np.divide(cut, used[:, None], out=cut)
        np.clip(cut, -self._largest, self._largest, out=cut)
        return stored

    def decode(self, payload: Buffer, dim: int, rows: int | None = None) -> Rows:
        """Bytes to rows, a new array; RemoteError if no encoder can have written them."""
        table = self.table(payload, dim, rows)
        states = np.empty((len(table), dim), np.float32)
        layout = _layout(dim, self.bits, self.apart)
        for start, end in tiles(len(table), dim):
            self._decode(table[start:end], states[start:end], layout)
        return states

    def _decode(self, table: Bytes, states: Rows, layout: _Layout) -> None:
        rows, dim = states.shape
        kept, blocks, head_bytes, _, signs = layout
        words = table[:, :head_bytes].view("<u2")
        numbers = words[:, kept:]
        if any_of((numbers & signs) > _F16_LARGEST):
            raise RemoteError("a frame's scale or outlier is not a finite number of its kind")
        codes = self._codes(table[:, head_bytes:], dim)
        if np.minimum.reduce(codes, axis=None) < self._least:
            raise RemoteError("a frame holds a code that no encoder writes")
        floats = numbers.view("<f2").astype(np.float32)
        np.copyto(states, codes)
        if dim % BLOCK:
            states *= np.repeat(floats[:, kept:], BLOCK, axis=1)[:, :dim]
        else:
            cut = states.reshape(rows, blocks, BLOCK)
            np.multiply(cut, floats[:, kept:, None], out=cut)
        if kept:
            outliers.restore(states, words[:, :kept], floats[:, :kept])

    def _codes(self, packed: Bytes, dim: int) -> npt.NDArray[np.int8]:
        if self.bits == 8:
            return packed.view(np.int8)
        codes = unpack(packed, self.bits, dim) << 2  # the sign into the highest bit, and back
        signed = codes.view(np.int8)
        signed >>= 2
        return signed

    @property
    def _largest(self) -> Rows:
        return _LARGEST[self.bits]

    @property
    def _least(self) -> int:
        return 1 - (1 << self.bits - 1)


def _padded(states: Rows, width: int) -> Rows:
    """A copy of the rows, C-contiguous, filled up with zeros to `width`."""
    rows, dim = states.shape
    if dim == width:
        return states.copy()
    padded = np.zeros((rows, width), np.float32)
    padded[:, :dim] = states
    return padded
