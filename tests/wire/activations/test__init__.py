"""Codecs: what comes back is close, what can't have been written is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.errors import LocalError, RemoteError
from gennode.wire.activations import NAMES, codec
from gennode.wire.fields import CodecName

DIMS = [1, 8, 63, 64, 65, 192, 2048]
FIXED = [name for name in NAMES if name not in {"lossless", "bf16-planes"}]
# The largest error, in parts of a block's largest number, and the block.
PRECISION: dict[CodecName, tuple[float, int]] = {
    "raw": (0, 1),
    "lossless": (0, 1),
    "bf16": (2**-8, 1),
    "bf16-planes": (2**-8, 1),
    "int8": (0.52 / 127 + 1e-3, 64),
    "int8-outlier": (0.52 / 127 + 1e-3, 64),
    "int6-outlier": (0.52 / 31 + 1e-3, 64),
    "fp8": (2**-4 + 1e-3, 128),
    "mxfp8": (2**-3, 32),
    "mxfp6": (2**-4, 32),
    "mxfp4": (2**-2, 32),
}

# The first row of `_vector` as each codec writes it, or as other versions of zstd may have.
VECTORS: dict[CodecName, str] = {
    "raw": "00000000000000800000803f0000c0bfd00f4940bd37863500b888c7abaaaa3e0000a03e0000d0c0",
    "lossless": "000000000000000000010001a07a01560001000000001f6f7055000000000080920c115540a0"
    "00007f7f806b8f7d7d81",
    "bf16": "00000080803fc0bf4940863589c7ab3ea03ed0c0",
    "bf16-planes": "0000000000010081920c135640a100007f7f806b8f7d7d81",
    "int8": "4e6000000000000081000000",
    "int8-outlier": "00000100020003000400050006000700080009000000"
    "0080003c00be48421100fffb5535003580c6000000000000000000000000",
    "int6-outlier": "00000100020003000400050006000700080009000000"
    "0080003c00be48421100fffb5535003580c60000000000000000000000",
    "fp8": "e258008003850a00fe010193",
    "mxfp8": "87008002830600f901018d",
    "mxfp6": "8d002000980000830000",
    "mxfp4": "8d00e8000880",
}


def _states(rows: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((rows, dim)).astype(np.float32)
    states[:, dim // 3] *= 80  # the massive channel that trained models have
    return states


def _vector() -> np.ndarray:
    numbers = [0, -0.0, 1, -1.5, 3.14159, 1e-6, -70000, 1 / 3, 0.3125, -6.5]
    return np.array([numbers], np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_vectors(name: CodecName) -> None:
    payload = bytes.fromhex(VECTORS[name])
    assert codec(name).encode(_vector()) == payload
    back = codec(name).decode(payload, 10, 1)
    assert codec(name).encode(back) == payload  # what was rounded once stays


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_rows_come_back_within_half_a_step(name: CodecName, dim: int, rows: int) -> None:
    states = _states(rows, dim, seed=dim)
    chosen = codec(name)
    payload = chosen.encode(states)
    assert chosen.fits(len(payload), rows, dim)
    if name in FIXED:
        assert len(payload) == rows * chosen.row_bytes(dim)
        assert not chosen.fits(len(payload) + 1, rows, dim)
    back = chosen.decode(payload, dim, rows)
    assert back.shape == states.shape
    assert back.dtype == np.float32
    error, step = PRECISION[name]
    for block in range(0, dim, step):
        part = slice(block, block + step)
        largest = np.abs(states[:, part]).max(axis=1, initial=0)
        assert (np.abs(back - states)[:, part].max(axis=1, initial=0) <= error * largest).all()


def test_default_codec_takes_at_most_2300_bytes_at_dim_2048() -> None:
    assert codec("int8-outlier").row_bytes(2048) == 2176


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_can_be_cut_by_row(name: CodecName) -> None:
    states = _states(6, 192, seed=2)
    chosen = codec(name)
    whole = chosen.encode(states)
    assert whole == b"".join(chosen.encode(states[row : row + 1]) for row in range(6))
    for keep in (0, 1, 4, 6):
        part = chosen.last_rows(whole, 6, keep, 192)
        assert bytes(part) == chosen.encode(states[6 - keep :])
        assert (chosen.decode(part, 192, keep) == chosen.decode(whole, 192)[6 - keep :]).all()
    for payload, rows, keep in ((whole[:-1], 6, 1), (whole, 5, 1), (whole, 6, 7), (whole, 6, -1)):
        with pytest.raises((LocalError, RemoteError)):
            chosen.last_rows(payload, rows, keep, 192)


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_of_other_rows_than_announced_is_refused(name: CodecName) -> None:
    payload = codec(name).encode(_states(3, 192, seed=4))
    for rows in (0, 2, 4):
        with pytest.raises(RemoteError):
            codec(name).decode(payload, 192, rows)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_never_sent(name: CodecName, bad: float) -> None:
    states = np.zeros((1, 64), np.float32)
    states[0, 5] = bad
    with pytest.raises(LocalError):
        codec(name).encode(states)


def test_wrong_types_are_our_own_fault() -> None:
    with pytest.raises(LocalError):
        codec("raw").encode(np.zeros((1, 4), np.float64))


@given(
    st.sampled_from(NAMES),
    st.sampled_from(DIMS),
    st.lists(
        st.floats(width=32, min_value=-(2.0**99), max_value=2.0**99), min_size=1, max_size=128
    ),
)
def test_any_finite_row_round_trips(name: CodecName, dim: int, values: list[float]) -> None:
    states = np.resize(np.array(values, np.float32), (1, dim))
    back = codec(name).decode(codec(name).encode(states), dim)
    assert np.isfinite(back).all()
    again = codec(name).decode(codec(name).encode(states), dim)
    assert (again == back).all()


@given(st.sampled_from(NAMES), st.sampled_from(DIMS), st.binary(max_size=4096))
def test_arbitrary_bytes_decode_or_are_their_fault(name: CodecName, dim: int, data: bytes) -> None:
    width = codec(name).row_bytes(dim)
    for payload in (data, (data * (width // max(1, len(data)) + 1))[:width]):
        try:
            states = codec(name).decode(payload, dim)
        except RemoteError:
            continue
        assert np.isfinite(states).all()
        assert codec(name).fits(len(payload), len(states), dim)


@given(
    st.sampled_from(NAMES),
    st.sampled_from(DIMS),
    st.integers(0, 1 << 30),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_frames_with_changed_bytes_decode_or_are_their_fault(
    name: CodecName, dim: int, seed: int, changes: list[tuple[int, int]]
) -> None:
    payload = bytearray(codec(name).encode(_states(2, dim, seed)))
    for place, value in changes:
        payload[place % len(payload)] = value
    try:
        states = codec(name).decode(payload, dim, 2)
    except RemoteError:
        return
    assert np.isfinite(states).all()
    assert states.shape == (2, dim)
