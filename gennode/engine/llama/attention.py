"""Attention of a step's rows to what their sequences have cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from gennode.engine.cache.pool import KvPlace, KvPool
from gennode.engine.llama.rotary import rotations

# Products of one sequence's attention that take one thread less time than two need to begin and
# to wait for each other: 100 positions of 32 heads take 21 µs on one and 33 on two.
THREADED_MIN_PRODUCTS = 1 << 19


@dataclass(frozen=True)
class Part:
    """One sequence's rows among all those of a step: `[start, start + rows)`."""

    place: KvPlace
    start: int
    rows: int


@dataclass(frozen=True)
class View:
    """What a part's rows look at: positions `[first, end)`.

    `mask`: bool [rows, end − first], false where a row must not look; None if nothing is hidden,
    or if `causal` says the same.
    """

    first: int
    mask: torch.Tensor | None
    causal: bool


class StepRows(Protocol):
    """All rows of a step, and where they lie in their sequences: what all its layers share."""

    count: int
    cosine: torch.Tensor
    sine: torch.Tensor

    def store(self, pool: KvPool, index: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put all rows' keys and values, [rows, kv_heads, width], into one layer's cache."""

    def attend(
        self, pool: KvPool, index: int, queries: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """Attention of [rows, heads, width], each to its sequence; fp32 [rows, heads × width]."""


class Rows:
    """StepRows of any number of sequences with any number of rows, one sequence at a time.

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
        self._most_pairs = max(part.rows * part.place.end for part in self.parts)
        self.cosine, self.sine = rotations(torch.tensor(positions, device=device), frequencies)
        self.slots = torch.tensor(slots, device=device)
        self._views: dict[tuple[int, int | None], View] = {}

    def store(self, pool: KvPool, index: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put all rows' keys and values, [rows, kv_heads, width], into one layer's cache."""
        if len(self.parts) == 1:
            pool.write(index, self.parts[0].place, keys, values)
        else:
            pool.scatter(index, self.slots, keys, values)

    def attend(
        self, pool: KvPool, index: int, queries: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """Attention of [rows, heads, width], each to its sequence; fp32 [rows, heads × width]."""
        threads = torch.get_num_threads()
        if self._most_pairs * queries[0].numel() < THREADED_MIN_PRODUCTS:
            torch.set_num_threads(1)
        try:
            found = [
                self._attend_part(
                    pool, index, number, queries[part.start : part.start + part.rows], window
                )
                for number, part in enumerate(self.parts)
            ]
        finally:
            torch.set_num_threads(threads)
        return found[0] if len(found) == 1 else torch.cat(found)

    def _attend_part(
        self, pool: KvPool, index: int, number: int, queries: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        keys, values = pool.read(index, self.parts[number].place)
        view = self._view(number, window)
        if view.first:
            keys, values = keys[:, view.first :], values[:, view.first :]
        return attend(queries.to(keys.dtype), keys, values, view).float()

    def _view(self, number: int, window: int | None) -> View:
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
    at = torch.arange(first, end, device=device)[None, :]
    own = torch.arange(position, end, device=device)[:, None]
    seen = at <= own if window is None else (at <= own) & (at > own - window)
    return View(first, seen, causal=False)


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
