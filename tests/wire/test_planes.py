"""Packed weights come back bit for bit, shrink as they should, and can't blow up in our hands."""

from __future__ import annotations

import struct
from contextlib import suppress

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gennode.errors import RemoteError
from gennode.wire.manifest import CHUNK_BYTES
from gennode.wire.planes import pack, pays, unpack


def normal(kind: str, count: int = 1 << 16) -> bytes:
    """Weights as training leaves them: normal, in bf16 (by cutting fp32), fp16 or fp32."""
    drawn = np.random.default_rng(3).normal(0, 0.02, count).astype(np.float32)
    if kind == "bf16":
        return (drawn.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return drawn.astype({"fp16": np.float16, "fp32": np.float32}[kind]).tobytes()


@pytest.mark.parametrize(("kind", "ratio"), [("bf16", 1.45), ("fp32", 1.15), ("fp16", 1.12)])
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_weights_shrink_and_come_back(kind: str, ratio: float, cut: int) -> None:
    chunk = normal(kind)
    chunk = chunk[: len(chunk) - cut]
    packed = pack(chunk)
    assert packed is not None
    assert len(chunk) / len(packed) > ratio
    assert unpack(packed, len(chunk)) == chunk


def test_noise_is_left_as_it_is() -> None:
    assert pack(np.random.default_rng(1).bytes(1 << 18)) is None
    assert pack(b"") is None


@given(st.binary(max_size=300), st.integers(1, 200))
def test_whatever_is_packed_comes_back(piece: bytes, times: int) -> None:
    chunk = piece * times
    packed = pack(chunk)
    assert packed is None or unpack(packed, len(chunk)) == chunk


@given(st.binary(max_size=200), st.integers(0, 400))
def test_garbage_is_refused(packed: bytes, size_bytes: int) -> None:
    with suppress(RemoteError):
        assert len(unpack(packed, size_bytes)) == size_bytes


def _hostile(plane: bytes, count: int) -> bytes:
    """Two planes, the first compressed."""
    head = struct.pack("<BBII", 2, 1, len(plane), count)
    return head + plane + bytes(count)


@pytest.mark.parametrize("claimed", [1 << 30, 999, 1001])
def test_a_plane_of_another_size_is_refused_before_memory_is_taken(claimed: int) -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(min(claimed, 1 << 24)))
    with pytest.raises(RemoteError, match="another size"):
        unpack(_hostile(bomb, 1000), 2000)


def test_planes_without_a_size_or_with_bytes_behind_them_are_refused() -> None:
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
    sized = zstandard.ZstdCompressor().compress(bytes(1000))
    for plane in (unsized, sized + b"x", sized[:-1]):
        with pytest.raises(RemoteError):
            unpack(_hostile(plane, 1000), 2000)
    assert unpack(_hostile(sized, 1000), 2000) == bytes(2000)


def test_a_chunk_larger_than_chunks_are_is_refused() -> None:
    with pytest.raises(RemoteError, match="size"):
        unpack(bytes(100), CHUNK_BYTES + 1)


@pytest.mark.parametrize(
    ("link_mb_s", "expected"), [(0, False), (1, True), (12, True), (40, True), (300, False)]
)
def test_packing_pays_on_slow_links(link_mb_s: float, expected: bool) -> None:
    assert pays(link_mb_s, pack_mb_s=400, saved_share=0.33) is expected
