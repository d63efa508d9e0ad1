"""A cache goes from pool to pool bit by bit, in parts, and what is not finite gets nowhere."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from gennode.engine.cache.pages import PAGE_POSITIONS
from gennode.engine.cache.pool import KvPool
from gennode.engine.cache.transfer import export_part, position_bytes, restore_part
from gennode.engine.seam import CachePart
from gennode.errors import RemoteError, ResourceError
from tests.engine.cache.test_pool import HEADS, SPAN, WIDTH, make_pool, write

PAGE, LENGTH = PAGE_POSITIONS, 2 * PAGE_POSITIONS + 5


def filled(dtype: torch.dtype = torch.float32) -> KvPool:
    """A pool with a sequence `a` of LENGTH positions, in two pieces."""
    pool = make_pool(5, dtype, "a", "b")
    write(pool, "a", 0, PAGE, 1)
    write(pool, "b", 0, 1, 2)
    write(pool, "a", PAGE, PAGE + 5, 3)
    return pool


def whole(pool: KvPool, sequence: str = "a", length: int = LENGTH) -> CachePart:
    """All of a sequence."""
    return export_part(pool, sequence, 0, length, length)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("ends", [[LENGTH], [PAGE, 2 * PAGE, LENGTH], [3, 70, 71, LENGTH]])
def test_what_is_restored_in_parts_is_read_bit_by_bit(dtype: torch.dtype, ends: list[int]) -> None:
    pool, other = filled(dtype), make_pool(8, dtype, "x", "y")
    write(other, "x", 0, 9, 5)
    for start, end in pairwise([0, *ends]):
        part = export_part(pool, "a", start, end, LENGTH)
        assert len(part.payload) == (end - start) * position_bytes(pool, SPAN)
        restore_part(other, "y", part)
    here, there = pool.place("a", LENGTH, 0), other.place("y", LENGTH, 0)
    for index in range(SPAN.start, SPAN.end):
        wanted = [part.clone() for part in pool.read(index, here)]
        for one, found in zip(wanted, other.read(index, there), strict=True):
            assert torch.equal(one, found)
    assert whole(other, "y") == whole(pool)


def test_an_export_takes_nothing_from_its_sequence() -> None:
    pool = filled()
    before = whole(pool)
    export_part(pool, "a", 0, 3, LENGTH)
    assert export_part(pool, "a", 3, 3, LENGTH).payload == b""
    assert whole(pool) == before


def test_who_is_lengthened_writes_beside_what_others_read() -> None:
    pool = filled()
    kept = pool.keep("a", PAGE + 2)
    pool.open("b", SPAN, 4 * PAGE)
    pool.adopt("b", kept)
    theirs = whole(pool)
    part = export_part(pool, "a", PAGE + 2, LENGTH, LENGTH)
    restore_part(pool, "b", replace(part, payload=bytes(len(part.payload))))
    assert whole(pool) == theirs
    assert whole(pool, "b", PAGE + 2) == whole(pool, "a", PAGE + 2) != theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_what_is_not_finite_is_the_senders_fault_and_leaves_all_as_it_was(
    dtype: torch.dtype,
) -> None:
    pool = filled(dtype)
    part = export_part(pool, "a", PAGE, LENGTH, LENGTH)
    rows = LENGTH - PAGE
    place = rows * HEADS * WIDTH if dtype == torch.int8 else len(part.payload) - 4
    bad = struct.pack("<e", math.inf) if dtype == torch.int8 else struct.pack("<f", math.nan)
    payload = part.payload[:place] + bad + part.payload[place + len(bad) :]
    pool.truncate("a", PAGE)
    used, had = pool.use().used_bytes, whole(pool, "a", PAGE)
    with pytest.raises(RemoteError, match="not finite"):
        restore_part(pool, "a", replace(part, payload=payload))
    assert (pool.use().used_bytes, whole(pool, "a", PAGE)) == (used, had)
    restore_part(pool, "a", part)
    assert export_part(pool, "a", PAGE, LENGTH, LENGTH) == part


def test_too_little_memory_is_our_own_fault_and_leaves_all_as_it_was() -> None:
    pool, small = filled(), make_pool(2, torch.float32, "b")
    first = export_part(pool, "a", 0, PAGE, LENGTH)
    restore_part(small, "b", first)
    with pytest.raises(ResourceError, match="no page is left"):
        restore_part(small, "b", export_part(pool, "a", PAGE, LENGTH, LENGTH))
    assert whole(small, "b", PAGE) == first
