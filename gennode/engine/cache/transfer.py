"""A part of a sequence's cache as bytes, for another engine of the same model to go on from.

Layer by layer: keys and then values (where they are codes, codes and then scales), each
[kv_heads, positions, …]. What is restored comes from a peer: sizes were checked before.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import numpy as np
import torch

from gennode.engine.cache.pages import PAGE_POSITIONS
from gennode.engine.cache.pool import KvPlace, KvPool
from gennode.engine.seam import CachePart
from gennode.errors import RemoteError
from gennode.wire.ids import Span


def position_bytes(pool: KvPool, span: Span) -> int:
    """What one position takes over a span."""
    return pool.page_bytes // PAGE_POSITIONS * span.layers


def export_part(pool: KvPool, sequence: Hashable, start: int, end: int, length: int) -> CachePart:
    """What a sequence of `length` positions has cached of some. Shared pages stay shared."""
    span, place = pool.span(sequence), pool.place(sequence, length, 0)
    slots = [*_slots(place, start, end)]
    payload = b"".join(
        _to_bytes(torch.cat([part[:, one] for one in slots], dim=1))
        for part in (_parts(pool, span) if slots else ())
    )
    return CachePart(pool.layout, span, start, end, payload)


def restore_part(pool: KvPool, sequence: Hashable, part: CachePart) -> None:
    """Store what another pool exported behind what a sequence has; its size is known to fit.

    RemoteError if it is not finite; ResourceError if too few pages are left. Nothing has
    changed then.
    """
    span, rows = pool.span(sequence), part.end - part.start
    found = [*_read(pool, span, part.payload, rows)]
    place = pool.place(sequence, part.start, rows)
    for memory, numbers in zip(_parts(pool, span), found, strict=True):
        at = 0
        for slots in _slots(place, part.start, part.end):
            count = slots.stop - slots.start
            memory[:, slots] = numbers[:, at : at + count].to(memory.device)
            at += count


def _parts(pool: KvPool, span: Span) -> Iterator[torch.Tensor]:
    for index in range(span.start, span.end):
        yield from pool.parts(index)


def _slots(place: KvPlace, start: int, end: int) -> Iterator[slice]:
    """Where positions `[start, end)` lie, piece by piece."""
    before = 0
    for slot, positions in place.runs:
        first, last = max(start - before, 0), min(end - before, positions)
        if first < last:
            yield slice(slot + first, slot + last)
        before += positions


def _read(pool: KvPool, span: Span, payload: bytes, rows: int) -> Iterator[torch.Tensor]:
    """What each part of a pool's memory is given; RemoteError if a number is not finite."""
    raw = torch.from_numpy(np.frombuffer(payload, np.uint8).copy())
    start = 0
    for part in _parts(pool, span):
        size = (part.shape[0], rows, *part.shape[2:])
        part_bytes = part[:, :1].numel() * rows * part.element_size()
        numbers = raw[start : start + part_bytes].view(part.dtype).view(size)
        if part.dtype.is_floating_point and not bool(torch.isfinite(numbers).all()):
            raise RemoteError("a part of a cache holds numbers that are not finite")
        yield numbers
        start += part_bytes


def _to_bytes(rows: torch.Tensor) -> bytes:
    flat: bytes = rows.contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes()
    return flat
