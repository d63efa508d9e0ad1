"""Codecs without loss: a float's exponents apart from what looks like noise, and compressed.

    lossless       the row as f32, in four planes
    bf16-planes    the row as bf16 (see `plain`), in two planes: without loss after that

A row is width × u16 length | planes, where width is 4 or 2. Each number is turned left by one
bit, which brings its exponent into its highest byte; plane k holds byte k of each turned number,
k = 0 the lowest. A length of 0 says that the plane's dim bytes follow as they are, another one
that so many bytes of zstd follow, with the content size in their header, which give dim bytes.
A plane is compressed if that saves 3 %. (Weights travel in the same way: ZipNN, Hershcovitch et
al. 2024, arXiv:2411.05239.)

What comes back is bit for bit what was sent, but the bytes between are not the same with each
version of zstd: signatures and comparisons are of states, not of frames. Rows differ in length,
so a frame's size is bounded and not fixed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from gennode.errors import LocalError, RemoteError
from gennode.wire import entropy
from gennode.wire.activations.contract import (
    MAGNITUDE,
    Buffer,
    Rows,
    check_finite,
    check_rows,
    check_shape,
)
from gennode.wire.activations.plain import from_bf16, to_bf16
from gennode.wire.fields import CodecName
from gennode.wire.messages import MAX_STEP_ROWS

# zstd's least: a magic number, a header with the content's size, a block of one repeated byte.
_LEAST_PLANE_BYTES = 10
# Of the exponents of normal numbers; their entropy is 0.318.
_TYPICAL_SHARE = 0.34

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Planes:
    """`width`: bytes of a number, 4 for f32 and 2 for bf16."""

    name: CodecName
    width: int

    def row_bytes(self, dim: int) -> int:
        """Bytes that one token usually takes."""
        return 2 * self.width + (self.width - 1) * dim + int(_TYPICAL_SHARE * dim)

    def fits(self, payload_bytes: int, rows: int, dim: int) -> bool:
        """Whether `rows` rows may take so many bytes."""
        if not 0 <= rows <= MAX_STEP_ROWS:
            return False
        least = rows * self.width * (2 + min(dim, _LEAST_PLANE_BYTES))
        return least <= payload_bytes <= rows * self.width * (2 + dim)

    def last_rows(self, payload: Buffer, rows: int, keep: int, dim: int) -> Buffer:
        """A view of the last `keep` rows."""
        view = memoryview(payload)
        starts = [start for start, _ in self._rows(view, dim)] + [len(view)]
        if not 0 <= keep <= rows or len(starts) != rows + 1:
            raise LocalError(f"{len(view)} bytes are no frame of {rows} rows to keep {keep} of")
        return view[starts[rows - keep] :]

    def encode(self, states: Rows) -> bytes:
        """Rows to bytes; LocalError if a value is not finite or a shape is wrong."""
        check_shape(states)
        if len(states) > MAX_STEP_ROWS:
            raise LocalError(f"a frame of {len(states)} rows, where {MAX_STEP_ROWS} are the most")
        check_finite(states.view(np.int32) & MAGNITUDE)
        compressor = entropy.compressor()
        pieces: list[bytes] = []
        for row in states:
            pieces += self._encode(row, compressor)
        return b"".join(pieces)

    def _encode(self, row: Rows, compressor: zstandard.ZstdCompressor) -> list[bytes]:
        numbers: Numbers = row.view(np.uint32) if self.width == 4 else to_bf16(row)
        turned = ((numbers << 1) | (numbers >> (8 * self.width - 1))).astype(f"<u{self.width}")
        places = turned.view(np.uint8).reshape(-1, self.width)
        lengths, planes = [], []
        for place in range(self.width):
            plane = places[:, place].tobytes()
            small = compressor.compress(plane)
            is_small = entropy.shrinks(len(small), len(plane))
            lengths.append(len(small) if is_small else 0)
            planes.append(small if is_small else plane)
        return [struct.pack(f"<{self.width}H", *lengths), *planes]

    def decode(self, payload: Buffer, dim: int, rows: int | None = None) -> Rows:
        """Bytes to rows, a new array; RemoteError if no encoder can have written them.

        Memory is taken for as many rows as the payload holds, at most `MAX_STEP_ROWS`.
        """
        view = memoryview(payload)
        found = list(self._rows(view, dim))
        check_rows(len(found), rows)
        expander = entropy.decompressor()
        numbers = np.empty((len(found), dim), np.uint32 if self.width == 4 else np.uint16)
        for target, (start, lengths) in zip(numbers, found, strict=True):
            self._decode(view[start + 2 * self.width :], lengths, target, expander)
        if self.width == 2:
            return from_bf16(numbers)
        try:
            check_finite(numbers.view(np.int32) & MAGNITUDE)
        except LocalError as error:
            raise RemoteError("a frame holds a value that is not finite") from error
        return numbers.view(np.float32)

    def _decode(
        self,
        body: memoryview,
        lengths: tuple[int, ...],
        target: Numbers,
        expander: zstandard.ZstdDecompressor,
    ) -> None:
        dim, start = len(target), 0
        places = np.empty((dim, self.width), np.uint8)
        for place, length in enumerate(lengths):
            plane = bytes(body[start : start + (length or dim)])
            start += len(plane)
            if length:
                plane = entropy.expand(plane, dim, expander)
            places[:, place] = np.frombuffer(plane, np.uint8)
        turned = places.view(f"<u{self.width}")[:, 0]
        np.bitwise_or(turned >> 1, turned << (8 * self.width - 1), out=target)

    def _rows(self, view: memoryview, dim: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Where each row starts, and its planes' lengths; RemoteError if one is cut short."""
        head, start, count = struct.Struct(f"<{self.width}H"), 0, 0
        while start < len(view):
            count += 1
            if count > MAX_STEP_ROWS:
                raise RemoteError(f"a frame of more than {MAX_STEP_ROWS} rows")
            if start + head.size > len(view):
                raise RemoteError("a frame's last row is cut short")
            lengths = head.unpack_from(view, start)
            if any(length >= dim for length in lengths):
                raise RemoteError("a plane that is longer compressed than as it is")
            end = start + head.size + sum(length or dim for length in lengths)
            if end > len(view):
                raise RemoteError("a frame's last row is cut short")
            yield start, lengths
            start = end
