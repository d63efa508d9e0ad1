"""A sequence's cache as bytes, for another engine of the same model to go on from.

Page by page: the bytes of a page are, layer by layer, its keys and then its values (where they
are codes, codes and then scales), each [kv_heads, rows, …] for its 64 positions or those left.
What is restored comes from a peer: sizes are checked before memory is taken.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import numpy as np
import torch

from gennode.engine.cache.pages import PAGE_POSITIONS, pages_for
from gennode.engine.cache.pool import KvPlace, KvPool
from gennode.engine.seam import CachePages
from gennode.errors import RemoteError
from gennode.wire.ids import Span


def export_pages(pool: KvPool, sequence: Hashable, positions: int) -> CachePages:
    """All that a sequence of so many positions has cached. Shared pages stay shared."""
    span, place = pool.span(sequence), pool.place(sequence, positions, 0)
    parts = [part for index in range(span.start, span.end) for part in pool.parts(index)]
    pages = tuple(
        b"".join(_to_bytes(part[:, slot : slot + rows]) for part in parts)
        for slot, rows in _pages(place)
    )
    return CachePages(pool.layout, span, positions, pages)


def restore_pages(pool: KvPool, sequence: Hashable, pages: CachePages, max_positions: int) -> int:
    """Give a sequence what another pool exported, and nothing else: its positions now.

    RemoteError unless it fits and is finite; ResourceError if no page is left. The sequence is
    empty then.
    """
    span = pool.span(sequence)
    _check_sizes(pool, span, pages, max_positions)
    pool.truncate(sequence, 0)
    place = pool.place(sequence, 0, pages.positions)
    try:
        for (slot, rows), page in zip(_pages(place), pages.pages, strict=True):
            _fill(pool, span, slice(slot, slot + rows), page)
    except RemoteError:
        pool.truncate(sequence, 0)
        raise
    return pages.positions


def _check_sizes(pool: KvPool, span: Span, pages: CachePages, max_positions: int) -> None:
    if pages.layout != pool.layout or pages.span != span:
        raise RemoteError("a sequence's cache is laid out in another way, or of other layers")
    if not 0 <= pages.positions <= max_positions or len(pages.pages) != pages_for(pages.positions):
        raise RemoteError("a sequence's cache is not as long as it says, or too long")
    row_bytes = pool.page_bytes // PAGE_POSITIONS * span.layers
    for number, page in enumerate(pages.pages):
        rows = min(PAGE_POSITIONS, pages.positions - number * PAGE_POSITIONS)
        if len(page) != rows * row_bytes:
            raise RemoteError("a page of a sequence's cache is not as long as its positions")


def _pages(place: KvPlace) -> Iterator[tuple[int, int]]:
    """The first slot of each page, and how many of its positions are used."""
    for slot, positions in place.runs:
        for start in range(0, positions, PAGE_POSITIONS):
            yield slot + start, min(PAGE_POSITIONS, positions - start)


def _fill(pool: KvPool, span: Span, slots: slice, page: bytes) -> None:
    """Store one page's bytes; RemoteError if they hold numbers that are not finite."""
    start = 0
    for index in range(span.start, span.end):
        for part in pool.parts(index):
            there = part[:, slots]
            part_bytes = there.numel() * there.element_size()
            raw = np.frombuffer(page, np.uint8, part_bytes, start).copy()
            rows = torch.from_numpy(raw).view(part.dtype).view(there.shape)
            if part.dtype.is_floating_point and not bool(torch.isfinite(rows).all()):
                raise RemoteError("a sequence's cache holds numbers that are not finite")
            there.copy_(rows)
            start += part_bytes


def _to_bytes(rows: torch.Tensor) -> bytes:
    flat: bytes = rows.contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes()
    return flat
