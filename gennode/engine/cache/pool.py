"""KvPool: the memory of all sequences' keys and values, reserved once per layer.

A step asks for its place once (`place`), and every layer writes and reads there:

    place = pool.place(sequence, position, rows)       # once per step and sequence
    pool.write(layer, place, keys, values)             # [rows, kv_heads, width] each
    keys, values = pool.read(layer, place)             # [kv_heads, place.end, width] each

No token allocates anything: a sequence in one piece is read through a view of its layer's
memory, and one in pieces is gathered into scratch memory. Both give the same numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from gennode.engine.cache.memory import FloatMemory, LayerMemory, Usual, make_memory
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
        read_dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype` torch.int8: codes with scales, which are read as `read_dtype`."""
        self._kv_heads, self._width, self._dtype = kv_heads, width, dtype
        self._read_dtype = read_dtype if dtype == torch.int8 else dtype
        self._device = torch.device(device)
        self._pages = Pages(pages)
        self._spans: dict[Hashable, Span] = {}
        self._kept: dict[int, Span] = {}
        self._layers: dict[int, LayerMemory] = {}
        self._runs: dict[Hashable, tuple[int, tuple[tuple[int, int], ...]]] = {}
        """Of each sequence's last place: the version of its pages, and where they lie."""
        self._scratch: FloatMemory | None = None

    @property
    def page_bytes(self) -> int:
        """What one page takes in one layer."""
        row_bytes = self._width * self._dtype.itemsize
        if self._dtype == torch.int8:
            row_bytes += torch.float16.itemsize
        return 2 * self._kv_heads * PAGE_POSITIONS * row_bytes

    def use(self) -> CacheUse:
        """What is held in all layers, by sequences and by what is kept; and all there is."""
        row = self.page_bytes * len(self._layers)
        return CacheUse((self._pages.count - self._pages.free) * row, self._pages.count * row)

    # -- layers -------------------------------------------------------------------------------

    def add_layer(self, index: int, usual: Usual | None = None) -> None:
        """Reserve a layer's memory, unless it is here; ResourceError if there is none.

        `usual` makes 8-bit codes several times as exact where some channels are large.
        """
        if index in self._layers:
            return
        slots = self._pages.count * PAGE_POSITIONS
        size = (self._kv_heads, slots, self._width)
        try:
            self._layers[index] = make_memory(size, self._dtype, self._device, usual)
        except (MemoryError, RuntimeError) as error:
            raise _no_memory(slots) from error

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

    def layer(self, index: int) -> FloatMemory:
        """The whole memory of one layer, for kernels that find their slots by themselves.

        LocalError if it holds codes.
        """
        memory = self._layers[index]
        if not isinstance(memory, FloatMemory):
            raise LocalError("a cache in 8 bits can't be read in place")
        return memory

    @property
    def layout(self) -> str:
        """What pools have to agree on to read each other's pages."""
        dtype = str(self._dtype).removeprefix("torch.")
        return f"{self._kv_heads}x{self._width} {dtype} {PAGE_POSITIONS} {sys.byteorder}"

    def parts(self, index: int) -> tuple[torch.Tensor, ...]:
        """All that a layer holds, each [kv_heads, slots, …]: as it is, or codes and scales."""
        return self._layers[index].parts

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

    def span(self, sequence: Hashable) -> Span:
        """The layers that a sequence runs over; LocalError if it is not open."""
        if sequence not in self._spans:
            raise LocalError(f"sequence {sequence!r} is not open")
        return self._spans[sequence]

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
        """Store a step's rows in one layer: [rows, kv_heads, width] each."""
        memory, keys, values = self._layers[index], keys.transpose(0, 1), values.transpose(0, 1)
        before = 0
        for slot, positions in place.runs:
            skipped = max(0, place.position - before)
            if skipped < positions:
                first = before + skipped - place.position
                rows = slice(first, first + positions - skipped)
                memory.write(
                    slice(slot + skipped, slot + positions), keys[:, rows], values[:, rows]
                )
            before += positions

    def scatter(
        self, index: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Store rows of several sequences in one layer, [rows, kv_heads, width], row by slot."""
        self._layers[index].write(slots, keys.transpose(0, 1), values.transpose(0, 1))

    def read(self, index: int, place: KvPlace) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of [0, end) in one layer, [kv_heads, end, width] each.

        Not to be written to, and valid until the next `read`: it may be scratch memory.
        """
        memory = self._layers[index]
        seen = memory.view(*place.runs[0]) if len(place.runs) == 1 else None
        if seen is not None:
            return seen
        scratch, before = self._scratch_for(place.end), 0
        for slot, positions in place.runs:
            there = slice(before, before + positions)
            memory.decode(
                slice(slot, slot + positions), scratch.keys[:, there], scratch.values[:, there]
            )
            before += positions
        return scratch.view(0, place.end)

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

    def _scratch_for(self, positions: int) -> FloatMemory:
        had = self._scratch.keys.shape[1] if self._scratch is not None else 0
        if self._scratch is None or had < positions:
            size = (self._kv_heads, max(positions, 2 * had, SCRATCH_POSITIONS), self._width)
            try:
                keys, values = (
                    torch.empty(size, dtype=self._read_dtype, device=self._device) for _ in range(2)
                )
            except (MemoryError, RuntimeError) as error:
                raise _no_memory(size[1]) from error
            self._scratch = FloatMemory(keys, values)
        return self._scratch

    def _copy(self, copies: Sequence[Copy], span: Span) -> None:
        for index in range(span.start, span.end):
            for part in self._layers[index].parts:
                for copy in copies:
                    source, target = copy.source * PAGE_POSITIONS, copy.target * PAGE_POSITIONS
                    part[:, target : target + copy.rows] = part[:, source : source + copy.rows]


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


def _no_memory(positions: int) -> ResourceError:
    return ResourceError(
        f"no memory for a cache of {positions} positions",
        hint="serve fewer layers, or allow less memory for the cache",
    )
