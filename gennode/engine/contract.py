"""What every shard engine checks of its callers, and how it states its spans."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol

import numpy as np

from gennode.engine.seam import CachePart, StepInput
from gennode.errors import LocalError, RemoteError
from gennode.wire.ids import Span


def maximal_spans(layers: Iterable[int]) -> tuple[Span, ...]:
    """A set of layers as sorted, maximal, disjoint spans."""
    spans: list[Span] = []
    for layer in sorted(layers):
        if spans and spans[-1].end == layer:
            spans[-1] = Span(spans[-1].start, layer + 1)
        else:
            spans.append(Span(layer, layer + 1))
    return tuple(spans)


def check_span(span: Span, layers: int) -> None:
    """LocalError unless `span` is a non-empty range of a model of so many layers."""
    if not 0 <= span.start < span.end <= layers:
        raise LocalError(f"layers {span} are no span of a model of {layers} layers")


def check_open(span: Span, loaded: tuple[Span, ...], max_positions: int) -> None:
    """LocalError unless a sequence of so many positions can run over loaded layers."""
    if span.layers < 1 or not any(have.covers(span) for have in loaded):
        raise LocalError(f"layers {span} are not loaded")
    if max_positions < 1:
        raise LocalError(f"a sequence of at most {max_positions} positions holds nothing")


def check_unload(span: Span, layers: int, open_spans: Iterable[Span]) -> None:
    """LocalError unless `span` is one of the model's that no open sequence needs."""
    check_span(span, layers)
    for used in open_spans:
        if used.start < span.end and span.start < used.end:
            raise LocalError(f"layers {span} can't be dropped: a sequence runs over {used}")


class Sequenced(Protocol):
    """What an engine knows of a sequence: how long it is, and may become."""

    @property
    def length(self) -> int: ...

    @property
    def max_positions(self) -> int: ...


def check_batch(
    batch: Sequence[StepInput], known: Callable[[Hashable], Sequenced], dim: int
) -> None:
    """LocalError unless each input continues (or rewinds) its sequence, and each further one of
    a sequence begins where the one before it in the batch ends."""
    ends: dict[Hashable, int] = {}
    for item in batch:
        sequence = known(item.sequence)
        end = ends.get(item.sequence, item.position)
        if end != item.position:
            raise LocalError(f"a step at position {item.position} comes behind one up to {end}")
        is_first = item.sequence not in ends
        length = sequence.length if is_first else end
        check_step(item, length, sequence.max_positions, dim)
        ends[item.sequence] = item.position + len(item.states)


def check_step(item: StepInput, length: int, max_positions: int, dim: int) -> None:
    """LocalError unless the step continues (or rewinds) its sequence, in the right shape."""
    states = item.states
    if states.ndim != 2 or states.shape[1] != dim or states.dtype != np.float32:
        raise LocalError(f"states are {states.dtype} {states.shape}, not float32 [rows, {dim}]")
    if not 0 <= item.position <= length:
        raise LocalError(f"a step at position {item.position} leaves a gap after {length}")
    if item.position + len(states) > max_positions:
        raise LocalError(f"a step ends beyond the {max_positions} positions that were opened")


def check_truncate(new_length: int, length: int) -> None:
    """LocalError unless the sequence has at least `new_length` positions."""
    if not 0 <= new_length <= length:
        raise LocalError(f"a sequence of {length} positions can't be cut to {new_length}")


def check_export(start: int, end: int, length: int) -> None:
    """LocalError unless a sequence of so many positions has these."""
    if not 0 <= start <= end <= length:
        raise LocalError(f"positions {start} to {end} are not cached, of {length} that are")


def check_part(part: CachePart, layout: str, span: Span, known: Sequenced, row_bytes: int) -> None:
    """RemoteError unless a part fits behind what a sequence has.

    `row_bytes`: what one position takes over `span`.
    """
    if part.layout != layout or part.span != span:
        raise RemoteError("a part of a cache is laid out in another way, or of other layers")
    if part.start != known.length or not part.start <= part.end <= known.max_positions:
        raise RemoteError(f"a part of a cache for positions {part.start} to {part.end} comes to "
                          f"{known.length} of {known.max_positions}")  # fmt: skip
    if len(part.payload) != (part.end - part.start) * row_bytes:
        raise RemoteError("a part of a cache is not as long as its positions")


class OwnCaches:
    """The part of a ShardEngine whose sequences share nothing and can't move elsewhere."""

    def keep(self, sequence: Hashable, positions: int) -> int | None:
        """None: nothing is kept here."""
        return None

    def adopt(self, sequence: Hashable, kept: int) -> None:
        """LocalError: nothing is kept, so nothing can be adopted."""
        raise LocalError("this engine keeps nothing")

    def forget(self, kept: int) -> None:
        """Nothing is kept."""

    def cache_position_bytes(self, span: Span) -> int:
        """0: caches stay here."""
        return 0

    def export(self, sequence: Hashable, start: int, end: int) -> CachePart:
        """LocalError: its caches can't be laid out for others."""
        raise LocalError("this engine's caches can't be exported")

    def restore(self, sequence: Hashable, part: CachePart) -> None:
        """LocalError: the same."""
        raise LocalError("this engine's caches can't be restored")
