"""Codes of less than a byte: where each bit lies, and what fills a row up."""

from __future__ import annotations

import numpy as np
import pytest

from gennode.errors import RemoteError
from gennode.wire.activations.packing import pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 63, 64, 4096])
def test_codes_come_back(bits: int, dim: int) -> None:
    codes = np.random.default_rng(dim).integers(0, 1 << bits, (3, dim), dtype=np.uint8)
    packed = np.full((3, packed_bytes(dim, bits)), 255, np.uint8)
    pack(codes, bits, packed)
    np.testing.assert_array_equal(unpack(packed, bits, dim), codes)


def test_six_bits_lie_as_they_are_said_to() -> None:
    packed = np.empty((1, 3), np.uint8)
    pack(np.array([[0b000001, 0b000010, 0b000100, 0b001000]], np.uint8), 6, packed)
    word = int.from_bytes(packed.tobytes(), "little")
    assert [word >> shift & 63 for shift in (0, 6, 12, 18)] == [1, 2, 4, 8]


@pytest.mark.parametrize(("bits", "dim"), [(6, 5), (4, 3)])
def test_what_fills_a_row_up_is_zero(bits: int, dim: int) -> None:
    packed = np.zeros((1, packed_bytes(dim, bits)), np.uint8)
    unpack(packed, bits, dim)
    packed[:, -1] = 0xFC if bits == 6 else 0xF0
    with pytest.raises(RemoteError, match="zeros"):
        unpack(packed, bits, dim)
