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
    """Rows that attend in one call: `[start, start + rows)` of the step, up to position `end`.

    `place`: of the number of the place, among those of the step, that they lie in.
    """

    place: int
    start: int
    rows: int
    end: int


@dataclass(frozen=True)
class View:
    """What a part's rows look at: positions `[first, end)`.

    `mask`: bool [rows, end − first], false where a row must not look; None if nothing is hidden,
    or if `causal` says the same. Where heads are folded there is a row for each.
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

    def __init__(
        self,
        places: Sequence[KvPlace],
        frequencies: torch.Tensor,
        ends: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """`places`: one of each sequence. `ends`: where each place's rows are parted, its end
        among them; the same parts give the same bits, whatever else is in the step."""
        device = frequencies.device
        self._is_parted = ends is not None
        self._places = places
        self.parts: list[Part] = []
        start = 0
        for number, place in enumerate(places):
            at = place.position
            for end in (place.end,) if ends is None else ends[number]:
                self.parts.append(Part(number, start, end - at, end))
                start, at = start + end - at, end
        positions = [at for place in places for at in range(place.position, place.end)]
        slots = [slot for place in places for slot in slots_of(place)]
        self.count = start
        self.cosine, self.sine = rotations(torch.tensor(positions, device=device), frequencies)
        self.slots = torch.tensor(slots, device=device)
        self._views: dict[tuple[int, int | None], View] = {}

    def store(self, pool: KvPool, index: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put all rows' keys and values, [rows, kv_heads, width], into one layer's cache."""
        if len(self._places) == 1:
            pool.write(index, self._places[0], keys, values)
        else:
            pool.scatter(index, self.slots, keys, values)

    def attend(
        self, pool: KvPool, index: int, queries: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """Attention of [rows, heads, width], each to its sequence; fp32 [rows, heads × width]."""
        threads = torch.get_num_threads()
        found: list[torch.Tensor] = []
        try:
            for number, part in enumerate(self.parts):
                if number == 0 or part.place != self.parts[number - 1].place:
                    keys, values = pool.read(index, self._places[part.place])
                products = part.rows * part.end * queries[0].numel()
                wanted = 1 if products < THREADED_MIN_PRODUCTS else threads
                if wanted != torch.get_num_threads():
                    torch.set_num_threads(wanted)
                rows = queries[part.start : part.start + part.rows].to(keys.dtype)
                found.append(self._attend_part(number, rows, keys, values, window))
        finally:
            torch.set_num_threads(threads)
        return found[0] if len(found) == 1 else torch.cat(found)

    def _attend_part(
        self,
        number: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        window: int | None,
    ) -> torch.Tensor:
        part = self.parts[number]
        view = self._view(number, window, queries.shape[1] // keys.shape[0])
        if view.first or part.end < keys.shape[1]:
            seen = slice(view.first, part.end)
            keys, values = keys[:, seen], values[:, seen]
        attention = attend_folded if self._folds(part) else attend
        return attention(queries, keys, values, view).float()

    def _folds(self, part: Part) -> bool:
        return self._is_parted or part.rows == 1

    def _view(self, number: int, window: int | None, group: int) -> View:
        """What the rows of part `number` see in layers with this window; made once."""
        found = self._views.get((number, window))
        if found is None:
            part, device = self.parts[number], self.cosine.device
            position = part.end - part.rows
            if self._folds(part):
                found = folded_view(position, part.end, window, group, device)
            else:
                found = make_view(position, part.end, window, device)
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


def part_ends(position: int, frame_ends: Sequence[int], part_rows: int) -> tuple[int, ...]:
    """Where rows from `position` on are parted: behind each frame, and in it every `part_rows`."""
    ends: list[int] = []
    for end in frame_ends:
        ends += [*range(position + part_rows, end, part_rows), end]
        position = end
    return tuple(ends)


def make_view(position: int, end: int, window: int | None, device: torch.device) -> View:
    """What rows at [position, end) see: all up to themselves, or the last `window` of that."""
    if position == 0 and (window is None or end <= window):
        return View(0, None, causal=True)
    first, seen = _seen(position, end, window, device)
    return View(first, seen, causal=False)


def folded_view(
    position: int, end: int, window: int | None, group: int, device: torch.device
) -> View:
    """The same for rows of which each head of a group makes one."""
    first, seen = _seen(position, end, window, device)
    return View(first, None if end - position == 1 else seen.repeat(group, 1), causal=False)


def _seen(
    position: int, end: int, window: int | None, device: torch.device
) -> tuple[int, torch.Tensor]:
    first = 0 if window is None else max(0, position + 1 - window)
    at = torch.arange(first, end, device=device)[None, :]
    own = torch.arange(position, end, device=device)[:, None]
    return first, at <= own if window is None else (at <= own) & (at > own - window)


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, view: View
) -> torch.Tensor:
    """Attention of [rows, heads, width] to [kv_heads, positions, width]; [rows, heads × width].

    No key is copied per query head: a group's heads see its keys through a view.
    """
    rows, heads, width = queries.shape
    kv_heads, positions, _ = keys.shape
    group = heads // kv_heads
    size = (kv_heads, group, positions, width)
    found = functional.scaled_dot_product_attention(
        queries.view(rows, kv_heads, group, width).permute(1, 2, 0, 3),
        keys[:, None].expand(size),
        values[:, None].expand(size),
        attn_mask=view.mask,
        is_causal=view.causal,
    )
    return found.permute(2, 0, 1, 3).reshape(rows, heads * width)


def attend_folded(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, view: View
) -> torch.Tensor:
    """The same with the heads of a group as rows of one product: for few rows that is quicker."""
    rows, heads, width = queries.shape
    kv_heads = len(keys)
    group = heads // kv_heads
    folded = queries.view(1, kv_heads, group, width) if rows == 1 else (
        queries.view(rows, kv_heads, group, width).permute(1, 2, 0, 3)
        .reshape(1, kv_heads, group * rows, width)
    )  # fmt: skip
    found = functional.scaled_dot_product_attention(
        folded, keys[None], values[None], attn_mask=view.mask
    )
    if rows > 1:
        found = found.view(kv_heads, group, rows, width).permute(2, 0, 1, 3)
    return found.reshape(rows, heads * width)
