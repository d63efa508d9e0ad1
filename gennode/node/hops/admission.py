"""Which sessions a worker takes: what it hosts, how many, of whom, and why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gennode.errors import LocalError, RemoteError
from gennode.node.actions import HopKey
from gennode.node.hops.hosted import Hosted
from gennode.sharding.route.preferences import reserved_seats
from gennode.wire.ids import Hop, ModelId, PeerId, SessionId, Span
from gennode.wire.messages import Open

MAX_SESSIONS = 16  # each has a cache in every layer


@dataclass(frozen=True)
class HopLimits:
    """What one worker takes on, over all models."""

    max_sessions: int = MAX_SESSIONS
    max_sessions_of_one_owner: int = 8
    max_sessions_when_full: int = 2
    """Of one owner, where less than a quarter of all is free: the rest is for others."""
    retained_bytes: int = 512 * 1024 * 1024
    """Output frames kept in memory for replays, over all sessions."""
    queued_bytes: int = 256 * 1024 * 1024
    """What waits for the engine, over all sessions."""
    max_cache_feeds: int = 16
    """Caches that are handed over at a time: of each, one part waits here to be sent."""
    max_cache_feeds_of_one_owner: int = 8


@dataclass(frozen=True)
class HostedModel:
    """What hops need to know of a model. `can_host`: whether a span is loaded or still may be.
    `is_leaving`: whether some of it stays for those sessions alone that are here already.
    `cache_position_bytes`: what one position's cache takes over a span; 0: it can't be handed
    over.
    """

    model: ModelId
    layers: int
    dim: int
    max_positions: int
    can_host: Callable[[Span], bool]
    is_leaving: Callable[[Span], bool] = lambda _span: False
    cache_position_bytes: Callable[[Span], int] = lambda _span: 0


@dataclass
class EngineQueue:
    """What waits for the engine, over all sessions."""

    limit_bytes: int
    size_bytes: int = 0

    def has_room(self, payload_bytes: int) -> bool:
        """Whether so much more may wait."""
        return self.size_bytes + payload_bytes <= self.limit_bytes


class Admission:
    """The models that are hosted, and who may have a seat."""

    def __init__(self, peer: PeerId, limits: HopLimits, hosted: Mapping[HopKey, Hosted]) -> None:
        """`hosted`: what is here at the time."""
        self.models: dict[ModelId, HostedModel] = {}
        self.is_draining = False
        """Whether this worker is about to leave."""
        self._peer = peer
        self._limits = limits
        self._hosted = hosted
        self._retired: set[ModelId] = set()

    @property
    def sessions(self) -> int:
        """Sessions that pass through here now."""
        return len({key.session for key in self._hosted})

    def sessions_of(self, model: ModelId) -> int:
        """Those of them that run on one model."""
        return len({key.session for key, one in self._hosted.items() if one.opened.model == model})

    @property
    def is_crowded(self) -> bool:
        """Whether less than a quarter of all sessions is free."""
        return 4 * self.sessions >= 3 * self._limits.max_sessions

    def host(self, model: HostedModel) -> None:
        """Take sessions of a model from now on."""
        self.models[model.model] = model
        self._retired.discard(model.model)

    def retire(self, model: ModelId) -> None:
        """Refuse new sessions of a model; those that run go on until they end."""
        if model in self.models:
            self._retired.add(model)

    def drop(self, model: ModelId) -> None:
        """Forget a model; LocalError while sessions of it run."""
        if self.sessions_of(model):
            raise LocalError(f"sessions of model {model[:12]} still run", hint="retire it first")
        self.models.pop(model, None)
        self._retired.discard(model)

    def own_hop(self, message: Open) -> Hop:
        """Our place on a route; RemoteError if it is none that can be."""
        path, model = message.path, self.models.get(message.model)
        ends = [0, *(hop.span.end for hop in path)]
        if model and ends != [*(hop.span.start for hop in path), model.layers]:
            raise RemoteError("a route's spans must join and cover all layers")
        if any(hop.span.layers < 1 for hop in path):
            raise RemoteError("a route holds an empty span")
        if message.index >= len(path) or path[message.index].peer != self._peer:
            raise RemoteError("a route's index does not point at the peer that it was sent to")
        return path[message.index]

    def check_terms(self, message: Open) -> None:
        """RemoteError if a session that is here already is opened under other terms.

        What it sent and cached so far was made for the first ones.
        """
        for hosted in self._running(message.session).values():
            first = hosted.opened
            if (message.codec, message.max_positions) != (first.codec, first.max_positions):
                raise RemoteError("a session's codec and length never change")

    def superseded(self, message: Open, span: Span) -> list[HopKey]:
        """Hops that make way for another of their session: a newer path has left them out.

        Only where all together would hold more layers than the model has: until the session
        moves to its new path, it may still run on the old one.
        """
        if self._fits(message, span, []):
            return []
        return [
            key for key, one in self._running(message.session).items()
            if one.opened.attempt < message.attempt
            and Hop(self._peer, one.span) not in message.path
        ]  # fmt: skip

    def _fits(self, message: Open, span: Span, gone: list[HopKey]) -> bool:
        """Whether a session's hops here, `gone` apart, hold no more layers than its model has."""
        before = HopKey(message.session, span.start)
        running = self._running(message.session).items()
        held = sum(one.span.layers for key, one in running if key not in (before, *gone))
        return held + span.layers <= self.models[message.model].layers

    def _running(self, session: SessionId) -> dict[HopKey, Hosted]:
        return {key: one for key, one in self._hosted.items() if key.session == session}

    def objection(self, owner: PeerId, message: Open, span: Span) -> str:
        """Why a hop is not begun, in words for its owner; empty if it is."""
        model = self.models.get(message.model)
        if model is None:
            return f"this worker does not host model {message.model[:12]}"
        if message.max_positions > model.max_positions:
            return f"sessions end at {model.max_positions} positions here"
        running = self._running(message.session)
        if any(one.opened.model != message.model for one in running.values()):
            return "a session can't go over to another model"
        if not running and (reason := self._objection_to_new(owner, message, model, span)):
            return reason
        if not self._fits(message, span, self.superseded(message, span)):
            return f"a session may hold {model.layers} layers here in all"
        if not model.can_host(span):
            return f"layers {span} are not here and would not fit"
        return ""

    def _objection_to_new(
        self, owner: PeerId, message: Open, model: HostedModel, span: Span
    ) -> str:
        """Why no session begins here that has no hop here yet.

        The last seats are for those that lost a hop elsewhere. An owner may lie about that, and
        gets no more by it than its share of a full worker.
        """
        if self.is_draining:
            return "this worker is leaving"
        if model.model in self._retired:
            return f"model {model.model[:12]} is being retired here"
        if model.is_leaving(span):
            return f"layers {span} are leaving this worker"
        if self.sessions >= self._limits.max_sessions:
            return f"all {self._limits.max_sessions} sessions are taken"
        carries_on = 0 <= message.index <= message.rebuild_until
        reserved = 0 if carries_on else reserved_seats(self._limits.max_sessions)
        if self.sessions >= self._limits.max_sessions - reserved:
            return f"the last {reserved} sessions are kept for those that lost a hop"
        own = {key.session for key, hosted in self._hosted.items() if hosted.owner == owner}
        share = self._limits.max_sessions_of_one_owner
        if self.is_crowded:
            share = min(share, self._limits.max_sessions_when_full)
        if len(own) >= share:
            return f"one owner may hold {share} sessions" + " now" * self.is_crowded
        return ""
