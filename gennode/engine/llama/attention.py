"""Attention of a step's rows to what their sequences have cached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from gennode.engine.cache.pool import KvPlace, KvPool
from gennode.engine.llama.rotary import rotations


@dataclass(frozen=True)
class Part:
    """One sequence's rows among all those of a step: `[start, start + rows)`."""

    place: KvPlace
    start: int
    rows: int


@dataclass(frozen=True)
class View:
    """What a part's rows look at: positions `[first, end)`.

    `mask`: [rows, end − first], −inf where a row must not look; None if nothing is hidden, or
    if `causal` says the same.
    """

    first: int
    mask: torch.Tensor | None
    causal: bool


class Rows:
    """Where a step's rows lie in their sequences: what all its layers share.

    `cosine`, `sine`: [rows, 1, head_dim], see `rotations`; `slots`: of each row in the pool.
    """

    def __init__(self, places: Sequence[KvPlace], frequencies: torch.Tensor) -> None:
        device = frequencies.device
        self.parts: list[Part] = []
        start = 0
        for place in places:
            rows = place.end - place.position
            self.parts.append(Part(place, start, rows))
            start += rows
        positions = [at for place in places for at in range(place.position, place.end)]
        slots = [slot for place in places for slot in slots_of(place)]
        self.count = start
        self.cosine, self.sine = rotations(torch.tensor(positions, device=device), frequencies)
        self.slots = torch.tensor(slots, device=device)
        self._views: dict[tuple[int, int | None], View] = {}

    def view(self, number: int, window: int | None) -> View:
        """What the rows of part `number` see in layers with this window; made once."""
        found = self._views.get((number, window))
        if found is None:
            place = self.parts[number].place
            found = make_view(place.position, place.end, window, self.cosine.device)
            self._views[number, window] = found
        return found


def slots_of(place: KvPlace) -> list[int]:
    """The pool's slots of a step's own rows, in order."""
    slots: list[int] = []
    before = 0
    for slot, positions in place.runs:
        skipped = max(0, place.position - before)
        slots += range(slot + skipped, slot + positions)
        before += positions
    return slots


def make_view(position: int, end: int, window: int | None, device: torch.device) -> View:
    """What rows at [position, end) see: all up to themselves, or the last `window` of that."""
    rows = end - position
    first = 0 if window is None else max(0, position + 1 - window)
    if rows == 1:
        return View(first, None, causal=False)
    if first == 0 and position == 0 and (window is None or rows <= window):
        return View(0, None, causal=True)
    mask = torch.full((rows, end - first), -math.inf, device=device).triu_(position - first + 1)
    if window is not None:
        at = torch.arange(first, end, device=device)
        own = torch.arange(position, end, device=device)
        mask[at[None, :] <= own[:, None] - window] = -math.inf
    return View(first, mask, causal=False)


def store(pool: KvPool, index: int, rows: Rows, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Put all rows' keys and values, [rows, kv_heads, width], where their sequences have room."""
    if len(rows.parts) == 1:
        pool.write(index, rows.parts[0].place, keys, values)
        return
    memory = pool.layer(index)
    for kept, new in ((memory.keys, keys), (memory.values, values)):
        kept.index_copy_(1, rows.slots, new.transpose(0, 1).to(kept.dtype))


def attend_all(
    pool: KvPool, index: int, rows: Rows, queries: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Attention of all rows [rows, heads, width], each to its sequence; [rows, heads × width]."""
    if len(rows.parts) == 1:
        return _attend_part(pool, index, rows, 0, queries, window)
    result = queries.new_empty((rows.count, queries.shape[1] * queries.shape[2]))
    for number, part in enumerate(rows.parts):
        own = slice(part.start, part.start + part.rows)
        result[own] = _attend_part(pool, index, rows, number, queries[own], window)
    return result


def _attend_part(
    pool: KvPool,
    index: int,
    rows: Rows,
    number: int,
    queries: torch.Tensor,
    window: int | None,
) -> torch.Tensor:
    keys, values = pool.read(index, rows.parts[number].place)
    view = rows.view(number, window)
    if view.first:
        keys, values = keys[:, view.first :], values[:, view.first :]
    return attend(queries, keys, values, view)


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, view: View
) -> torch.Tensor:
    """Attention of [rows, heads, width] to [kv_heads, positions, width]; [rows, heads × width].

    No key is copied per query head: one row's heads of a group become rows of one product, and
    several rows see the group's keys through a view.
    """
    rows, heads, width = queries.shape
    kv_heads, positions, _ = keys.shape
    group = heads // kv_heads
    if rows == 1:
        one = functional.scaled_dot_product_attention(
            queries.view(1, kv_heads, group, width), keys[None], values[None]
        )
        return one.reshape(1, heads * width)
    size = (kv_heads, group, positions, width)
    several = functional.scaled_dot_product_attention(
        queries.view(rows, kv_heads, group, width).permute(1, 2, 0, 3),
        keys[:, None].expand(size),
        values[:, None].expand(size),
        attn_mask=view.mask,
        is_causal=view.causal,
    )
    return several.permute(2, 0, 1, 3).reshape(rows, heads * width)
