"""What every codec promises, and the checks and sizes that codecs share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gennode.errors import LocalError, RemoteError
from gennode.wire.fields import CodecName

MAX_DIM = 1 << 16  # an outlier's index is a u16
TILE_NUMBERS = 1 << 15  # worked on at once: 128 KiB in float32, so that temporaries stay in L2
INFINITE = 0x7F80_0000  # bits of a float32's magnitude from which on it is not finite
MAGNITUDE = np.array(0x7FFF_FFFF, np.int32)  # an array: a scalar would be converted each time

Buffer = bytes | bytearray | memoryview
Rows = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int32]


class Codec(Protocol):
    """Turns float32 rows of shape [rows, dim] into bytes and back.

    A frame is its rows' bytes one after the other: rows may be encoded apart and joined.
    """

    @property
    def name(self) -> CodecName:
        """As it is called on the wire."""

    def row_bytes(self, dim: int) -> int:
        """Bytes that one token takes; of codecs without a fixed width, what it usually takes."""

    def fits(self, payload_bytes: int, rows: int, dim: int) -> bool:
        """Whether `rows` rows can take so many bytes: to be asked before anything is decoded."""

    def last_rows(self, payload: Buffer, rows: int, keep: int, dim: int) -> Buffer:
        """The part of a frame of our own, of `rows` rows, that holds its last `keep` rows.

        Nothing is copied or decoded; LocalError if the frame has not so many rows.
        """

    def encode(self, states: Rows) -> bytes:
        """Rows to bytes; LocalError if a value is not finite or a shape is wrong."""

    def decode(self, payload: Buffer, dim: int, rows: int | None = None) -> Rows:
        """Bytes to rows, a new array; RemoteError if no encoder can have written them.

        `rows`: how many there have to be; None takes as many as there are.
        """


class FixedWidth(ABC):
    """What codecs have in common whose rows all take `row_bytes`."""

    @abstractmethod
    def row_bytes(self, dim: int) -> int:
        """Bytes that one token takes."""

    def fits(self, payload_bytes: int, rows: int, dim: int) -> bool:
        """Whether `rows` rows take exactly so many bytes."""
        return payload_bytes == rows * self.row_bytes(dim)

    def last_rows(self, payload: Buffer, rows: int, keep: int, dim: int) -> Buffer:
        """A view of the last `keep` rows."""
        if not 0 <= keep <= rows or not self.fits(len(payload), rows, dim):
            raise LocalError(f"{len(payload)} bytes are no frame of {rows} rows to keep {keep} of")
        return memoryview(payload)[(rows - keep) * self.row_bytes(dim) :]

    def table(self, payload: Buffer, dim: int, rows: int | None) -> Bytes:
        """The payload as bytes of shape [rows, row_bytes], not copied; RemoteError if it is cut."""
        width = self.row_bytes(dim)
        count, rest = divmod(len(payload), width)
        if rest:
            raise RemoteError(f"{len(payload)} bytes are no whole number of {width}-byte rows")
        check_rows(count, rows)
        return np.frombuffer(payload, np.uint8).reshape(count, width)


def check_rows(count: int, rows: int | None) -> None:
    """RemoteError unless a frame of `count` rows has those that were announced."""
    if rows is not None and count != rows:
        raise RemoteError(f"a frame of {count} rows, where {rows} were announced")


def check_shape(states: Rows) -> None:
    """LocalError unless these are float32 rows."""
    if states.ndim != 2 or states.dtype != np.float32 or not 0 < states.shape[1] <= MAX_DIM:
        raise LocalError(f"states must be float32 [rows, dim], not {states.dtype} {states.shape}")


def check_finite(largest: Words) -> int:
    """The largest of magnitudes, as bits; LocalError if it is not that of a finite float32."""
    if largest.size == 1:
        top = int(largest.item())
    else:
        top = int(np.maximum.reduce(largest, axis=None, initial=0))
    if top >= INFINITE:
        raise LocalError("states hold a value that is not finite", hint="are the weights sound?")
    return top


def magnitudes(states: Rows) -> Words:
    """|x| as the bits of a float32, which are ordered as the numbers are; NaN is above all."""
    return np.bitwise_and(states.view(np.int32), MAGNITUDE)


def any_of(flags: npt.NDArray[np.bool_]) -> bool:
    """Whether one of them is true; three times as quick as `any` on a row."""
    return b"\1" in flags.tobytes()


def tiles(rows: int, dim: int) -> Iterable[tuple[int, int]]:
    """[start, end) of the rows that are worked on at once."""
    if rows == 1:
        return ((0, 1),)
    step = max(1, TILE_NUMBERS // dim)
    return ((start, min(rows, start + step)) for start in range(0, rows, step))


def blocks_of(dim: int, block: int) -> int:
    """How many blocks a row has; the last may be short."""
    return -(-dim // block)
