"""A cache goes from pool to pool bit by bit, and nothing that does not fit gets in."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import pytest
import torch

from gennode.engine.cache.pages import PAGE_POSITIONS
from gennode.engine.cache.pool import KvPool
from gennode.engine.cache.transfer import export_pages, restore_pages
from gennode.engine.seam import CachePages
from gennode.errors import RemoteError, ResourceError
from gennode.wire.ids import Span
from tests.engine.cache.test_pool import HEADS, SPAN, WIDTH, make_pool, write

PAGE, LENGTH = PAGE_POSITIONS, 2 * PAGE_POSITIONS + 5
ROW_BYTES = 2 * 2 * HEADS * WIDTH * 4  # keys and values in two layers


def exported(dtype: torch.dtype = torch.float32) -> tuple[KvPool, CachePages]:
    pool = make_pool(5, dtype, "a", "b")
    write(pool, "a", 0, PAGE, 1)
    write(pool, "b", 0, 1, 2)
    write(pool, "a", PAGE, PAGE + 5, 3)  # in two pieces, for b is in between
    return pool, export_pages(pool, "a", LENGTH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_what_is_restored_is_read_bit_by_bit(dtype: torch.dtype) -> None:
    pool, pages = exported(dtype)
    assert (pages.span, pages.positions, len(pages.pages)) == (SPAN, LENGTH, 3)
    other = make_pool(8, dtype, "x", "y")
    write(other, "x", 0, 9, 5)
    assert restore_pages(other, "y", pages, LENGTH) == LENGTH
    here, there = pool.place("a", LENGTH, 0), other.place("y", LENGTH, 0)
    for index in range(SPAN.start, SPAN.end):
        wanted = [part.clone() for part in pool.read(index, here)]
        for one, found in zip(wanted, other.read(index, there), strict=True):
            assert torch.equal(one, found)
    assert export_pages(other, "y", LENGTH) == pages


def test_an_empty_cache_goes_over_too() -> None:
    pool = make_pool(2, torch.float32, "a", "b")
    pages = export_pages(pool, "a", 0)
    assert pages.pages == ()
    assert restore_pages(pool, "b", pages, PAGE) == 0


def test_restoring_replaces_what_was_there() -> None:
    pool, pages = exported()
    write(pool, "b", 0, 2 * PAGE, 9)
    pool.close("a")
    restore_pages(pool, "b", pages, LENGTH)
    assert export_pages(pool, "b", LENGTH) == pages


GOOD = exported()[1]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (replace(GOOD, layout="2x8 bfloat16 64 little"), "another way"),
        (replace(GOOD, span=Span(0, 2)), "other layers"),
        (replace(GOOD, positions=-1), "too long"),
        (replace(GOOD, positions=LENGTH + 1), "too long"),
        (replace(GOOD, positions=LENGTH - 1), "its positions"),
        (replace(GOOD, pages=GOOD.pages[:2]), "as long as it says"),
        (replace(GOOD, pages=(*GOOD.pages, b"")), "as long as it says"),
        (replace(GOOD, pages=(*GOOD.pages[:2], GOOD.pages[2][:-1])), "its positions"),
        (replace(GOOD, pages=(*GOOD.pages[:2], bytes(6 * ROW_BYTES))), "its positions"),
        (
            replace(
                GOOD, pages=(*GOOD.pages[:2], GOOD.pages[2][:-4] + struct.pack("<f", math.nan))
            ),
            "not finite",
        ),
    ],
)
def test_what_does_not_fit_is_the_senders_fault_and_leaves_nothing(
    bad: CachePages, reason: str
) -> None:
    pool = make_pool(5, torch.float32, "b")
    with pytest.raises(RemoteError, match=reason):
        restore_pages(pool, "b", bad, LENGTH)
    assert pool.use().used_bytes == 0


def test_scales_have_to_be_finite() -> None:
    pool, (_, pages) = make_pool(5, torch.int8, "b"), exported(torch.int8)
    last = pages.pages[2]
    scales = 5 * HEADS * WIDTH  # of the first layer's keys: behind their codes
    broken = last[:scales] + struct.pack("<e", math.inf) + last[scales + 2 :]
    with pytest.raises(RemoteError, match="not finite"):
        restore_pages(pool, "b", replace(pages, pages=(*pages.pages[:2], broken)), LENGTH)


def test_too_little_memory_is_our_own_fault() -> None:
    with pytest.raises(ResourceError, match="no page is left"):
        restore_pages(make_pool(2, torch.float32, "b"), "b", GOOD, LENGTH)
