"""Codecs: what comes back is close, what can't have been written is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.errors import LocalError, RemoteError
from gennode.wire.activations import OUTLIERS, codec
from gennode.wire.fields import CodecName

NAMES: list[CodecName] = ["raw", "int8", "int8-outlier"]
DIMS = [1, 8, 63, 64, 65, 192, 2048]


def _states(rows: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((rows, dim)).astype(np.float32)
    states[:, dim // 3] *= 80  # the massive channel that trained models have
    return states


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_rows_come_back_within_half_a_step(name: CodecName, dim: int, rows: int) -> None:
    states = _states(rows, dim, seed=dim)
    chosen = codec(name)
    payload = chosen.encode(states)
    assert len(payload) == rows * chosen.row_bytes(dim)
    back = chosen.decode(payload, dim)
    assert back.shape == states.shape
    for block in range(0, dim, 64):
        part = slice(block, block + 64)
        largest = np.abs(states[:, part]).max(axis=1, initial=0)
        step = {"raw": 0.0}.get(name, 1.0) * largest / 127
        error = np.abs(back - states)[:, part].max(axis=1, initial=0)
        assert (error <= 0.52 * step + 1e-3 * largest * (name != "raw")).all()


def test_default_codec_takes_at_most_2300_bytes_at_dim_2048() -> None:
    assert codec("int8-outlier").row_bytes(2048) == 2176


def test_outliers_keep_the_rest_precise() -> None:
    states = _states(32, 2048, seed=1)
    plain = codec("int8").decode(codec("int8").encode(states), 2048)
    kept = codec("int8-outlier").decode(codec("int8-outlier").encode(states), 2048)
    assert np.square(kept - states).sum() < 0.1 * np.square(plain - states).sum()


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_can_be_cut_by_row(name: CodecName) -> None:
    states = _states(6, 192, seed=2)
    chosen = codec(name)
    whole, width = chosen.encode(states), chosen.row_bytes(192)
    alone = b"".join(chosen.encode(states[row : row + 1]) for row in range(6))
    assert whole == alone
    assert (chosen.decode(whole[2 * width :], 192) == chosen.decode(whole, 192)[2:]).all()


def test_ties_keep_the_lowest_index() -> None:
    states = np.ones((2, 100), np.float32)
    payload = codec("int8-outlier").encode(states)
    index = np.frombuffer(payload[: 2 * OUTLIERS], "<u2")
    assert index.tolist() == list(range(OUTLIERS))


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
        assert states.shape == (len(payload) // width, dim)


def test_a_forged_outlier_is_refused() -> None:
    payload = bytearray(codec("int8-outlier").encode(_states(1, 192, seed=3)))
    payload[0:2] = (60000).to_bytes(2, "little")
    with pytest.raises(RemoteError):
        codec("int8-outlier").decode(bytes(payload), 192)
