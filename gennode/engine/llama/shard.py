"""LlamaShard: spans of a Llama's layers, computed with torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from gennode.engine.checkpoint.weights import ModelFolder, open_model
from gennode.engine.contract import (
    check_open,
    check_span,
    check_step,
    check_truncate,
    check_unload,
    maximal_spans,
)
from gennode.engine.devices import pick_device
from gennode.engine.llama.model import (
    Layer,
    LayerCache,
    load_layer,
    place,
    rotary_frequencies,
    run_layer,
)
from gennode.engine.seam import CachePages, CacheUse, Profile, States, StepInput
from gennode.errors import LocalError, ResourceError
from gennode.wire.ids import ModelId, Span

CACHE_BLOCK_POSITIONS = 256  # a cache grows by doubling, in whole blocks: rarely, and by copying
DEFAULT_CACHE_BYTES = 4 * 1024**3  # 46,000 positions of 22 layers of a 1.1 B Llama

# A threaded loop ends with a wait for the slowest thread. On a busy machine that is the time
# slice of some other process: 30 ms measured for 7 µs of work. So a layer that takes one thread
# less than about 1 ms stays on one: at dim 512 and one row that costs 1.1 ms instead of 0.9 on
# an idle machine, and 1.5 ms instead of 8 on a busy one. Reading weights for one row takes as
# long as computing with them for about four.
THREADED_MIN_PRODUCTS = 1 << 24
_MEMORY_BOUND_ROWS = 4

PROFILE_POSITIONS = 64  # a short prompt: what a token costs is nearly all weights there
PROFILE_STEPS = 9
PROFILE_BATCH = 3  # sequences in a step, to see what the second and later ones add
PROFILE_BATCHES = 5
PROFILE_BYTES = 256 * 1024**2  # of weights, for that: more than processors keep at hand
_WARM_UP_STEPS = 2

_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass
class _Sequence:
    span: Span
    max_positions: int
    length: int = 0
    capacity: int = 0
    caches: list[LayerCache] = field(default_factory=list)


class LlamaShard:
    """A ShardEngine for Llama. Weights are widened to `dtype`; states between layers are fp32.

    A batch is computed one sequence after the other, so that none can change another's bits.
    """

    def __init__(
        self,
        folder: ModelFolder,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        """`max_cache_bytes` bounds the keys and values of all sequences together.

        Raises DeviceError if `device` is not here.
        """
        if dtype not in _DTYPE_NAMES:
            raise LocalError(f"{dtype} is no dtype that layers are computed in")
        self._folder = folder
        self._config = folder.llama
        self._device = torch.device(pick_device(device))
        self._dtype = dtype
        self._max_cache_bytes = max_cache_bytes
        self._layers: dict[int, Layer] = {}
        self._sequences: dict[Hashable, _Sequence] = {}
        self._frequencies = rotary_frequencies(folder.llama).to(self._device)
        self._load_time_s: list[float] = []
        self._profile: Profile | None = None
        self._threads = torch.get_num_threads()

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
    def compute_class(self) -> str:
        """Weights, arithmetic and device: engines of one class agree to rounding."""
        return f"{_DTYPE_NAMES[self._dtype]}-{self._device.type}"

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
                    layer = load_layer(self._folder, index, self._device, self._dtype)
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
        for index in range(span.start, span.end):
            self._layers.pop(index, None)

    def open(self, sequence: Hashable, span: Span, max_positions: int) -> None:
        """Begin a sequence over loaded layers, or empty it if it exists already."""
        check_open(span, self.spans(), max_positions)
        self._sequences[sequence] = _Sequence(span, max_positions)

    def length(self, sequence: Hashable) -> int:
        """Positions cached so far."""
        return self._known(sequence).length

    def truncate(self, sequence: Hashable, length: int) -> None:
        """Forget all cached positions from `length` on; their memory stays for the next ones."""
        known = self._known(sequence)
        check_truncate(length, known.length)
        known.length = length

    def close(self, sequence: Hashable) -> None:
        """End a sequence and free its cache. Idempotent."""
        self._sequences.pop(sequence, None)

    def cache_use(self) -> CacheUse:
        """What the caches of all sequences take."""
        held = sum(each.capacity * each.span.layers for each in self._sequences.values())
        return CacheUse(held * self._position_bytes, self._max_cache_bytes)

    @property
    def _position_bytes(self) -> int:
        return self._config.shape.position_elements * self._dtype.itemsize

    def keep(self, sequence: Hashable, positions: int) -> int | None:
        """Not yet."""
        return None

    def adopt(self, sequence: Hashable, kept: int) -> None:
        """Not yet."""
        raise LocalError("nothing is kept")

    def forget(self, kept: int) -> None:
        """Nothing is kept."""

    def export(self, sequence: Hashable) -> CachePages:
        """Not yet."""
        raise LocalError("caches can't be exported")

    def restore(self, sequence: Hashable, pages: CachePages) -> None:
        """Not yet."""
        raise LocalError("caches can't be restored")

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        """Push states through the layers of each one's span; returns new arrays, same shapes."""
        return [self._step(item) for item in batch]

    @torch.inference_mode()
    def _step(self, item: StepInput) -> States:
        known = self._known(item.sequence)
        check_step(item, known.length, known.max_positions, self.dim)
        known.length = item.position
        rows = len(item.states)
        if rows == 0:
            return np.array(item.states)
        end = item.position + rows
        try:
            if end > known.capacity:
                self._grow(known, end)
            with self._few_threads(rows):
                states = torch.tensor(item.states, device=self._device)
                where = place(item.position, rows, self._frequencies)
                for index, cache in enumerate(known.caches, start=known.span.start):
                    run_layer(self._layers[index], self._config, cache, where, states)
        except (MemoryError, RuntimeError) as error:
            raise _out_of_memory(f"{rows} rows at position {item.position}", error) from error
        known.length = end
        return states.cpu().numpy()

    @contextmanager
    def _few_threads(self, rows: int) -> Iterator[None]:
        """One thread for small steps; by their shape alone, so that bits repeat."""
        products = self._config.shape.layer_parameters * max(rows, _MEMORY_BOUND_ROWS)
        torch.set_num_threads(self._threads if products >= THREADED_MIN_PRODUCTS else 1)
        try:
            yield
        finally:
            torch.set_num_threads(self._threads)

    def _known(self, sequence: Hashable) -> _Sequence:
        known = self._sequences.get(sequence)
        if known is None:
            raise LocalError(f"sequence {sequence!r} is not open")
        return known

    def _grow(self, known: _Sequence, needed: int) -> None:
        """Make room for `needed` positions, keeping the first `length`; layer by layer, so that
        at no time more than one layer's cache is held twice."""
        blocks = -(-max(needed, 2 * known.capacity) // CACHE_BLOCK_POSITIONS)
        capacity = min(blocks * CACHE_BLOCK_POSITIONS, known.max_positions)
        position_bytes = self._config.shape.position_elements * self._dtype.itemsize
        held = sum(each.capacity * each.span.layers for each in self._sequences.values())
        held += (capacity - known.capacity) * known.span.layers
        if held * position_bytes > self._max_cache_bytes:
            raise ResourceError(
                f"{self._max_cache_bytes} bytes are too few for the cache of all sequences",
                hint="serve fewer sessions or layers, or allow more memory for the cache",
            )
        size = (self._config.kv_heads, capacity, self._config.head_width)

        def wider(old: torch.Tensor | None) -> torch.Tensor:
            new = torch.empty(size, dtype=self._dtype, device=self._device)
            if old is not None:
                new[:, : known.length] = old[:, : known.length]
            return new

        for index in range(known.span.layers):
            if index == len(known.caches):
                known.caches.append(LayerCache(wider(None), wider(None)))
            elif known.caches[index].keys.shape[1] < capacity:
                old = known.caches[index]
                known.caches[index] = LayerCache(wider(old.keys), wider(old.values))
        known.capacity = capacity

    def profile(self) -> Profile:
        """Measure (once) and report; at least one layer must be loaded."""
        if self._profile is None:
            span = max(self.spans(), key=lambda span: span.layers, default=None)
            if span is None:
                raise LocalError("there is nothing to measure before a layer is loaded")
            self._profile = Profile(
                model=self.model,
                compute_class=self.compute_class,
                layer_time_s=self._measure_layer_time_s(span),
                load_time_s=statistics.median(self._load_time_s),
                further_time_s=self._measure_further_s(span),
            )
        return self._profile

    def _measure_layer_time_s(self, span: Span) -> float:
        """The median of some one-token steps, per layer."""
        scratch = object()
        steps = _WARM_UP_STEPS + PROFILE_STEPS
        self.open(scratch, span, PROFILE_POSITIONS + steps)
        self.step([StepInput(scratch, 0, np.zeros((PROFILE_POSITIONS, self.dim), np.float32))])
        times_s = [
            self._time_step_s([scratch], position)
            for position in range(PROFILE_POSITIONS, PROFILE_POSITIONS + steps)
        ]
        self.close(scratch)
        return statistics.median(times_s[_WARM_UP_STEPS:]) / span.layers

    def _measure_further_s(self, span: Span) -> float:
        """What each sequence after the first adds to a step, per layer; over part of the span.

        Both are measured in turns, so that whatever else runs here slows both down.
        """
        layer_bytes = self._config.shape.layer_parameters * self._dtype.itemsize
        layers = min(span.layers, 1 + PROFILE_BYTES // layer_bytes)
        batch = [object() for _ in range(PROFILE_BATCH)]
        steps = _WARM_UP_STEPS + PROFILE_BATCHES
        for scratch in batch:
            self.open(scratch, Span(span.start, span.start + layers), steps)
        added_s = []
        for position in range(steps):
            alone_s = self._time_step_s(batch[:1], position)
            added_s.append(self._time_step_s(batch, position) - alone_s)
        for scratch in batch:
            self.close(scratch)
        added = statistics.median(added_s[_WARM_UP_STEPS:])
        return max(0.0, added) / (PROFILE_BATCH - 1) / layers

    def _time_step_s(self, sequences: Sequence[Hashable], position: int) -> float:
        """Seconds of a step with one token of each."""
        token = np.zeros((1, self.dim), np.float32)
        batch = [StepInput(sequence, position, token) for sequence in sequences]
        start_s = time.perf_counter()
        self.step(batch)
        return time.perf_counter() - start_s


def _out_of_memory(what: str, error: Exception) -> Exception:
    """ResourceError if torch ran out of memory (on a CPU it says so in words alone)."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return ResourceError(f"no memory for {what}",
                             hint="serve fewer sessions or layers")  # fmt: skip
    return LocalError(f"torch failed at {what}: {text}")
