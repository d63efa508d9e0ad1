"""GgufShard: spans of a GGUF's layers, computed by llama.cpp, each layer a model of its own there.

So any layers can be loaded, dropped and run over. It costs 1 to 10 % of the time of all layers
in one model, and gives the same bits.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from gennode.engine.contract import (
    OwnCaches,
    check_batch,
    check_open,
    check_span,
    check_truncate,
    check_unload,
    maximal_spans,
)
from gennode.engine.gguf.folder import GgufFolder, open_gguf
from gennode.engine.gguf.native import MAX_ROWS, Context, Weights, library
from gennode.engine.measure import measure_further_s, measure_layer_time_s
from gennode.engine.seam import (
    DEFAULT_CACHE_BYTES,
    CacheUse,
    Profile,
    States,
    StepInput,
)
from gennode.errors import LocalError, ResourceError
from gennode.wire.ids import ModelId, Span

SLOTS = 16  # sequences at a time: llama.cpp can't copy a cache into one with more of them
FIRST_POSITIONS = 256  # in each slot; all of them grow by doubling, when one has to
_ELEMENT_BYTES = 2  # llama.cpp keeps keys and values in fp16

# Below, one thread is quicker on a busy machine than several that wait for each other, at
# every one of some fifteen operations; see THREADED_MIN_PRODUCTS in the Llama engine.
THREADED_MIN_PARAMETERS = 1 << 22


@dataclass
class _Sequence:
    span: Span
    max_positions: int
    slot: int
    length: int = 0


class GgufShard(OwnCaches):
    """A ShardEngine for GGUF files, on the CPU. Keys and values are fp16 in each layer's cache."""

    def __init__(self, folder: GgufFolder, *, max_cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        """`max_cache_bytes` bounds the keys and values of all sequences together.

        UsageError without llama-cpp-python, or with a version of it that is not known.
        """
        library()
        self._folder = folder
        self._max_cache_bytes = max_cache_bytes
        self._weights: dict[int, Weights] = {}
        self._contexts: dict[int, Context] = {}
        self._sequences: dict[Hashable, _Sequence] = {}
        self._positions = FIRST_POSITIONS
        threaded = folder.gguf.shape.layer_parameters >= THREADED_MIN_PARAMETERS
        self._threads = _cores() if threaded else 1
        self._load_time_s: list[float] = []
        self._profile: Profile | None = None

    @property
    def model(self) -> ModelId:
        """Which weights these are."""
        return self._folder.manifest.model

    @property
    def dim(self) -> int:
        """Width of the hidden states."""
        return self._folder.gguf.shape.dim

    @property
    def compute_class(self) -> str:
        """Weights, arithmetic and device: engines of one class agree to rounding."""
        return self._folder.gguf.compute_class

    def spans(self) -> tuple[Span, ...]:
        """The layers that are loaded, as sorted, maximal, disjoint spans."""
        return maximal_spans(self._weights)

    def load(self, span: Span, progress: Callable[[int, int], None] | None = None) -> None:
        """Load the layers of `span` that are not loaded yet, through a file without a name."""
        check_span(span, self._folder.gguf.shape.layers)
        for index in range(span.start, span.end):
            if index not in self._weights:
                start_s = time.perf_counter()
                self._load(index)
                self._load_time_s.append(time.perf_counter() - start_s)
            if progress is not None:
                progress(index + 1 - span.start, span.layers)

    def _load(self, index: int) -> None:
        try:
            with _nameless_file() as stream:
                self._folder.gguf.write_layer(index, stream)
                weights = Weights(stream)
        except OSError as error:
            raise ResourceError(f"layer {index} can't be laid out: {error.strerror}",
                                hint="free some memory and disk") from error  # fmt: skip
        try:
            self._check_cache(self._positions, len(self._weights) + 1)
            self._contexts[index] = self._context(weights, self._positions)
        except ResourceError:
            weights.close()
            raise
        self._weights[index] = weights

    def unload(self, span: Span) -> None:
        """Free what is loaded of `span`; LocalError if a sequence that is open runs over it."""
        spans = (each.span for each in self._sequences.values())
        check_unload(span, self._folder.gguf.shape.layers, spans)
        for index in range(span.start, span.end):
            if index in self._weights:
                self._contexts.pop(index).close()
                self._weights.pop(index).close()

    def open(self, sequence: Hashable, span: Span, max_positions: int) -> None:
        """Begin a sequence over loaded layers, or empty it if it exists already."""
        check_open(span, self.spans(), max_positions)
        self.close(sequence)
        taken = {each.slot for each in self._sequences.values()}
        slot = min(set(range(len(taken) + 1)) - taken)
        if slot >= SLOTS:
            raise ResourceError(f"llama.cpp holds no more than {SLOTS} sequences here",
                                hint="serve fewer sessions")  # fmt: skip
        self._sequences[sequence] = _Sequence(span, max_positions, slot)

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        """Push states through the layers of each one's span; returns new arrays, same shapes."""
        check_batch(batch, self._known, self.dim)
        before: Counter[Hashable] = Counter()
        waves: list[list[int]] = []  # each with one input of a sequence at most
        for number, item in enumerate(batch):
            if before[item.sequence] == len(waves):
                waves.append([])
            waves[before[item.sequence]].append(number)
            before[item.sequence] += 1
        results: dict[int, States] = {}
        for wave in waves:
            found = self._step([batch[number] for number in wave])
            results.update(zip(wave, found, strict=True))
        return [results[number] for number in range(len(batch))]

    def _step(self, batch: Sequence[StepInput]) -> list[States]:
        """No two parts of one sequence."""
        needed = max((item.position + len(item.states) for item in batch), default=0)
        while needed > self._positions:
            self._resize(2 * self._positions)
        for item in batch:
            self.truncate(item.sequence, item.position)
        results: list[States | None] = [None] * len(batch)
        for numbers in self._together(batch):
            for number, states in zip(numbers, self._run(batch, numbers), strict=True):
                results[number] = states
        return [states for states in results if states is not None]

    def _together(self, batch: Sequence[StepInput]) -> list[list[int]]:
        """Which of a batch are computed in one call: single rows of neighbouring slots."""
        slots = [self._known(item.sequence).slot for item in batch]
        groups: list[list[int]] = []
        last: tuple[int, Span] | None = None
        for number in sorted(range(len(batch)), key=lambda number: slots[number]):
            span = self._known(batch[number].sequence).span
            single = len(batch[number].states) == 1
            if single and last == (slots[number] - 1, span):
                groups[-1].append(number)
            else:
                groups.append([number])
            last = (slots[number], span) if single else None
        return groups

    def _run(self, batch: Sequence[StepInput], numbers: Sequence[int]) -> list[States]:
        """Some of a batch through all their layers, in pieces of MAX_ROWS."""
        known = [self._known(batch[number].sequence) for number in numbers]
        places = [
            (each.slot, batch[number].position + row)
            for each, number in zip(known, numbers, strict=True)
            for row in range(len(batch[number].states))
        ]
        states = np.concatenate([batch[number].states for number in numbers])
        for start in range(0, len(places), MAX_ROWS):
            piece = slice(start, start + MAX_ROWS)
            for layer in range(*known[0].span):
                states[piece] = self._contexts[layer].step(states[piece], places[piece])
        results = []
        for each, number in zip(known, numbers, strict=True):
            rows = len(batch[number].states)
            each.length = batch[number].position + rows
            results.append(states[:rows].copy())
            states = states[rows:]
        return results

    def length(self, sequence: Hashable) -> int:
        """Positions cached so far."""
        return self._known(sequence).length

    def truncate(self, sequence: Hashable, length: int) -> None:
        """Forget all cached positions from `length` on, and those of a step that failed."""
        known = self._known(sequence)
        check_truncate(length, known.length)
        for layer in range(*known.span):
            self._contexts[layer].truncate(known.slot, length)
        known.length = length

    def close(self, sequence: Hashable) -> None:
        """End a sequence and free its slot. Idempotent."""
        if sequence in self._sequences:
            self.truncate(sequence, 0)
            del self._sequences[sequence]
            if not self._sequences and self._positions > FIRST_POSITIONS:
                self._resize(FIRST_POSITIONS)

    def reread(self, path: Path) -> None:
        """Load from this folder from now on: the same model, with more of its files here."""
        folder = open_gguf(path)
        if folder.manifest.model != self.model:
            raise LocalError("a folder of another model can't take an engine's place")
        self._folder = folder

    def cache_use(self) -> CacheUse:
        """What the caches of all slots take: llama.cpp takes it at once."""
        used = self._cache_bytes(self._positions, len(self._weights))
        return CacheUse(used, self._max_cache_bytes)

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
                further_time_s=measure_further_s(
                    self, span, self._folder.gguf.layer_memory_bytes, SLOTS - len(self._sequences)
                ),
            )
        return self._profile

    def _known(self, sequence: Hashable) -> _Sequence:
        known = self._sequences.get(sequence)
        if known is None:
            raise LocalError(f"sequence {sequence!r} is not open")
        return known

    def _resize(self, positions: int) -> None:
        """New contexts with room for so much, layer by layer, and what the old ones held."""
        self._check_cache(positions, len(self._weights))
        for index, old in list(self._contexts.items()):
            new = self._context(self._weights[index], positions)
            for known in self._sequences.values():
                if known.span.start <= index < known.span.end and known.length:
                    old.truncate(known.slot, known.length)
                    new.restore(known.slot, old.save(known.slot))
            old.close()
            self._contexts[index] = new
        self._positions = positions

    def _context(self, weights: Weights, positions: int) -> Context:
        return Context(
            weights, dim=self.dim, slots=SLOTS, positions=positions, threads=self._threads
        )

    def _check_cache(self, positions: int, layers: int) -> None:
        if self._cache_bytes(positions, layers) > self._max_cache_bytes:
            raise ResourceError(
                f"{self._max_cache_bytes} bytes are too few for the cache of {SLOTS} sequences "
                f"of {positions} positions",
                hint="serve fewer layers, or allow more memory for the cache",
            )

    def _cache_bytes(self, positions: int, layers: int) -> int:
        elements = self._folder.gguf.shape.position_elements
        return SLOTS * positions * layers * elements * _ELEMENT_BYTES


def _nameless_file() -> IO[bytes]:
    """An empty file that is gone when it is closed: in memory, where the system has such."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("layer"), "w+b")
    return tempfile.TemporaryFile()


def _cores() -> int:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
