"""Standing in for another: a worker takes in the cache that the hop in its place hands over."""

from __future__ import annotations

from collections.abc import Mapping

from gennode.errors import GennodeError
from gennode.node.actions import Action, Outcome, RestoreJob, Run
from gennode.node.hops.admission import EngineQueue, HostedModel
from gennode.node.hops.hosted import Hosted
from gennode.wire.ids import ModelId, PeerId
from gennode.wire.messages import WINDOW_BYTES, CachePart


class Restoring:
    """What comes of caches, and becomes of it.

    Whatever is wrong with a part is told to the session's owner, who gives the handover up. Only
    it can judge: it may have told the donor other terms than us.
    """

    def __init__(self, queue: EngineQueue, models: Mapping[ModelId, HostedModel]) -> None:
        self._queue, self._models = queue, models

    def take(
        self, hosted: Hosted | None, sender: PeerId, part: CachePart, payload: bytes, now_s: float
    ) -> list[Action]:
        """A part of a cache came in."""
        if hosted is None or not hosted.ready or part.attempt != hosted.opened.attempt:
            return []
        has_steps = hosted.received >= 0 or hosted.rebuilt >= 0
        if sender != hosted.opened.donor or hosted.has_bad_cache or has_steps:
            return []  # a stranger's, or late: the session goes on with what is here
        if reason := self._objection(hosted, part, len(payload)):
            hosted.has_bad_cache = True
            return [hosted.failed(hosted.opened.index, 0, reason)]
        hosted.heard_s = now_s
        hosted.positions, hosted.held = part.end, min(hosted.held, part.start)
        hosted.parts_bytes += len(payload)
        self._queue.size_bytes += len(payload)
        place = part.layout, part.start, part.end
        return [Run(RestoreJob(hosted.opened.model, hosted.key, part.attempt, *place, payload))]

    def _objection(self, hosted: Hosted, part: CachePart, payload_bytes: int) -> str:
        if part.start > hosted.positions:
            return "parts of a cache are missing"
        if part.end > hosted.opened.max_positions:
            return f"a cache reaches past position {hosted.opened.max_positions}"
        position_bytes = self._models[hosted.opened.model].cache_position_bytes(hosted.span)
        if not payload_bytes or payload_bytes != (part.end - part.start) * position_bytes:
            return "a part of a cache is not as long as its positions"
        if hosted.parts_bytes + payload_bytes > WINDOW_BYTES:
            return "more of a cache came than was agreed"
        if not self._queue.has_room(payload_bytes):
            return "too much is waiting"
        return ""

    def restored(self, job: RestoreJob, hosted: Hosted, outcome: Outcome) -> list[Action]:
        """The engine has taken a part in (or failed at it)."""
        hosted.parts_bytes -= len(job.payload)
        if isinstance(outcome, GennodeError):
            hosted.lost = hosted.has_bad_cache = True  # who knows how much of it was taken in
            return [hosted.failed(hosted.opened.index, 0, str(outcome))]
        hosted.held = job.end
        return [*hosted.took_part(len(job.payload)), hosted.fed(job.end)]
