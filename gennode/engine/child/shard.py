"""ChildShard: an engine in a process of its own, which the node outlives."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from gennode.engine.child import protocol as say
from gennode.engine.child.channel import Buffer
from gennode.engine.child.jail import Jail
from gennode.engine.child.process import END_HINT, END_S, ComputeProcess, ProcessEndedError
from gennode.engine.folders import Folder
from gennode.engine.options import EngineOptions
from gennode.engine.seam import CachePart, CacheUse, Profile, States, StepInput
from gennode.errors import GennodeError, LocalError, ResourceError
from gennode.wire.ids import ModelId, Span

log = logging.getLogger(__name__)

MAX_RESTARTS, RESTARTS_WITHIN_S = 3, 600.0
"""A process that ends more often than that does so for a reason that stays."""

MIN_CACHE_PART = 8
"""Killed for want of memory, a process starts anew with half of the caches' room, but with no
less than one part in eight of what was given: with less, sessions would not fit anyway."""

R = TypeVar("R")


class ChildShard:
    """A ShardEngine whose layers are loaded and computed in a process beside this one.

    If that process dies, what ran there raises ResourceError, as does each later step of a
    sequence that was open. Another one is started at once, in a thread of its own, and loads
    the same layers; whatever needs it waits for it meanwhile.
    """

    def __init__(
        self,
        folder: Folder,
        options: EngineOptions,
        process: ComputeProcess | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`process`: one that was started for this folder and device, whose end becomes ours.

        It takes seconds to be ready, which the first call waits for; that one raises DeviceError,
        ModelError or ResourceError if it does not come to it. ResourceError here if the system
        starts no process.
        """
        self._folder = folder
        self._options = dataclasses.replace(options, isolated=False)
        self._cache_bytes = options.max_cache_bytes
        self._clock = clock
        self._turn = threading.Condition()
        self._spans: tuple[Span, ...] = ()
        self._numbers: dict[Hashable, tuple[int, Span]] = {}
        self._lost: set[Hashable] = set()
        self._kept: dict[int, int] = {}
        self._last_number = 0
        self._ends_s: list[float] = []
        self._profile: Profile | None = None
        self._position_bytes = 0  # until it has begun
        self._is_shut = self._is_down = False
        self.on_given_up: Callable[[GennodeError], None] = lambda _error: None
        """Told, from any thread, when nothing will be computed any more."""
        self._given_up: GennodeError | None = None
        self._running = [process or ComputeProcess(folder.path, options.device)]
        self._end = weakref.finalize(self, _end, self._running)
        self._has_begun = False

    def shutdown(self) -> None:
        """End the process for good, at once, whatever it does. From any thread; idempotent."""
        self._is_shut = True
        self._process.end()

    # -- what is known here -------------------------------------------------------------------

    @property
    def model(self) -> ModelId:
        """Which weights these are."""
        return self._folder.manifest.model

    @property
    def dim(self) -> int:
        """Width of the hidden states."""
        return self._folder.manifest.shape.dim

    @property
    def pid(self) -> int:
        """The number of the process that computes now."""
        return self._process.pid

    def spans(self) -> tuple[Span, ...]:
        """The layers that are loaded, or being loaded anew; none once the process is given up."""
        return self._spans

    def jail(self) -> Jail:
        """What the process is held to."""
        self.cache_use()  # it is ready then
        return self._process.jail()

    # -- layers -------------------------------------------------------------------------------

    def load(self, span: Span, progress: Callable[[int, int], None] | None = None) -> None:
        """Load the layers of `span` that are not loaded yet; ModelError if a file is damaged."""
        self._change(say.Load(span), progress)

    def unload(self, span: Span) -> None:
        """Free what is loaded of `span`; LocalError if a sequence that is open runs over it."""
        self._change(say.Unload(span), None)

    def reread(self, path: Path) -> None:
        """Look at the folder again; LocalError for another, for the process can't read that."""
        if path.resolve() != self._folder.path.resolve():
            raise LocalError("the compute process reads no folder but the one it was started for")
        self._ask(say.Reread(), say.Done)

    def profile(self) -> Profile:
        """Measure (once) and report; at least one layer must be loaded."""
        if self._profile is None:
            told = self._ask(say.TakeProfile(), say.Profiled)[0].profile
            if told.model != self.model or not say.is_possible(told):
                raise self._breached("a profile of nothing that there is")
            self._profile = told
        return self._profile

    # -- sequences ----------------------------------------------------------------------------

    def open(self, sequence: Hashable, span: Span, max_positions: int) -> None:
        """Begin a sequence over loaded layers, or empty it if it exists already."""
        number, _ = self._numbers.get(sequence, (self._last_number + 1, span))
        self._last_number = max(self._last_number, number)
        self._ask(say.OpenSequence(number, span, max_positions), say.Done)
        self._numbers[sequence] = number, span
        self._lost.discard(sequence)

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        """Push states through the layers of each one's span; returns new arrays, same shapes."""
        parts, states = [], []
        for item in batch:
            rows, dim = item.states.shape if item.states.ndim == 2 else (0, 0)
            if dim != self.dim or item.states.dtype != np.float32:
                raise LocalError(f"states are {item.states.dtype} {item.states.shape}, "
                                 f"not float32 [rows, {self.dim}]")  # fmt: skip
            parts.append(say.Part(self._number(item.sequence), item.position, rows))
            states.append(np.ascontiguousarray(item.states).data)
        size_bytes = sum(part.nbytes for part in states)
        request = say.Compute(tuple(parts))
        _, body = self._ask(request, say.Done, body=states, max_body_bytes=size_bytes)
        if len(body) != size_bytes:
            raise self._breached(f"{len(body)} bytes for {size_bytes}")
        results = np.frombuffer(body, np.float32).reshape(-1, self.dim)
        ends = accumulate((part.rows for part in parts), initial=0)
        return [results[start:end] for start, end in pairwise(ends)]

    def length(self, sequence: Hashable) -> int:
        """Positions cached so far."""
        found = self._ask(say.Length(self._number(sequence)), say.Number)[0].value
        return found or 0

    def truncate(self, sequence: Hashable, length: int) -> None:
        """Forget all cached positions from `length` on."""
        self._ask(say.Truncate(self._number(sequence), length), say.Done)

    def close(self, sequence: Hashable) -> None:
        """End a sequence and free its cache. Idempotent."""
        self._lost.discard(sequence)
        found = self._numbers.pop(sequence, None)
        if found is not None:
            self._ask_if_alive(say.CloseSequence(found[0]))

    # -- caches -------------------------------------------------------------------------------

    def cache_use(self) -> CacheUse:
        """What the caches of all sequences take, and what is kept for later ones."""
        return self._ask(say.Usage(), say.Used)[0].use

    def keep(self, sequence: Hashable, positions: int) -> int | None:
        """Hold the cache of the first `positions` after the sequence has ended; its number."""
        request = say.Keep(self._number(sequence), positions)
        kept = self._ask(request, say.Number)[0].value
        if kept is None:
            return None
        self._last_number += 1
        self._kept[self._last_number] = kept
        return self._last_number

    def adopt(self, sequence: Hashable, kept: int) -> None:
        """Begin an empty sequence with what was kept of another over the same span."""
        number = self._number(sequence)
        if kept not in self._kept:
            raise ResourceError("what was kept is gone")
        self._ask(say.Adopt(number, self._kept[kept]), say.Done)

    def forget(self, kept: int) -> None:
        """Hold it no longer. Idempotent; sequences that adopted it are not touched."""
        found = self._kept.pop(kept, None)
        if found is not None:
            self._ask_if_alive(say.Forget(found))

    def cache_position_bytes(self, span: Span) -> int:
        """What one position of a sequence over `span` takes in a part of its cache."""
        return span.layers * self._position_bytes

    def export(self, sequence: Hashable, start: int, end: int) -> CachePart:
        """A sequence's cache of positions `[start, end)`; LocalError from engines that can't."""
        number, span = self._number(sequence), self._numbers[sequence][1]
        size_bytes = max(0, end - start) * self.cache_position_bytes(span)
        request = say.Export(number, start, end)
        told, body = self._ask(request, say.Exported, max_body_bytes=size_bytes)
        if not say.is_part(told, body, size_bytes):
            raise self._breached("another part of a cache than was asked for")
        return CachePart(told.layout, span, start, end, bytes(body))

    def restore(self, sequence: Hashable, part: CachePart) -> None:
        """Lengthen a sequence by what another engine exported; RemoteError unless it fits."""
        where = self._number(sequence), part.layout, part.span, part.start, part.end
        self._ask(say.Restore(*where), say.Done, body=[part.payload])

    # -- the process --------------------------------------------------------------------------

    @property
    def _process(self) -> ComputeProcess:
        return self._running[0]

    def _ask(
        self,
        request: msgspec.Struct,
        expected: type[R],
        *,
        body: Sequence[Buffer] = (),
        max_body_bytes: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[R, bytearray]:
        with self._turn:
            while self._is_down and not self._is_shut and self._given_up is None:
                self._turn.wait()  # another process is being started
            if self._given_up is not None:
                raise self._given_up
            try:
                self._begin_once()
                return self._process.ask(
                    request, expected, body=body, max_body_bytes=max_body_bytes, progress=progress
                )
            except ProcessEndedError as error:
                self._go_down()
                if not self._has_begun:
                    self._give_up(error.as_resource())
                raise error.as_resource() from error

    def _ask_if_alive(self, request: msgspec.Struct) -> None:
        """Ask for something that a dead process has done as well."""
        with suppress(ResourceError):
            self._ask(request, say.Done)

    def _number(self, sequence: Hashable) -> int:
        found = self._numbers.get(sequence)
        if found is not None:
            return found[0]
        if sequence in self._lost:
            raise ResourceError("this sequence ended with the process that computed it")
        raise LocalError(f"sequence {sequence!r} is not open")

    def _change(
        self, request: say.Load | say.Unload, progress: Callable[[int, int], None] | None
    ) -> None:
        """Change what is loaded, and learn what is: after an error, too, it may be more."""
        try:
            self._ask(request, say.Done, progress=progress)
        except GennodeError:
            with suppress(ResourceError):  # the next process will have what this one had before
                self._look_at_spans()
            raise
        self._look_at_spans()

    def _look_at_spans(self) -> None:
        spans = self._ask(say.Spans(), say.Loaded)[0].spans
        ends = [0, *(edge for span in spans for edge in span), self._folder.manifest.shape.layers]
        if ends != sorted(ends):
            raise self._breached("layers that the model does not have")
        self._spans = spans

    def _breached(self, what: str) -> ResourceError:
        """End a process that answers what can't be; another one is started for it."""
        log.warning("compute_process_breach what=%s", what)
        self._process.end()
        return ResourceError(f"the compute process sends {what}")

    def _go_down(self) -> None:
        """Have no process, until `revive`: the sequences and what was kept are gone with it."""
        self._is_down = True
        self._lost |= self._numbers.keys()
        self._numbers.clear()
        self._kept.clear()

    def _begin_once(self) -> None:
        if self._has_begun:
            return
        try:
            self._begin()
        except GennodeError as error:
            self._give_up(error)
            raise
        self._has_begun = True

    def _begin(self) -> None:
        """Build the engine in the process that runs now, and load what is to be loaded."""
        process, this = self._process, weakref.ref(self)
        process.on_end = lambda: _revive(this, process)
        options = dataclasses.replace(self._options, max_cache_bytes=self._cache_bytes)
        request = say.Begin(msgspec.msgpack.encode(options))
        manifest = self._folder.manifest
        told, _ = process.ask(request, say.Began, body=[manifest.canonical])
        is_possible = 0 <= told.position_bytes <= 4 * manifest.shape.position_elements  # in fp32
        if (told.model, told.dim) != (manifest.model, manifest.shape.dim) or not is_possible:
            raise LocalError("the compute process began another model")
        self._position_bytes = told.position_bytes
        for span in self._spans:
            process.ask(say.Load(span), say.Done)

    def revive(self, ended: ComputeProcess) -> None:
        """Start another process in the place of one that has ended, if nobody has yet."""
        with self._turn:
            if self._process is not ended:
                return
            self._go_down()
            try:
                while self._is_down and self._may_restart():
                    self._restart()
            finally:
                if self._is_down and self._given_up is None:
                    self._give_up(ResourceError("the compute process has ended"))
                self._is_down = False
                self._turn.notify_all()

    def _restart(self) -> None:
        ended = self._process
        ended.wait(END_S)
        ended.end()
        if ended.was_killed:
            least_bytes = self._options.max_cache_bytes // MIN_CACHE_PART
            self._cache_bytes = max(self._cache_bytes // 2, least_bytes)
        log.warning("compute_process_ended pid=%d why=%s", ended.pid, ended.end_words)
        try:
            self._running[0] = ComputeProcess(self._folder.path, self._options.device)
            if self._is_shut:
                self._process.end()
            self._begin()
        except (ProcessEndedError, ResourceError) as error:
            log.warning("compute_process_restart_failed why=%s", error)
            self._process.end()
        except GennodeError as error:
            self._give_up(error)
        else:
            self._is_down = False

    def _may_restart(self) -> bool:
        """Whether it has not ended too often lately."""
        if self._is_shut or self._given_up is not None:
            return False
        now_s = self._clock()
        self._ends_s = [end_s for end_s in self._ends_s if now_s - end_s < RESTARTS_WITHIN_S]
        self._ends_s.append(now_s)
        if len(self._ends_s) > MAX_RESTARTS:
            words = f"the compute process ended {len(self._ends_s)} times, and is given up"
            self._give_up(ResourceError(words, hint=END_HINT))
            return False
        return True

    def _give_up(self, error: GennodeError) -> None:
        if not self._is_shut:
            log.error("compute_process_given_up why=%s", error)
        self._given_up, self._spans = error, ()
        self._process.end()
        self.on_given_up(error)


def _end(running: list[ComputeProcess]) -> None:
    """End the process of an engine that nobody has any longer."""
    running[0].end()


def _revive(engine: weakref.ref[ChildShard], ended: ComputeProcess) -> None:
    """In the thread that saw the end of a process: have the engine go on, if there is one."""
    found = engine()
    if found is not None:
        found.revive(ended)
