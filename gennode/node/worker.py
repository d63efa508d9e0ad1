"""A worker: an engine, what it may take on, and what it does between steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gennode.engine.contract import maximal_spans
from gennode.engine.seam import CachePart, ShardEngine, States
from gennode.errors import LocalError, ResourceError
from gennode.node.actions import Exported, ExportJob, HopKey, OpenJob, RestoreJob, StepJob
from gennode.node.hops.admission import MAX_SESSIONS, HostedModel
from gennode.node.prefixes import Prefixes
from gennode.wire.activations import codec
from gennode.wire.announcement import Hosting
from gennode.wire.ids import Span

MIN_SHARE = 0.01  # with less, a step of a second would be followed by minutes without one


@dataclass
class Work:
    """What a worker has done since it started."""

    steps: int = 0
    compute_s: float = 0.0
    codec_s: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.steps + other.steps,
            self.compute_s + other.compute_s,
            self.codec_s + other.codec_s,
        )


@dataclass
class Usage:
    """What a worker's threads know of its layers: values are replaced whole, never changed.

    `leaving`: layers that are loaded, but announced no longer. `sequences`: what is open.
    """

    leaving: frozenset[int] = frozenset()
    sequences: Mapping[HopKey, Span] = field(default_factory=dict)


@dataclass(frozen=True)
class Worker:
    """What a peer needs to host layers of a model: one worker per model.

    `capacity_layers`: how many may be loaded in all. `max_positions`: the longest session.
    `loads_on_request`: whether a session may ask for layers that are not loaded yet; not where
    their weights have to be fetched first, which only moving does. `share`: of its time, how
    much a worker computes at most; after a step of t seconds it rests for t (1/share - 1), so
    that its machine stays usable. `price` and `is_fixed`: see `Hosting`.
    """

    engine: ShardEngine
    layers: int
    capacity_layers: int
    max_positions: int = 32_768
    work: Work = field(default_factory=Work)
    loads_on_request: bool = True
    share: float = 1.0
    price: int = 0
    is_fixed: bool = False
    usage: Usage = field(default_factory=Usage)
    rest: Callable[[float], None] = time.sleep
    max_sessions: int = MAX_SESSIONS
    prefixes: Prefixes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefixes", Prefixes(self.engine))
        if not MIN_SHARE <= self.share <= 1:
            raise LocalError(f"a share of {self.share:g} is not within {MIN_SHARE} and 1")

    # -- what is announced --------------------------------------------------------------------

    def hosting(self) -> Hosting:
        """What to announce now; measures the engine the first time."""
        profile = self.engine.profile()
        return Hosting(
            model=profile.model,
            spans=maximal_spans(_layers(*self.engine.spans()) - self.usage.leaving),
            spare_layers=self._spare_layers() + sum(span.layers for span in self.leaving()),
            layer_time_s=profile.layer_time_s / self.share,
            load_time_s=profile.load_time_s,
            max_sessions=self.max_sessions,
            compute_class=profile.compute_class,
            further_time_s=profile.further_time_s / self.share,
            price=self.price,
            is_fixed=self.is_fixed,
            loads_on_request=self.loads_on_request,
        )

    def terms(self) -> HostedModel:
        """What the machine that keeps sessions needs to know."""
        return HostedModel(
            model=self.engine.model,
            layers=self.layers,
            dim=self.engine.dim,
            max_positions=self.max_positions,
            can_host=self.can_host,
            is_leaving=lambda span: bool(self.usage.leaving & _layers(span)),
            cache_position_bytes=self.engine.cache_position_bytes,
        )

    def can_host(self, span: Span) -> bool:
        """Whether layers are loaded, be they leaving or not, or may be loaded on request."""
        missing = len(_layers(span) - _layers(*self.engine.spans()))
        return missing <= (self._spare_layers() if self.loads_on_request else 0)

    def _spare_layers(self) -> int:
        loaded = sum(span.layers for span in self.engine.spans())
        return max(0, min(self.capacity_layers, self.layers) - loaded)

    # -- moving -------------------------------------------------------------------------------

    def withdraw(self, span: Span) -> None:
        """Keep these layers for the sessions alone that are here already."""
        self.usage.leaving |= _layers(span)

    def restore(self, span: Span) -> None:
        """Host layers again that were withdrawn."""
        self.usage.leaving -= _layers(span)

    def leaving(self) -> tuple[Span, ...]:
        """What is loaded but withdrawn."""
        return maximal_spans(self.usage.leaving & _layers(*self.engine.spans()))

    def used_layers(self) -> frozenset[int]:
        """The layers that open sequences go through."""
        return _layers(*self.usage.sequences.values())

    def unload(self, span: Span) -> None:
        """Free the memory of layers, in the engine's thread. Sequences that use them are closed
        first: their owners hear of it at the next step, and go elsewhere."""
        for key, used in self.usage.sequences.items():
            if _layers(used) & _layers(span):
                self.close(key)
        self.prefixes.drop(span)
        self.engine.unload(span)
        self.restore(span)

    # -- sessions, in the engine's thread -----------------------------------------------------

    def open(self, job: OpenJob) -> bool:
        """Load one layer that is missing, or begin the sequence if none is; whether it has begun.

        Layer by layer, so that sessions that run can step in between. ResourceError if memory
        does not suffice.
        """
        if not self.can_host(job.span):  # another session took the room meanwhile
            raise ResourceError(f"layers {job.span} no longer fit")
        missing = _layers(job.span) - _layers(*self.engine.spans())
        if missing:
            layer = min(missing)
            self.engine.load(Span(layer, layer + 1))
            return False
        self._begin(job)
        self.prefixes.open(job.key, job.owner, job.span)
        self.usage.sequences = {**self.usage.sequences, job.key: job.span}
        return True

    def _begin(self, job: OpenJob) -> None:
        self._with_room(lambda: self.engine.open(job.key, job.span, job.max_positions))

    def _with_room(self, call: Callable[[], None]) -> None:
        """Who comes now is worth more than what may come back."""
        while True:
            try:
                call()
            except ResourceError:
                if not self.prefixes.relieve():
                    raise
            else:
                return

    def export(self, job: ExportJob) -> Exported:
        """A part of a sequence's cache, as it is now; an empty one behind its end."""
        position_bytes = self.engine.cache_position_bytes(self.usage.sequences[job.key])
        positions = job.max_bytes // position_bytes if position_bytes else 0
        if not positions:
            raise LocalError("this cache can't be exported, or not in so small parts")
        end = min(self.engine.length(job.key), job.start + positions)
        if end <= job.start:
            return Exported("", job.start, job.start, b"")
        part = self.engine.export(job.key, job.start, end)
        return Exported(part.layout, part.start, part.end, part.payload)

    def take_in(self, job: RestoreJob) -> bytes:
        """Lengthen a sequence by a part of a cache; RemoteError unless it fits."""
        span = self.usage.sequences[job.key]
        part = CachePart(job.layout, span, job.start, job.end, job.payload)
        self._with_room(lambda: self.engine.restore(job.key, part))
        return b""

    def close(self, key: HopKey) -> None:
        """End a sequence. Idempotent."""
        self.prefixes.close(key)
        self.engine.close(key)
        self.usage.sequences = {one: s for one, s in self.usage.sequences.items() if one != key}

    def encode(self, job: StepJob, states: States) -> bytes:
        """What a step's result is passed on as. LocalError if a state is not finite."""
        return codec(job.codec).encode(states)


def _layers(*spans: Span) -> frozenset[int]:
    return frozenset(layer for span in spans for layer in range(span.start, span.end))
