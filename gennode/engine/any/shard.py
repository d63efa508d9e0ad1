"""AnyShard: spans of any decoder's layers, computed by the transformers library's classes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gennode.engine.any.cache import SpanCache
from gennode.engine.any.load import load_layer, unload_layer
from gennode.engine.any.skeleton import Skeleton
from gennode.engine.checkpoint.weights import ModelFolder, open_model
from gennode.engine.contract import (
    OwnCaches,
    check_batch,
    check_open,
    check_span,
    check_truncate,
    check_unload,
    maximal_spans,
)
from gennode.engine.devices import pick_device
from gennode.engine.measure import measure_layer_time_s
from gennode.engine.seam import CacheUse, Profile, States, StepInput
from gennode.errors import LocalError, ResourceError
from gennode.wire.ids import ModelId, Span

_ELEMENT_BYTES = 4  # everything is fp32


@dataclass
class _Sequence:
    span: Span
    max_positions: int
    cache: SpanCache

    @property
    def length(self) -> int:
        return self.cache.length


class AnyShard(OwnCaches):
    """A ShardEngine for any decoder that transformers knows. Weights are widened to fp32.

    All spans share one skeleton of the model; a layer is loaded by giving it its weights. A
    batch is computed one sequence after the other, so that none can change another's bits.
    """

    def __init__(
        self, folder: ModelFolder, *, device: str = "cpu", max_cache_bytes: int = 4 * 1024**3
    ) -> None:
        """`max_cache_bytes` bounds what all sequences remember together.

        Raises DeviceError if `device` is not here, ModelError if the library can't make the
        model or its layers can't be run apart.
        """
        self._folder = folder
        self._device = torch.device(pick_device(device))
        self._skeleton = Skeleton(folder.other, self._device)
        self._max_cache_bytes = max_cache_bytes
        self._position_bytes = folder.other.shape.position_elements * _ELEMENT_BYTES
        self._loaded: set[int] = set()
        self._sequences: dict[Hashable, _Sequence] = {}
        self._load_time_s: list[float] = []
        self._profile: Profile | None = None

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
        return self._folder.config.hidden_size

    @property
    def compute_class(self) -> str:
        """Weights, arithmetic and device: engines of one class agree to rounding."""
        return f"fp32-{self._device.type}"

    def spans(self) -> tuple[Span, ...]:
        """The layers that are loaded, as sorted, maximal, disjoint spans."""
        return maximal_spans(self._loaded)

    def load(self, span: Span, progress: Callable[[int, int], None] | None = None) -> None:
        """Load the layers of `span` that are not loaded yet, one at a time.

        `progress` is told (layers done, layers in all). Raises ModelError, ResourceError.
        """
        check_span(span, self._folder.config.num_hidden_layers)
        for index in range(*span):
            if index not in self._loaded:
                start_s = time.perf_counter()
                try:
                    load_layer(self._skeleton, self._folder, index, self._device)
                except (MemoryError, RuntimeError) as error:
                    unload_layer(self._skeleton, index)
                    raise _out_of_memory(f"layer {index}", error) from error
                self._loaded.add(index)
                self._load_time_s.append(time.perf_counter() - start_s)
            if progress is not None:
                progress(index + 1 - span.start, span.layers)

    def unload(self, span: Span) -> None:
        """Free what is loaded of `span`; LocalError if a sequence that is open runs over it."""
        spans = (each.span for each in self._sequences.values())
        check_unload(span, self._folder.config.num_hidden_layers, spans)
        for index in self._loaded & set(range(*span)):
            unload_layer(self._skeleton, index)
            self._loaded.discard(index)

    def open(self, sequence: Hashable, span: Span, max_positions: int) -> None:
        """Begin a sequence over loaded layers, or empty it if it exists already."""
        check_open(span, self.spans(), max_positions)
        cache = self._skeleton.new_cache(span)
        self._sequences[sequence] = _Sequence(span, max_positions, cache)

    def length(self, sequence: Hashable) -> int:
        """Positions cached so far."""
        return self._known(sequence).length

    def truncate(self, sequence: Hashable, length: int) -> None:
        """Forget all cached positions from `length` on.

        ResourceError if recurrent layers no longer know what they were there.
        """
        known = self._known(sequence)
        check_truncate(length, known.length)
        known.cache.rewind(length)

    def close(self, sequence: Hashable) -> None:
        """End a sequence and free its cache. Idempotent."""
        self._sequences.pop(sequence, None)

    def cache_use(self) -> CacheUse:
        """What the caches of all sequences take."""
        used_bytes = sum(each.cache.used_bytes for each in self._sequences.values())
        return CacheUse(used_bytes, self._max_cache_bytes)

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        """Push states through the layers of each one's span; returns new arrays, same shapes.

        ResourceError if recurrent layers can't go back to a step's position.
        """
        check_batch(batch, self._known, self.dim)
        return [self._step(item) for item in batch]

    @torch.inference_mode()
    def _step(self, item: StepInput) -> States:
        known = self._known(item.sequence)
        rows = len(item.states)
        if rows == 0:
            known.cache.rewind(item.position)
            return np.array(item.states)
        known.cache.begin(item.position)
        self._check_room(known, rows)
        states = torch.tensor(item.states, device=self._device)
        try:
            found = self._skeleton.run(known.span, states, item.position, known.cache)
        except (MemoryError, RuntimeError) as error:
            raise _out_of_memory(f"{rows} rows at position {item.position}", error) from error
        known.cache.end(item.position + rows)
        return np.ascontiguousarray(found.float().cpu().numpy())

    def _check_room(self, known: _Sequence, rows: int) -> None:
        """ResourceError unless the keys and values of so many more rows are allowed.

        What they will take is estimated; what is there already is counted.
        """
        more_bytes = rows * known.span.layers * self._position_bytes
        if self.cache_use().used_bytes + more_bytes > self._max_cache_bytes:
            raise ResourceError(
                f"{self._max_cache_bytes} bytes are too few for the cache of all sequences",
                hint="serve fewer sessions or layers, or allow more memory for the cache",
            )

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
            layer_time_s = measure_layer_time_s(self, span)
            self._profile = Profile(
                model=self.model,
                compute_class=self.compute_class,
                layer_time_s=layer_time_s,
                load_time_s=statistics.median(self._load_time_s),
                further_time_s=layer_time_s,  # a batch is computed one after the other
            )
        return self._profile


def _out_of_memory(what: str, error: Exception) -> Exception:
    """ResourceError if torch ran out of memory (on a CPU it says so in words alone)."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return ResourceError(f"no memory for {what}",
                             hint="serve fewer sessions or layers")  # fmt: skip
    return LocalError(f"torch failed at {what}: {text}")
