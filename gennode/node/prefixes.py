"""Prefixes: a worker's frames that need not be computed again, with the engine that has them.

    prefixes.open(job.key, job.owner, job.span)      # OpenJob, after the engine's open
    output = prefixes.answer(job)                    # StepJob: not None, and all is done
    prefixes.computed(job, output)                   # else, when the engine has computed it
    while engine.step(...) raises ResourceError and prefixes.relieve(): ...  # try again
    prefixes.close(job.key)                          # CloseJob
    prefixes.drop(span)                              # before the engine's unload

`answer` is asked when all earlier jobs of the same sequence are done, in the engine's thread.
"""

from __future__ import annotations

from gennode.engine.cache.prefix import Known, PrefixCache, Unknown
from gennode.engine.seam import ShardEngine
from gennode.node.actions import HopKey, StepJob
from gennode.wire.ids import PeerId, Span

FULL_SHARE = 0.9  # of an engine's cache: beyond, what runs is worth more than what may come back


class Prefixes:
    """What one engine keeps of sessions for later ones of the same owner."""

    def __init__(self, engine: ShardEngine, cache: PrefixCache | None = None) -> None:
        self._engine = engine
        self._cache = PrefixCache(engine.model) if cache is None else cache
        self._unknown: dict[HopKey, dict[int, Unknown]] = {}  # frames being computed, by position
        self.hits = 0
        """Frames that were answered without computing."""
        self.rows = 0
        """Positions in them."""

    def open(self, key: HopKey, owner: PeerId, span: Span) -> None:
        """A sequence begins, or begins anew."""
        self._cache.open(key, owner, span)
        self._unknown.pop(key, None)

    def close(self, key: HopKey) -> None:
        """A sequence is over. Idempotent."""
        self._cache.close(key)
        self._unknown.pop(key, None)

    def answer(self, job: StepJob) -> bytes | None:
        """A frame's output, if it is known: the engine's sequence is at its end then."""
        self._unknown.pop(job.key, None)
        found = self._look(job)
        if not isinstance(found, Known):
            return None
        self._engine.truncate(job.key, 0)
        self._engine.adopt(job.key, found.kept)
        self.hits += 1
        self.rows += job.rows
        return found.output

    def follow(self, job: StepJob) -> None:
        """A frame is computed in one step with the one before it, which was not known."""
        self._look(job)

    def _look(self, job: StepJob) -> Known | Unknown | None:
        found = self._cache.look(job.key, job.position, job.rows, job.codec, job.payload)
        if isinstance(found, Unknown):
            self._unknown.setdefault(job.key, {})[job.position] = found
        return found

    def computed(self, job: StepJob, output: bytes) -> None:
        """A frame that was not known has been computed: keep it, if it is worth it."""
        frame = self._unknown.get(job.key, {}).pop(job.position, None)
        if frame is None or not self._cache.wants(job.key, frame):
            return
        kept = self._engine.keep(job.key, frame.end)
        if kept is None:
            return
        for one in self._cache.add(job.key, frame, kept, output):
            self._engine.forget(one)
        while self._is_full() and self.relieve():
            pass

    def relieve(self) -> bool:
        """Forget what is least likely to come back; False if nothing is left to forget."""
        kept = self._cache.evict()
        if kept is None:
            return False
        self._engine.forget(kept)
        return True

    def drop(self, span: Span) -> None:
        """Layers are about to go: forget all that runs over one of them."""
        for kept in self._cache.drop(span):
            self._engine.forget(kept)

    def _is_full(self) -> bool:
        use = self._engine.cache_use()
        return use.used_bytes > FULL_SHARE * use.limit_bytes
