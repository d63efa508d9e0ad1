"""Hidden states to wire bytes and back: the quantiser is part of the protocol.

Every codec writes one row of bytes per token, so that a frame can be cut by token without
being decoded. All numbers are little-endian.

    raw            dim × f32
    int8           ceil(dim / 64) × f16 scale | dim × i8 code
    int8-outlier   16 × u16 index | 16 × f16 value | the same as int8 for the rest

A code is rint(x / scale) with scale = f16(max |x| of the block / 127); the outliers are a row's
16 largest magnitudes (ties: lowest index), in index order, and count as zero in their blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gennode.errors import LocalError, RemoteError
from gennode.wire.fields import CodecName

BLOCK = 64  # elements that share a scale
OUTLIERS = 16  # elements kept apart in each row
MAX_DIM = 1 << 16  # an outlier's index is a u16
_CODE_MAX = 127
_F16_MAX = np.float32(65504)

Rows = npt.NDArray[np.float32]
_Bytes = npt.NDArray[np.uint8]


class Codec(Protocol):
    """Turns float32 rows of shape [rows, dim] into bytes and back."""

    @property
    def name(self) -> CodecName:
        """As it is called on the wire."""

    def row_bytes(self, dim: int) -> int:
        """Bytes that one token takes."""

    def encode(self, states: Rows) -> bytes:
        """Rows to bytes; LocalError if a value is not finite or a shape is wrong."""

    def decode(self, payload: bytes, dim: int) -> Rows:
        """Bytes to rows, a new array; RemoteError if no encoder can have written them."""


def codec(name: CodecName) -> Codec:
    """The codec of this name."""
    return _CODECS[name]


@dataclass(frozen=True)
class _Raw:
    name: CodecName = "raw"

    def row_bytes(self, dim: int) -> int:
        return 4 * dim

    def encode(self, states: Rows) -> bytes:
        return _checked(states).astype("<f4", copy=False).tobytes()

    def decode(self, payload: bytes, dim: int) -> Rows:
        rows = _count(payload, self.row_bytes(dim))
        states = np.frombuffer(payload, "<f4").reshape(rows, dim).astype(np.float32)
        if not np.isfinite(states).all():
            raise RemoteError("a frame holds a value that is not finite")
        return states


@dataclass(frozen=True)
class _Int8:
    outliers: int
    name: CodecName

    def row_bytes(self, dim: int) -> int:
        return 4 * self._kept(dim) + 2 * _blocks(dim) + dim

    def encode(self, states: Rows) -> bytes:
        states = _checked(states)
        rows, dim = states.shape
        kept = self._kept(dim)
        payload = np.empty((rows, self.row_bytes(dim)), np.uint8)
        rest = np.zeros((rows, _blocks(dim) * BLOCK), np.float32)
        rest[:, :dim] = states
        if kept:
            index = _largest(states, kept)
            values = np.take_along_axis(states, index, axis=1).clip(-_F16_MAX, _F16_MAX)
            np.put_along_axis(rest, index, 0.0, axis=1)
            payload[:, : 2 * kept] = _as_bytes(index.astype("<u2"))
            payload[:, 2 * kept : 4 * kept] = _as_bytes(values.astype("<f2"))
        self._encode_blocks(rest, payload[:, 4 * kept :], dim)
        return payload.tobytes()

    def decode(self, payload: bytes, dim: int) -> Rows:
        rows = _count(payload, self.row_bytes(dim))
        kept, blocks = self._kept(dim), _blocks(dim)
        table = np.frombuffer(payload, np.uint8).reshape(rows, self.row_bytes(dim))
        scales = _view(table, 4 * kept, 2 * blocks, "<f2").astype(np.float32)
        if not np.isfinite(scales).all() or (scales < 0).any():
            raise RemoteError("a frame's scale is not a finite, positive number")
        codes = table[:, 4 * kept + 2 * blocks :].view(np.int8)
        states = codes.astype(np.float32)
        states *= np.repeat(scales, BLOCK, axis=1)[:, :dim]
        if kept:
            self._restore(states, table, kept)
        return states

    def _kept(self, dim: int) -> int:
        return min(self.outliers, dim)

    @staticmethod
    def _encode_blocks(rest: Rows, target: _Bytes, dim: int) -> None:
        rows, blocks = rest.shape[0], rest.shape[1] // BLOCK
        cut = rest.reshape(rows, blocks, BLOCK)
        scale = np.abs(cut).max(axis=2) / np.float32(_CODE_MAX)
        stored = scale.clip(0, _F16_MAX).astype("<f2")
        used = stored.astype(np.float32)
        used[used == 0] = np.inf  # a block below 8e-6 has no scale; all its codes are zero
        codes = np.rint(cut / used[:, :, None]).clip(-_CODE_MAX, _CODE_MAX).astype(np.int8)
        target[:, : 2 * blocks] = _as_bytes(stored)
        target[:, 2 * blocks :] = codes.reshape(rest.shape)[:, :dim].view(np.uint8)

    @staticmethod
    def _restore(states: Rows, table: _Bytes, kept: int) -> None:
        index = _view(table, 0, 2 * kept, "<u2").astype(np.int64)
        values = _view(table, 2 * kept, 2 * kept, "<f2").astype(np.float32)
        if (index >= states.shape[1]).any() or (np.diff(index, axis=1) <= 0).any():
            raise RemoteError("a frame's outlier indices are out of range or out of order")
        if not np.isfinite(values).all():
            raise RemoteError("a frame's outlier is not finite")
        np.put_along_axis(states, index, values, axis=1)


def _blocks(dim: int) -> int:
    return -(-dim // BLOCK)


def _as_bytes(values: npt.NDArray[np.generic]) -> _Bytes:
    return np.ascontiguousarray(values).view(np.uint8)


def _view(table: _Bytes, start: int, count: int, dtype: str) -> npt.NDArray[np.generic]:
    return np.ascontiguousarray(table[:, start : start + count]).view(dtype)


def _checked(states: Rows) -> Rows:
    if states.ndim != 2 or states.dtype != np.float32 or not 0 < states.shape[1] <= MAX_DIM:
        raise LocalError(f"states must be float32 [rows, dim], not {states.dtype} {states.shape}")
    if not np.isfinite(states).all():
        raise LocalError("states hold a value that is not finite", hint="are the weights sound?")
    return states


def _count(payload: bytes, row_bytes: int) -> int:
    rows, rest = divmod(len(payload), row_bytes)
    if rest:
        raise RemoteError(f"{len(payload)} bytes are no whole number of {row_bytes}-byte rows")
    return rows


def _largest(states: Rows, count: int) -> npt.NDArray[np.int64]:
    """Indices of each row's `count` largest magnitudes, ascending, shape [rows, count]."""
    magnitude = np.abs(states)
    least = np.partition(magnitude, -count, axis=1)[:, -count, None]
    chosen = magnitude >= least
    for row in np.flatnonzero(chosen.sum(axis=1) > count):  # ties at the edge: keep the lowest
        tied = np.flatnonzero(magnitude[row] == least[row])
        surplus = int(chosen[row].sum()) - count
        chosen[row, tied[len(tied) - surplus :]] = False
    return np.nonzero(chosen)[1].reshape(len(states), count)


_CODECS: dict[CodecName, Codec] = {
    "raw": _Raw(),
    "int8": _Int8(0, "int8"),
    "int8-outlier": _Int8(OUTLIERS, "int8-outlier"),
}
