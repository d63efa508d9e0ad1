"""All feeds of one worker to stand-ins: who may have one, and what ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from gennode.errors import RemoteError, ResourceError
from gennode.node.actions import Action, ExportJob, HopKey, Outcome, Send
from gennode.node.hops.admission import HopLimits, HostedModel
from gennode.node.hops.feed import CacheFeed, FrameFeed
from gennode.node.hops.hosted import Hosted
from gennode.node.hops.retained import Kept
from gennode.wire.ids import ModelId, PeerId
from gennode.wire.messages import Credit, Feed, Open

FEED_INTERVAL_S = 1.0  # from one stand-in of a hop to another: each is sent a window at once
FEED_IDLE_S = 10.0  # an owner waits no longer for a handover


@dataclass
class _Entry:
    """A hop's latest feed. It stays when all is sent, for more may be asked of it."""

    feed: FrameFeed | CacheFeed
    since_s: float
    moved_s: float
    is_over: bool = False

    @property
    def is_active(self) -> bool:
        return not self.is_over and self.feed.is_active

    def is_for(self, asked: Feed) -> bool:
        """Whether a feed continues this one."""
        own = self.feed.asked
        return (own.peer, own.attempt, own.cache) == (asked.peer, asked.attempt, asked.cache)

    def do(self, move: Callable[[], list[Action]], now_s: float) -> list[Action]:
        """Let the feed go on; what goes wrong ends it, and its owner hears why."""
        self.moved_s = now_s
        try:
            return move()
        except (RemoteError, ResourceError) as error:
            return [self.end(str(error))]

    def end(self, reason: str) -> Send:
        """Send nothing more, and hold nothing more."""
        feed = self.feed
        self.is_over = True
        feed.flow.clear()
        return _refusal(feed.hosted, feed.asked, reason)


class Feeds:
    """Of each hop the latest feed."""

    def __init__(
        self,
        limits: HopLimits,
        models: Mapping[ModelId, HostedModel],
        knows: Callable[[PeerId], bool],
    ) -> None:
        self._limits = limits
        self._models = models
        self._knows = knows
        self._entries: dict[HopKey, _Entry] = {}

    def begin(self, hosted: Hosted, asked: Feed, now_s: float) -> list[Action]:
        """Give a worker what is known here by now, and it does not have yet."""
        entry = self._entries.get(hosted.key)
        if entry is None or not entry.is_for(asked):
            reason = self._objection(hosted, asked, now_s)
            if reason:
                return [_refusal(hosted, asked, reason)]
            feed = CacheFeed(hosted, asked) if asked.cache else FrameFeed(hosted, asked)
            entry = self._entries[hosted.key] = _Entry(feed, now_s, now_s)
        elif entry.is_over:
            return [_refusal(hosted, asked, "this feed was given up")]
        return entry.do(partial(entry.feed.more, asked.from_position), now_s)

    def _objection(self, hosted: Hosted, asked: Feed, now_s: float) -> str:
        entry = self._entries.get(hosted.key)
        if not self._knows(asked.peer):
            return "that peer is not known here"
        if asked.attempt == hosted.opened.attempt:
            return "a stand-in is opened under an attempt of its own"
        if entry is not None and now_s - entry.since_s < FEED_INTERVAL_S:
            return "another stand-in is fed already"
        if not asked.cache:
            return "no hop is below this one" if hosted.is_last else ""
        if not self._models[hosted.opened.model].cache_position_bytes(hosted.span):
            return "this worker's cache can't be handed over"
        owners = [
            other.feed.hosted.owner for other in self._entries.values()
            if other is not entry and other.is_active and other.feed.asked.cache
        ]  # fmt: skip
        limits, own = self._limits, owners.count(hosted.owner)
        if len(owners) >= limits.max_cache_feeds or own >= limits.max_cache_feeds_of_one_owner:
            return "too many caches are handed over now"
        return ""

    # -- what moves them ----------------------------------------------------------------------

    def exported(self, job: ExportJob, outcome: Outcome, now_s: float) -> list[Action]:
        """The engine gave out a part of a cache (or failed at it)."""
        entry = self._entries.get(job.key)
        if entry is None or entry.is_over or not isinstance(entry.feed, CacheFeed):
            return []
        return entry.do(partial(entry.feed.exported, job, outcome), now_s)

    def goes_to(self, sender: PeerId, message: Credit) -> bool:
        """Whether a credit is for a feed."""
        return self._of(sender, message) is not None

    def credit(self, sender: PeerId, message: Credit, now_s: float) -> list[Action]:
        """A stand-in took something in."""
        entry = self._of(sender, message)
        if entry is None or entry.is_over:
            return []
        return entry.do(partial(entry.feed.credit, message.taken_bytes), now_s)

    def _of(self, peer: PeerId, message: Credit) -> _Entry | None:
        for key, entry in self._entries.items():
            asked = entry.feed.asked
            at = key.session, entry.feed.layer, asked.peer, asked.attempt
            if at == (message.session, message.layer, peer, message.attempt):
                return entry
        return None

    # -- what ends them -----------------------------------------------------------------------

    def adopt(self, hosted: Hosted, message: Open) -> FrameFeed | None:
        """The feed of a stand-in that is the next hop from now on: its flow goes on, if that is
        the attempt for which it was fed."""
        entry = self._entries.get(hosted.key)
        if entry is None or entry.is_over or not isinstance(entry.feed, FrameFeed):
            return None
        asked, below = entry.feed.asked, message.path[message.index + 1 : message.index + 2]
        if all(hop.peer != asked.peer for hop in below):
            return None
        del self._entries[hosted.key]
        return entry.feed if asked.attempt == message.attempt else None

    def withdraw(self, key: HopKey, frame: Kept) -> None:
        """A retained frame was replaced."""
        entry = self._entries.get(key)
        if entry is not None and isinstance(entry.feed, FrameFeed):
            entry.feed.withdraw(frame)

    def lose(self, key: HopKey) -> list[Action]:
        """All retained frames of a hop were given up."""
        entry = self._entries.get(key)
        if entry is None or not entry.is_active or not isinstance(entry.feed, FrameFeed):
            return []
        return [entry.end("the frames for it are no longer retained")]

    def peer_down(self, peer: PeerId) -> list[Action]:
        """A peer can't be reached."""
        lost = [one for one in self._entries.values() if one.feed.asked.peer == peer]
        return [entry.end("the stand-in can't be reached") for entry in lost if not entry.is_over]

    def tick(self, now_s: float) -> list[Action]:
        """Give up those whose stand-in takes nothing in."""
        return [
            entry.end(f"the stand-in took nothing in for {FEED_IDLE_S:.0f} s")
            for entry in self._entries.values()
            if entry.is_active
            and not entry.feed.is_own_turn
            and now_s - entry.moved_s > FEED_IDLE_S
        ]

    def forget(self, key: HopKey) -> None:
        """A hop is gone."""
        self._entries.pop(key, None)


def _refusal(hosted: Hosted, asked: Feed, reason: str) -> Send:
    return hosted.failed(hosted.opened.index, 0, reason, attempt=asked.attempt)
