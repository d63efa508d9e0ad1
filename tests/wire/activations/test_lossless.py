"""Codecs without loss: the same bits back, no more memory than was announced."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import zstandard

from gennode.errors import LocalError, RemoteError
from gennode.wire.activations import codec
from gennode.wire.fields import CodecName
from gennode.wire.messages import MAX_STEP_ROWS
from tests.wire.activations.rows import DIMS, KINDS, awkward

NAMES: list[CodecName] = ["lossless", "bf16-planes"]
DIM = 4096


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_come_back(kind: str) -> None:
    for seed, dim in enumerate(DIMS):
        states = awkward(kind, 3, dim, seed)
        back = codec("lossless").decode(codec("lossless").encode(states), dim, 3)
        assert back.tobytes() == states.tobytes()
        planes, plain = codec("bf16-planes"), codec("bf16")
        assert planes.decode(planes.encode(states), dim).tobytes() == (
            plain.decode(plain.encode(states), dim).tobytes()
        )


def test_normal_states_shrink_to_what_is_promised() -> None:
    states = awkward("normal", 16, DIM, seed=1)
    for name, raw_bytes, most in (("lossless", 4, 0.84), ("bf16-planes", 2, 0.68)):
        chosen = codec(name)  # type: ignore[arg-type]
        row = len(chosen.encode(states)) / 16
        assert row < most * raw_bytes * DIM
        assert abs(chosen.row_bytes(DIM) - row) < 0.01 * row
    halves = codec("bf16").decode(codec("bf16").encode(states), DIM)
    assert len(codec("lossless").encode(halves)) < 0.43 * 4 * DIM * 16  # the low planes are zero


def _row(*planes: tuple[int, bytes]) -> bytes:
    """A row of stated lengths."""
    lengths = struct.pack(f"<{len(planes)}H", *(length for length, _ in planes))
    return lengths + b"".join(plane for _, plane in planes)


def _bomb(size_bytes: int) -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(size_bytes))


@pytest.mark.parametrize("size_bytes", [DIM - 1, DIM + 1, 1 << 28])
def test_a_plane_of_another_size_is_refused_before_memory_is_taken(size_bytes: int) -> None:
    bomb = _bomb(size_bytes)
    plain = (0, bytes(DIM))
    payload = _row((min(len(bomb), DIM - 1), bomb[: DIM - 1]), plain)
    tracemalloc.start()
    with pytest.raises(RemoteError):
        codec("bf16-planes").decode(payload, DIM)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_rows_are_counted_before_memory_is_taken() -> None:
    small = _bomb(DIM)
    row = _row((len(small), small), (len(small), small))
    chosen = codec("bf16-planes")
    assert chosen.decode(row, DIM, 1).tolist() == np.zeros((1, DIM)).tolist()
    tracemalloc.start()
    with pytest.raises(RemoteError, match="announced"):
        chosen.decode(row * MAX_STEP_ROWS, DIM, 1)
    with pytest.raises(RemoteError, match="more than"):
        chosen.decode(row * (MAX_STEP_ROWS + 1), DIM)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20
    with pytest.raises(LocalError):
        chosen.encode(np.zeros((MAX_STEP_ROWS + 1, 1), np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_cut_forged_or_prolonged_is_refused(name: CodecName) -> None:
    payload = codec(name).encode(awkward("normal", 2, 256, seed=2))
    forged = bytearray(payload)
    forged[0:2] = (256).to_bytes(2, "little")
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(256))
    width = 4 if name == "lossless" else 2
    rest = [(0, bytes(256))] * (width - 1)
    trailing = _bomb(256) + b"x"
    for bad in (
        payload[:-1],
        payload + b"\0",
        payload[: width * 2 - 1],
        bytes(forged),
        _row((len(unsized), unsized), *rest),
        _row((len(trailing), trailing), *rest),
        _row((200, bytes(200)), *rest),
    ):
        with pytest.raises(RemoteError):
            codec(name).decode(bad, 256)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_are_not_finite_are_refused(name: CodecName) -> None:
    width = 4 if name == "lossless" else 2
    planes = [(0, bytes(8))] * (width - 1)
    with pytest.raises(RemoteError, match="finite"):
        codec(name).decode(_row(*planes, (0, b"\xff" * 8)), 8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_fits_and_others_do_not(name: CodecName, kind: str) -> None:
    for dim in (1, 9, 64, 4096):
        chosen, payload = codec(name), codec(name).encode(awkward(kind, 5, dim, seed=1))
        assert chosen.fits(len(payload), 5, dim)
        assert not chosen.fits(0, 5, dim)
        assert not chosen.fits(5 * 4 * (2 + dim) + 1, 5, dim)
        assert not chosen.fits(len(payload), MAX_STEP_ROWS + 1, dim)
