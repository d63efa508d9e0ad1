"""Sketches of sets: what is in both is found, what is not is told apart, whatever the bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.errors import RemoteError
from gennode.mesh.directory.sketch import (
    MAX_MEMBERS,
    STATES,
    Marks,
    Sketch,
    States,
    bucket_bits_for,
    sketch,
)

MEMBERS = 3000


def some(seed: int, count: int) -> tuple[Marks, States]:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 1 << 64, count, dtype=np.uint64),
        rng.integers(0, STATES, count, dtype=np.uint8),
    )


@pytest.mark.parametrize("count", [0, 1, 7, 100, MEMBERS, MAX_MEMBERS])
def test_packed_and_unpacked_it_is_the_same(count: int) -> None:
    marks, states = some(1, count)
    made, rows = sketch(marks, states, 12345, bucket_bits_for(count))
    counts, entries = made.pack()
    assert len(entries) == 2 * count
    read = Sketch.unpack(12345, counts, entries)
    assert np.array_equal(read.keys, made.keys)
    assert np.array_equal(read.states, made.states)
    assert np.array_equal(np.sort(rows), np.arange(count))
    assert np.array_equal(read.states, states[rows])


def test_what_differs_is_found_with_few_mistakes_that_the_next_salt_undoes() -> None:
    marks, states = some(2, 2 * MEMBERS)
    ours, theirs = marks[:MEMBERS], marks[MEMBERS // 2 : MEMBERS + MEMBERS // 2]
    hidden: list[set[int]] = []
    for salt in (3, 5, 7 << 40):
        bits = bucket_bits_for(MEMBERS)
        told, _ = sketch(theirs, states[:MEMBERS], salt, bits)
        read = Sketch.unpack(salt, *told.pack())
        mine, rows = sketch(ours, states[:MEMBERS], salt, bits)
        is_shared = rows >= MEMBERS // 2
        found = read.find(mine.keys) >= 0
        assert found[is_shared].all()
        hidden.append(set(rows[found & ~is_shared].tolist()))
    assert max(map(len, hidden)) < MEMBERS // 100
    assert not set.intersection(*hidden)


def test_a_bucket_that_overflows_leaves_members_out() -> None:
    marks = np.arange(1, 401, dtype=np.uint64)  # so small that they share the first bucket
    made, _ = sketch(marks, np.zeros(400, np.uint8), 1, 3)
    read = Sketch.unpack(1, *made.pack())
    assert len(read.keys) == 255
    assert (read.find(made.keys[:255]) >= 0).all()


@pytest.mark.parametrize(
    ("counts", "entries"),
    [
        (b"", b""),
        (b"\1\1\1", bytes(6)),
        (bytes(8192), b""),
        (b"\2", bytes(2)),
        (b"\1", bytes(4)),
        (b"\1", bytes(3)),
    ],
)
def test_digests_that_disagree_with_themselves_are_refused(counts: bytes, entries: bytes) -> None:
    with pytest.raises(RemoteError):
        Sketch.unpack(1, counts, entries)


@given(
    salt=st.integers(0, (1 << 63) - 1),
    counts=st.binary(min_size=1, max_size=8),
    entries=st.binary(max_size=40),
)
def test_any_bytes_are_a_sketch_or_a_remote_error(salt: int, counts: bytes, entries: bytes) -> None:
    try:
        read = Sketch.unpack(salt, counts, entries)
    except RemoteError:
        return
    assert len(read.keys) == sum(counts) == len(entries) // 2
    again = Sketch.unpack(salt, *read.pack())
    assert np.array_equal(again.keys, read.keys)
