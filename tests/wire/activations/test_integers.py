"""int8, int8-outlier and int6-outlier: bit for bit what the slow implementation writes."""

from __future__ import annotations

import numpy as np
import pytest

from gennode.errors import RemoteError
from gennode.wire.activations import OUTLIERS, codec
from gennode.wire.activations.integers import Integers
from gennode.wire.fields import CodecName
from tests.wire.activations.rows import DIMS, KINDS, awkward, slow_integers

NAMES: list[CodecName] = ["int8", "int8-outlier", "int6-outlier"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_is_that_of_the_slow_implementation(name: CodecName, kind: str) -> None:
    chosen = codec(name)
    assert isinstance(chosen, Integers)
    for seed, dim in enumerate(DIMS):
        for rows in (1, 3):
            states = awkward(kind, rows, dim, seed)
            expected = slow_integers(states, bits=chosen.bits, apart=chosen.apart)
            assert chosen.encode(states) == expected, (dim, rows)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["normal", "ties in size", "huge rows", "few"])
def test_many_rows_are_many_single_rows(name: CodecName, kind: str) -> None:
    states = awkward(kind, 40, 2048, seed=5)
    chosen = codec(name)
    whole = chosen.encode(states)
    assert whole == b"".join(chosen.encode(states[row : row + 1]) for row in range(40))
    assert whole == chosen.encode(np.asfortranarray(states))
    apart = [chosen.decode(chosen.encode(states[row : row + 1]), 2048) for row in range(40)]
    np.testing.assert_array_equal(chosen.decode(whole, 2048), np.concatenate(apart))


def test_ties_keep_the_lowest_index() -> None:
    for rows in (1, 2):
        payload = codec("int8-outlier").encode(np.ones((rows, 100), np.float32))
        index = np.frombuffer(payload[: 2 * OUTLIERS], "<u2")
        assert index.tolist() == list(range(OUTLIERS))


@pytest.mark.parametrize("name", ["int8-outlier", "int6-outlier"])
def test_outliers_keep_the_rest_precise(name: CodecName) -> None:
    states = awkward("normal", 32, 2048, seed=1)
    states[:, ::300] *= 80
    kept = codec(name).decode(codec(name).encode(states), 2048)
    top = 127 if name == "int8-outlier" else 31
    limit = np.maximum(0.51 * 5 / top, 2.0**-11 * np.abs(states))  # 5: larger than the rest
    assert (np.abs(kept - states) <= limit).all()


def test_outliers_beyond_f16_are_held_at_its_largest() -> None:
    states = np.array([[1e30, -1e30, 1.0]], np.float32)
    back = codec("int8-outlier").decode(codec("int8-outlier").encode(states), 3)
    assert back.tolist() == [[65504.0, -65504.0, 1.0]]


@pytest.mark.parametrize(
    ("where", "word"),
    [
        ("the first index", 60_000),
        ("the last index", 192),
        ("an index twice", 0),
        ("an outlier", 0x7C00),
        ("an outlier", 0xFC01),
        ("a scale", 0x7C00),
        ("a scale", 0x8001),
        ("a scale", 0x8000),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_what_no_encoder_writes_is_refused(where: str, word: int, rows: int) -> None:
    chosen = codec("int8-outlier")
    payload = bytearray(chosen.encode(np.arange(192 * rows, dtype=np.float32).reshape(rows, 192)))
    place = {
        "the first index": 0,
        "an index twice": 2,
        "the last index": 30,
        "an outlier": 40,
        "a scale": 66,
    }[where]
    if where == "an index twice":
        payload[2:4] = payload[0:2]
    else:
        start = (rows - 1) * chosen.row_bytes(192) + place
        payload[start : start + 2] = word.to_bytes(2, "little")
    with pytest.raises(RemoteError):
        chosen.decode(bytes(payload), 192)


@pytest.mark.parametrize(("name", "code"), [("int8", 0x80), ("int6-outlier", 0x20)])
def test_the_code_that_has_no_opposite_is_refused(name: CodecName, code: int) -> None:
    payload = bytearray(codec(name).encode(np.ones((1, 64), np.float32)))
    payload[-48] = code
    with pytest.raises(RemoteError, match="no encoder writes"):
        codec(name).decode(payload, 64)
