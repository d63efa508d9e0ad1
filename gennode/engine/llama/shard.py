"""LlamaShard: spans of the layers of a Llama, or one of its family, computed with torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from gennode.engine.cache.pages import PAGE_POSITIONS
from gennode.engine.cache.pool import KvPlace, KvPool
from gennode.engine.cache.transfer import export_part, position_bytes, restore_part
from gennode.engine.checkpoint.weights import ModelFolder, open_model
from gennode.engine.contract import (
    check_batch,
    check_export,
    check_open,
    check_part,
    check_span,
    check_truncate,
    check_unload,
    maximal_spans,
)
from gennode.engine.devices import pick_device
from gennode.engine.llama.attention import Rows, StepRows, part_ends
from gennode.engine.llama.cuda import Graphs
from gennode.engine.llama.fastest import fastest
from gennode.engine.llama.model import Layer, load_layer, run_layer
from gennode.engine.llama.precision import arithmetic
from gennode.engine.llama.rotary import rotary_frequencies
from gennode.engine.measure import measure_further_s, measure_layer_time_s
from gennode.engine.seam import (
    DEFAULT_CACHE_BYTES,
    CachePart,
    CacheUse,
    Precision,
    Profile,
    States,
    StepInput,
)
from gennode.errors import LocalError, ResourceError
from gennode.wire.ids import ModelId, Span

MAX_CACHE_PAGES = 1 << 15  # two million positions: more than any machine serves at once

# A threaded loop ends with a wait for the slowest thread. On a busy machine that is the time
# slice of some other process: 30 ms measured for 7 µs of work. So a layer that takes one thread
# less than about 1 ms stays on one: at dim 512 and one row that costs 1.1 ms instead of 0.9 on
# an idle machine, and 1.5 ms instead of 8 on a busy one. Reading weights for one row takes as
# long as computing with them for about four.
THREADED_MIN_BYTES = 1 << 26
_MEMORY_BOUND_ROWS = 4

# Attention in parts of so few rows takes no longer with 4 heads or more to a group (13 ms for 128
# rows behind 512, where the whole takes 11), and half as long again with each head alone.
GROUPED_CUT_ROWS, SINGLE_CUT_ROWS = 8, 16


@dataclass
class _Sequence:
    span: Span
    max_positions: int
    length: int = 0


@dataclass(frozen=True)
class _Placed:
    """One sequence's part of a step, with room in the cache; `numbers`: of the batch."""

    numbers: tuple[int, ...]
    ends: tuple[int, ...]
    known: _Sequence
    place: KvPlace


class LlamaShard:
    """A ShardEngine for Llama. Weights are held in one precision; states are fp32.

    All rows of a step are multiplied together. In int8 a row's bits are the same whatever other
    rows there are, and wherever an input was cut at `cut_rows`; in the other precisions they
    agree to rounding.
    """

    def __init__(
        self,
        folder: ModelFolder,
        *,
        device: str = "cpu",
        precision: Precision | Literal["auto"] = "fp32",
        max_cache_bytes: int = DEFAULT_CACHE_BYTES,
        max_layers: int = 0,
        short_cache: bool = False,
    ) -> None:
        """`max_cache_bytes` bounds the keys and values of all sequences together, in `max_layers`
        layers (all of the model's, if it is 0): more than these can't be loaded at once.

        `short_cache`: hold keys and values in 8 bits, in a quarter of the memory, and decode
        them in each step. `precision` auto: the one that is fastest here, which takes a second
        to find out. Raises DeviceError if `device` is not here, or can't compute in `precision`.
        """
        self._folder = folder
        self._config = folder.llama
        self._device = torch.device(pick_device(device))
        if precision == "auto":
            precision = fastest(self._config.shape, self._device)
        self._arithmetic = arithmetic(precision, self._device)
        self._layers: dict[int, Layer] = {}
        self._sequences: dict[Hashable, _Sequence] = {}
        self._frequencies = rotary_frequencies(self._config).to(self._device)
        self._load_time_s: list[float] = []
        self._profile: Profile | None = None
        self._graphs: Graphs | None = None
        if self._device.type == "cuda" and not short_cache:
            self._graphs = Graphs(self._run_layers, self.dim, self._frequencies)
        self._threads = torch.get_num_threads()
        self._max_layers = max_layers or self._config.num_hidden_layers
        self._short_cache = short_cache
        self._pool = self._make_pool(max_cache_bytes)

    def _make_pool(self, max_bytes: int) -> KvPool:
        numbers = torch.float32 if self._device.type == "cpu" else self._arithmetic.weight_dtype
        held = torch.int8 if self._short_cache else numbers
        row_bytes = self._config.head_width * held.itemsize
        if self._short_cache:
            row_bytes += torch.float16.itemsize  # its scale
        position_bytes = 2 * self._config.kv_heads * row_bytes * self._max_layers
        pages = max_bytes // (position_bytes * PAGE_POSITIONS)
        return KvPool(
            self._config.kv_heads,
            self._config.head_width,
            pages=max(1, min(pages, MAX_CACHE_PAGES)),
            dtype=held,
            device=self._device,
            read_dtype=numbers,
        )

    def reread(self, path: Path) -> None:
        """Load from this folder from now on: the same model, with more of its files here."""
        folder = open_model(path)
        if folder.manifest.model != self.model:
            raise LocalError("a folder of another model can't take an engine's place")
        self._folder = folder

    @property
    def model(self) -> ModelId:
        """Which weights these are."""
        return self._folder.manifest.model

    @property
    def dim(self) -> int:
        """Width of the hidden states."""
        return self._config.hidden_size

    @property
    def precision(self) -> Precision:
        """In what weights are held and multiplied."""
        return self._arithmetic.precision

    @property
    def compute_class(self) -> str:
        """Weights, arithmetic and device: engines of one class agree to rounding."""
        cache = "-kv8" if self._short_cache else ""
        return f"{self._arithmetic.name}{cache}-{self._device.type}"

    @property
    def cut_rows(self) -> int:
        """See `Profile`. As few as a kernel is still quick with that takes 32 rows at once."""
        if not self._is_exact:
            return 1
        group = self._config.num_attention_heads // self._config.kv_heads
        return GROUPED_CUT_ROWS if group > 1 else SINGLE_CUT_ROWS

    @property
    def _is_exact(self) -> bool:
        """Whether a product's rows don't change each other's bits."""
        return self._arithmetic.precision == "int8"

    @property
    def layer_bytes(self) -> int:
        """What one layer's weights take once they are loaded."""
        return self._config.shape.layer_parameters * self._arithmetic.weight_bytes

    def spans(self) -> tuple[Span, ...]:
        """The layers that are loaded, as sorted, maximal, disjoint spans."""
        return maximal_spans(self._layers)

    @torch.inference_mode()
    def load(self, span: Span, progress: Callable[[int, int], None] | None = None) -> None:
        """Load the layers of `span` that are not loaded yet, one at a time.

        `progress` is told (layers done, layers in all). Raises ModelError, ResourceError.
        """
        check_span(span, self._config.num_hidden_layers)
        for index in range(span.start, span.end):
            if index not in self._layers:
                start_s = time.perf_counter()
                try:
                    layer = load_layer(
                        self._folder,
                        index,
                        self._device,
                        self._arithmetic,
                        with_usual=self._short_cache,
                    )
                    self._pool.add_layer(index, layer.usual)
                except (MemoryError, RuntimeError) as error:
                    raise _out_of_memory(f"layer {index}", error) from error
                self._layers[index] = layer
                self._load_time_s.append(time.perf_counter() - start_s)
            if progress is not None:
                progress(index + 1 - span.start, span.layers)

    def unload(self, span: Span) -> None:
        """Free what is loaded of `span`; LocalError if a sequence that is open runs over it."""
        spans = (each.span for each in self._sequences.values())
        check_unload(span, self._config.num_hidden_layers, spans)
        if self._graphs is not None:
            self._graphs.forget()
        for index in range(span.start, span.end):
            self._layers.pop(index, None)
            self._pool.drop_layer(index)

    def open(self, sequence: Hashable, span: Span, max_positions: int) -> None:
        """Begin a sequence over loaded layers, or empty it if it exists already."""
        check_open(span, self.spans(), max_positions)
        self._pool.open(sequence, span, max_positions)
        self._sequences[sequence] = _Sequence(span, max_positions)

    def length(self, sequence: Hashable) -> int:
        """Positions cached so far."""
        return self._known(sequence).length

    def truncate(self, sequence: Hashable, length: int) -> None:
        """Forget all cached positions from `length` on."""
        known = self._known(sequence)
        check_truncate(length, known.length)
        self._pool.truncate(sequence, length)
        known.length = length

    def close(self, sequence: Hashable) -> None:
        """End a sequence and free its cache. Idempotent."""
        self._pool.close(sequence)
        self._sequences.pop(sequence, None)

    def cache_use(self) -> CacheUse:
        """What the caches of all sequences take, and what is kept for later ones."""
        return self._pool.use()

    def keep(self, sequence: Hashable, positions: int) -> int | None:
        """Hold the cache of the first `positions` after the sequence has ended; its number."""
        if not 0 < positions <= self._known(sequence).length:
            raise LocalError(f"{positions} positions can't be kept: they are not cached")
        return self._pool.keep(sequence, positions)

    def adopt(self, sequence: Hashable, kept: int) -> None:
        """Begin an empty sequence with what was kept of another over the same span."""
        known = self._known(sequence)
        known.length = self._pool.adopt(sequence, kept)

    def forget(self, kept: int) -> None:
        """Hold it no longer. Idempotent; sequences that adopted it are not touched."""
        self._pool.forget(kept)

    def cache_position_bytes(self, span: Span) -> int:
        """What one position of a sequence over `span` takes in a part of its cache."""
        return position_bytes(self._pool, span)

    @torch.inference_mode()
    def export(self, sequence: Hashable, start: int, end: int) -> CachePart:
        """A sequence's cache of positions `[start, end)`."""
        length = self._known(sequence).length
        check_export(start, end, length)
        return export_part(self._pool, sequence, start, end, length)

    @torch.inference_mode()
    def restore(self, sequence: Hashable, part: CachePart) -> None:
        """Lengthen a sequence by what another engine exported; RemoteError unless it fits."""
        known = self._known(sequence)
        row_bytes = self.cache_position_bytes(known.span)
        check_part(part, self._pool.layout, known.span, known, row_bytes)
        restore_part(self._pool, sequence, part)
        known.length = part.end

    @torch.inference_mode()
    def step(self, batch: Sequence[StepInput]) -> list[States]:
        """Push states through the layers of each one's span; returns new arrays, same shapes.

        Nothing is written before every sequence has room.
        """
        check_batch(batch, self._known, self.dim)
        results = [np.array(item.states) for item in batch]
        of: dict[Hashable, list[int]] = {}
        for number, item in enumerate(batch):
            of.setdefault(item.sequence, []).append(number)
        groups: dict[Span, list[_Placed]] = {}
        for sequence, numbers in of.items():
            known = self._known(sequence)
            known.length = batch[numbers[0]].position
            ends = tuple(batch[n].position + len(batch[n].states) for n in numbers)
            if ends[-1] > known.length:
                place = self._pool.place(sequence, known.length, ends[-1] - known.length)
                placed = _Placed(tuple(numbers), ends, known, place)
                groups.setdefault(known.span, []).append(placed)
        for span, group in groups.items():
            joined = np.concatenate([results[n] for placed in group for n in placed.numbers])
            states = self._run(span, group, joined)
            start = 0
            for placed in group:
                for number in placed.numbers:
                    end = start + len(results[number])
                    results[number] = states[start:end].copy()
                    start = end
                placed.known.length = placed.place.end
        return results

    def _run(self, span: Span, group: Sequence[_Placed], joined: States) -> States:
        """All rows of sequences over one span, one sequence's below the other's."""
        places = [placed.place for placed in group]
        try:
            if self._graphs is not None and self._graphs.fits(places):
                return self._graphs.run(span, places, joined)
            with self._few_threads(len(joined)):
                states = torch.from_numpy(joined).to(self._device)
                self._run_layers(span, self._rows(group), states)
                return states.cpu().numpy()
        except (MemoryError, RuntimeError) as error:
            raise _out_of_memory(f"a step of {len(joined)} rows", error) from error

    def _rows(self, group: Sequence[_Placed]) -> Rows:
        """Each input attends by itself, in parts of `cut_rows`, so that its bits depend on
        nothing else; where products round anyway, all of a sequence's do so together."""
        places, ends = [placed.place for placed in group], None
        if self._is_exact:
            ends = [part_ends(one.place.position, one.ends, self.cut_rows) for one in group]
        return Rows(places, self._frequencies, ends)

    def _run_layers(self, span: Span, rows: StepRows, states: torch.Tensor) -> None:
        for index in range(span.start, span.end):
            run_layer(self._layers[index], self._config, self._pool, rows, states)

    @contextmanager
    def _few_threads(self, rows: int) -> Iterator[None]:
        """One thread for small steps; by their shape alone, so that bits repeat."""
        work = self.layer_bytes * max(rows, _MEMORY_BOUND_ROWS)
        torch.set_num_threads(self._threads if work >= THREADED_MIN_BYTES else 1)
        try:
            yield
        finally:
            torch.set_num_threads(self._threads)

    @property
    def _free_pages(self) -> int:
        """How many sequences can begin now."""
        use = self._pool.use()
        row = self._pool.page_bytes * len(self._layers)
        return (use.limit_bytes - use.used_bytes) // row

    def _known(self, sequence: Hashable) -> _Sequence:
        known = self._sequences.get(sequence)
        if known is None:
            raise LocalError(f"sequence {sequence!r} is not open")
        return known

    def profile(self) -> Profile:
        """Measure (once) and report; at least one layer must be loaded."""
        if self._profile is None:
            span = max(self.spans(), key=lambda span: span.layers, default=None)
            if span is None:
                raise LocalError("there is nothing to measure before a layer is loaded")
            self._profile = Profile(
                model=self.model,
                compute_class=self.compute_class,
                layer_time_s=measure_layer_time_s(self, span),
                load_time_s=statistics.median(self._load_time_s),
                further_time_s=measure_further_s(self, span, self.layer_bytes, self._free_pages),
                cut_rows=self.cut_rows,
            )
        return self._profile


def _out_of_memory(what: str, error: Exception) -> Exception:
    """ResourceError if torch ran out of memory (on a CPU it says so in words alone)."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return ResourceError(f"no memory for {what}",
                             hint="serve fewer sessions or layers")  # fmt: skip
    return LocalError(f"torch failed at {what}: {text}")
