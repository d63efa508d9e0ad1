"""KvPool: the memory of all sequences' keys and values, reserved once per layer.

A step asks for its place once (`place`), and every layer writes and reads there:

    place = pool.place(sequence, position, rows)       # once per step and sequence
    pool.write(layer, place, keys, values)             # [rows, kv_heads, width] each
    keys, values = pool.read(layer, place)             # [kv_heads, place.end, width] each

No token allocates anything: a sequence in one piece is read through a view of its layer's
memory, and one in pieces is gathered into scratch memory. Both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from gennode.engine.cache.pages import PAGE_POSITIONS, Copy, Pages
from gennode.engine.seam import CacheUse
from gennode.errors import LocalError, ResourceError
from gennode.wire.ids import Span

SCRATCH_POSITIONS = 1024  # at first; grows by doubling, as rarely as the longest sequence does


@dataclass(frozen=True)
class KvPlace:
    """Where one step's rows, and all before them, lie in each layer's memory.

    Valid until its sequence's next `place`, `truncate` or `close`; those of others don't matter.
    `runs`: (first slot, positions) of each piece, in order, [0, end) together.
    """

    position: int
    end: int
    runs: tuple[tuple[int, int], ...]

    @property
    def first(self) -> int | None:
        """The slot of position 0, if the sequence lies in one piece."""
        return self.runs[0][0] if len(self.runs) == 1 else None


@dataclass(frozen=True)
class LayerMemory:
    """One layer's keys and values, each [kv_heads, slots, width]; a page is 64 slots."""

    keys: torch.Tensor
    values: torch.Tensor


class KvPool:
    """Paged keys and values of some layers of one model, for any number of sequences.

    A page is 64 positions in every layer at once. `pages` bounds them all; on a CPU memory is
    taken from the machine when it is first written.
    """

    def __init__(
        self,
        kv_heads: int,
        width: int,
        *,
        pages: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        self._kv_heads, self._width, self._dtype = kv_heads, width, dtype
        self._device = torch.device(device)
        self._pages = Pages(pages)
        self._spans: dict[Hashable, Span] = {}
        self._kept: dict[int, Span] = {}
        self._layers: dict[int, LayerMemory] = {}
        self._runs: dict[Hashable, tuple[int, tuple[tuple[int, int], ...]]] = {}
        """Of each sequence's last place: the version of its pages, and where they lie."""
        self._scratch: LayerMemory | None = None

    @property
    def page_bytes(self) -> int:
        """What one page takes in one layer."""
        return 2 * self._kv_heads * PAGE_POSITIONS * self._width * self._dtype.itemsize

    def use(self) -> CacheUse:
        """What is held in all layers, by sequences and by what is kept; and all there is."""
        row = self.page_bytes * len(self._layers)
        return CacheUse((self._pages.count - self._pages.free) * row, self._pages.count * row)

    # -- layers -------------------------------------------------------------------------------

    def add_layer(self, index: int) -> None:
        """Reserve a layer's memory, unless it is here; ResourceError if there is none."""
        if index not in self._layers:
            self._layers[index] = self._memory(self._pages.count * PAGE_POSITIONS)

    def drop_layer(self, index: int) -> None:
        """Free a layer's memory, and forget what is kept of it. Idempotent.

        LocalError if an open sequence runs over it.
        """
        if any(span.start <= index < span.end for span in self._spans.values()):
            raise LocalError(f"layer {index} can't be dropped: a sequence runs over it")
        for kept, span in list(self._kept.items()):
            if span.start <= index < span.end:
                self.forget(kept)
        self._layers.pop(index, None)

    def layer(self, index: int) -> LayerMemory:
        """The whole memory of one layer, for kernels that find their slots by themselves."""
        return self._layers[index]

    # -- sequences ----------------------------------------------------------------------------

    def open(self, sequence: Hashable, span: Span, max_positions: int) -> None:
        """Begin a sequence over layers that are here, or empty it. Takes no page yet.

        ResourceError if none would be left for it.
        """
        missing = [index for index in range(span.start, span.end) if index not in self._layers]
        if missing:
            raise LocalError(f"layers {missing} have no cache")
        self.close(sequence)
        self._pages.open(sequence, max_positions)
        self._spans[sequence] = span

    def close(self, sequence: Hashable) -> None:
        """End a sequence. Idempotent."""
        self._pages.close(sequence)
        self._spans.pop(sequence, None)
        self._runs.pop(sequence, None)

    def truncate(self, sequence: Hashable, length: int) -> None:
        """Let go of the pages from position `length` on."""
        self._pages.truncate(sequence, length)

    def place(self, sequence: Hashable, position: int, rows: int) -> KvPlace:
        """Have room for [position, position + rows); what is cached beyond that is dropped.

        ResourceError if too few pages are left: nothing has changed then.
        """
        end = position + rows
        copies = self._pages.write(sequence, position, end)
        if copies:
            self._copy(copies, self._spans[sequence])
        version, (had, runs) = self._pages.version(sequence), self._runs.get(sequence, (-1, ()))
        if had != version or not runs:
            runs = _runs(self._pages.of(sequence), end)
        else:  # as at most steps: the last page fills up
            others = sum(positions for _, positions in runs[:-1])
            runs = (*runs[:-1], (runs[-1][0], end - others))
        self._runs[sequence] = version, runs
        return KvPlace(position, end, runs)

    def write(self, index: int, place: KvPlace, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store a step's rows in one layer: [rows, kv_heads, width] each, cast to its dtype."""
        memory, keys, values = self._layers[index], keys.transpose(0, 1), values.transpose(0, 1)
        before = 0
        for slot, positions in place.runs:
            skipped = max(0, place.position - before)
            if skipped < positions:
                row = before + skipped - place.position
                slots = slice(slot + skipped, slot + positions)
                memory.keys[:, slots] = keys[:, row : row + positions - skipped]
                memory.values[:, slots] = values[:, row : row + positions - skipped]
            before += positions

    def read(self, index: int, place: KvPlace) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of [0, end) in one layer, [kv_heads, end, width] each.

        Not to be written to, and valid until the next `read`: it may be scratch memory.
        """
        memory = self._layers[index]
        if len(place.runs) == 1:
            slot, positions = place.runs[0]
            return (
                memory.keys.narrow(1, slot, positions),
                memory.values.narrow(1, slot, positions),
            )
        scratch, before = self._scratch_for(place.end), 0
        for slot, positions in place.runs:
            there, here = slice(before, before + positions), slice(slot, slot + positions)
            scratch.keys[:, there] = memory.keys[:, here]
            scratch.values[:, there] = memory.values[:, here]
            before += positions
        return scratch.keys[:, : place.end], scratch.values[:, : place.end]

    # -- sharing ------------------------------------------------------------------------------

    def keep(self, sequence: Hashable, positions: int) -> int:
        """Hold the first `positions` beyond the sequence's end; their number, for `adopt`."""
        kept = self._pages.keep(sequence, positions)
        self._kept[kept] = self._spans[sequence]
        return kept

    def adopt(self, sequence: Hashable, kept: int) -> int:
        """Give an empty sequence what was kept of another over the same span: how many positions.

        LocalError if nothing is kept under that number, or it does not fit.
        """
        if self._kept.get(kept) != self._spans.get(sequence):
            raise LocalError("only a sequence over the same span can adopt what is kept")
        self._pages.adopt(sequence, kept)
        return self._pages.kept_positions(kept)

    def forget(self, kept: int) -> None:
        """Hold it no longer. Idempotent; who adopted it is not touched."""
        self._pages.forget(kept)
        self._kept.pop(kept, None)

    # -- memory -------------------------------------------------------------------------------

    def _memory(self, slots: int) -> LayerMemory:
        size = (self._kv_heads, slots, self._width)
        try:
            keys, values = (
                torch.empty(size, dtype=self._dtype, device=self._device) for _ in range(2)
            )
        except (MemoryError, RuntimeError) as error:
            raise ResourceError(
                f"no memory for a cache of {slots} positions",
                hint="serve fewer layers, or allow less memory for the cache",
            ) from error
        return LayerMemory(keys, values)

    def _scratch_for(self, positions: int) -> LayerMemory:
        had = self._scratch.keys.shape[1] if self._scratch is not None else 0
        if self._scratch is None or had < positions:
            self._scratch = self._memory(max(positions, 2 * had, SCRATCH_POSITIONS))
        return self._scratch

    def _copy(self, copies: Sequence[Copy], span: Span) -> None:
        for index in range(span.start, span.end):
            memory = self._layers[index]
            for copy in copies:
                source, target = copy.source * PAGE_POSITIONS, copy.target * PAGE_POSITIONS
                for tensor in (memory.keys, memory.values):
                    tensor[:, target : target + copy.rows] = tensor[:, source : source + copy.rows]


def _runs(pages: Sequence[int], end: int) -> tuple[tuple[int, int], ...]:
    """Pages that follow each other, joined: (first slot, positions), up to `end`."""
    runs: list[tuple[int, int]] = []
    for number, page in enumerate(pages):
        slot = page * PAGE_POSITIONS
        positions = min(PAGE_POSITIONS, end - number * PAGE_POSITIONS)
        if runs and sum(runs[-1]) == slot:
            runs[-1] = (runs[-1][0], runs[-1][1] + positions)
        else:
            runs.append((slot, positions))
    return tuple(runs)
