"""Codes of six and four bits in whole bytes.

A row's codes are filled up with zeros to parts of equal length, quarters for six bits and halves
for four, so that packing needs no step over single bits. With q0..q3 the codes at one place of
each quarter, the three bytes of that place, each in a third of the row's bytes, are

    q0 | q1 << 6      q1 >> 2 | q2 << 4      q2 >> 4 | q3 << 2          (modulo 256)

and a byte of four-bit codes is h0 | h1 << 4 for the codes of the halves.
"""

from __future__ import annotations

import numpy as np

from gennode.errors import RemoteError
from gennode.wire.activations.contract import Bytes


def packed_bytes(dim: int, bits: int) -> int:
    """Bytes that a row of codes of 4, 6 or 8 bits takes."""
    return {8: dim, 6: 3 * -(-dim // 4), 4: -(-dim // 2)}[bits]


def pack(codes: Bytes, bits: int, target: Bytes) -> None:
    """Codes of shape [rows, dim], each below 2 ** bits, to [rows, packed_bytes]."""
    if bits == 8:
        target[:] = codes
        return
    parts = 4 if bits == 6 else 2
    length = -(-codes.shape[1] // parts)
    codes = _filled(codes, parts * length)
    part = [codes[:, start : start + length] for start in range(0, parts * length, length)]
    if bits == 4:
        np.left_shift(part[1], 4, out=target)
        target |= part[0]
        return
    bytes0, bytes1, bytes2 = (
        target[:, third * length : (third + 1) * length] for third in (0, 1, 2)
    )
    np.left_shift(part[1], 6, out=bytes0)
    bytes0 |= part[0]
    np.left_shift(part[2], 4, out=bytes1)
    bytes1 |= part[1] >> 2
    np.left_shift(part[3], 2, out=bytes2)
    bytes2 |= part[2] >> 4


def unpack(packed: Bytes, bits: int, dim: int) -> Bytes:
    """The codes, [rows, dim]; RemoteError if what fills a row up is not zero."""
    if bits == 8:
        return packed
    rows, parts = len(packed), 4 if bits == 6 else 2
    length = -(-dim // parts)
    codes = np.empty((rows, parts * length), np.uint8)
    part = [codes[:, start : start + length] for start in range(0, parts * length, length)]
    if bits == 4:
        np.bitwise_and(packed, 15, out=part[0])
        np.right_shift(packed, 4, out=part[1])
    else:
        bytes0, bytes1, bytes2 = (packed[:, n * length : (n + 1) * length] for n in (0, 1, 2))
        np.bitwise_and(bytes0, 63, out=part[0])
        np.bitwise_or(bytes0 >> 6, (bytes1 & 15) << 2, out=part[1])
        np.bitwise_or(bytes1 >> 4, (bytes2 & 3) << 4, out=part[2])
        np.right_shift(bytes2, 2, out=part[3])
    if codes[:, dim:].any():
        raise RemoteError("a frame's row is filled up with something else than zeros")
    return codes[:, :dim]


def _filled(codes: Bytes, length: int) -> Bytes:
    if codes.shape[1] == length:
        return codes
    filled = np.zeros((len(codes), length), np.uint8)
    filled[:, : codes.shape[1]] = codes
    return filled
