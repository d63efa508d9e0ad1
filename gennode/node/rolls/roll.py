"""One worker's part when a new version rolls through the swarm. Sans-IO.

Where memory holds both versions, the new one is fetched and loaded beside the old one, which is
retired once live announcements cover every layer of the new one. Where it does not, the old one
has to go first. Then workers take turns: among those that host a layer, one leaves at a time,
in the order of a hash of release and peer, and only while those that stay still cover all
layers of one version. Of a layer that nobody else hosts no worker can let go, so a swarm
without a spare copy and without memory for both stays with the old version, and says so.

That order needs peers to know of each other, which they do but for the seconds that news takes:
what is decided has to hold for `SETTLE_S` on end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gennode.sharding.rebalance import least_hosted
from gennode.wire.announcement import Announcement
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.release import Release

SETTLE_S = 5.0  # longer than an announcement takes to reach everybody
LINGER_S = 60.0  # how long sessions of the old version may still be repaired on other workers
RETRY_S = 15.0  # after a fetch or a load that failed
# Who let go of the old version and did not come back by then no longer holds up others; it may
# have left for good.
SWAP_LIMIT_S = 120.0


@dataclass(frozen=True)
class Hosted:
    """A model that this worker hosts, retired or not, and the sessions that run on it."""

    model: ModelId
    layers: int
    span: Span
    sessions: int


@dataclass(frozen=True)
class View:
    """All that a decision depends on. `room_layers`: how many more would fit in memory now."""

    release: Release | None
    live: Sequence[Announcement]
    hosted: Sequence[Hosted]
    room_layers: int


@dataclass(frozen=True)
class Fetch:
    """Get the files of a span."""

    model: ModelId
    span: Span


@dataclass(frozen=True)
class Load:
    """Load a span, and announce it beside what is announced."""

    model: ModelId
    span: Span


@dataclass(frozen=True)
class Retire:
    """Announce a model no longer, and begin no more sessions of it."""

    model: ModelId


@dataclass(frozen=True)
class Drop:
    """Free the memory of a model that is retired and idle."""

    model: ModelId


RollAction = Fetch | Load | Retire | Drop


class RollMachine:
    """Decides, step by step, how one worker follows the releases of one line."""

    def __init__(self, peer: PeerId) -> None:
        self._peer = peer
        self._target: Release | None = None
        self._span: Span | None = None
        self._busy = False
        self._fetched: set[ModelId] = set()
        self._retired: set[ModelId] = set()
        self._retry_s = float("-inf")
        self._covered_since_s: float | None = None
        self._turn_since_s: float | None = None
        self._swapping: dict[PeerId, tuple[Span, float]] = {}
        self._seen: dict[PeerId, Span] = {}  # what others that are not on the target yet host
        self.waits_for = ""
        """Why the roll does not go on here, in words; empty if it does."""

    def done(self, action: Fetch | Load, now_s: float, *, succeeded: bool) -> None:
        """A fetch or a load has ended."""
        self._busy = False
        if not succeeded:
            self._retry_s = now_s + RETRY_S
        elif isinstance(action, Fetch):
            self._fetched.add(action.model)
        else:
            self._retired.discard(action.model)

    def tick(self, now_s: float, view: View) -> list[RollAction]:
        """What to do now; the outcome of a Fetch or a Load is told by `done`."""
        release = view.release
        if release is None:
            return []
        if self._target != release:
            self._begin(release)
        olds = [one for one in view.hosted if one.model != release.model]
        self._watch(release, view.live, now_s)
        actions: list[RollAction] = [
            Drop(old.model) for old in olds if old.model in self._retired and not old.sessions
        ]
        self.waits_for = ""
        ours = [one.model for one in view.hosted]
        if release.model not in ours or release.model in self._retired:
            return actions + self._take_on(release, view, olds, now_s)
        return actions + self._let_go(olds, now_s)

    def _begin(self, release: Release) -> None:
        self._target, self._span = release, None
        self._covered_since_s = self._turn_since_s = None
        self._retry_s = float("-inf")

    def _take_on(
        self, release: Release, view: View, olds: Sequence[Hosted], now_s: float
    ) -> list[RollAction]:
        """Fetch the new version, make room for it, load it."""
        if self._busy or now_s < self._retry_s:
            return []
        span = self._span = self._span or _span_for(release, olds, view)
        if release.model not in self._fetched:
            return self._start(Fetch(release.model, span))
        if span.layers <= view.room_layers or release.model in self._retired:
            return self._start(Load(release.model, span))
        staying = [old for old in olds if old.model not in self._retired]
        if not staying:
            self.waits_for = "sessions of the old version still run"
            return []
        if not self._is_our_turn(release, view.live, staying[0]):
            self._turn_since_s = None
            self.waits_for = "other workers have to host these layers first"
            return []
        if self._turn_since_s is None:
            self._turn_since_s = now_s
        if now_s - self._turn_since_s < SETTLE_S:
            return []
        return [self._retire(old.model) for old in staying]

    def _let_go(self, olds: Sequence[Hosted], now_s: float) -> list[RollAction]:
        """Retire old versions once the new one is covered, and idle or long enough so."""
        if self._covered_since_s is None:
            self.waits_for = "the new version is not covered yet" if olds else ""
            return []
        since_s = now_s - self._covered_since_s
        return [
            self._retire(old.model)
            for old in olds
            if old.model not in self._retired
            and since_s >= (LINGER_S if old.sessions else SETTLE_S)
        ]

    def _start(self, action: Fetch | Load) -> list[RollAction]:
        self._busy = True
        return [action]

    def _retire(self, model: ModelId) -> Retire:
        self._retired.add(model)
        return Retire(model)

    # -- the others ---------------------------------------------------------------------------

    def _watch(self, release: Release, live: Sequence[Announcement], now_s: float) -> None:
        """Notice who let go of the old version and has not come back with the new one."""
        if not covers(live, release.model, release.layers):
            self._covered_since_s = None
        elif self._covered_since_s is None:
            self._covered_since_s = now_s
        hosting = {one.peer: one for one in live if one.hosting}
        for peer, span in self._seen.items():
            if peer not in hosting:
                self._swapping.setdefault(peer, (span, now_s))
        self._swapping = {
            peer: (span, since_s)
            for peer, (span, since_s) in self._swapping.items()
            if peer not in hosting and now_s - since_s < SWAP_LIMIT_S
        }
        olds = ((peer, _old_span(one, release)) for peer, one in hosting.items())
        self._seen = {peer: span for peer, span in olds if span and peer != self._peer}

    def _is_our_turn(self, release: Release, live: Sequence[Announcement], old: Hosted) -> bool:
        """Whether this worker may leave a gap now: nobody who shares a layer goes before it."""
        if not _can_leave(self._peer, live, release, old.model):
            return False
        if any(_overlap(span, old.span) for span, _ in self._swapping.values()):
            return False
        own_rank = _rank(release, self._peer)
        return not any(
            _overlap(span, old.span)
            and _rank(release, peer) < own_rank
            and _can_leave(peer, live, release, old.model)
            for peer, span in self._seen.items()
        )


def covers(live: Iterable[Announcement], model: ModelId, layers: int) -> bool:
    """Whether every layer of a model is loaded at somebody's."""
    spans = sorted(
        span for one in live if (hosting := one.hosting_of(model)) for span in hosting.spans
    )
    end = 0
    for span in spans:
        if span.start > end:
            break
        end = max(end, span.end)
    return end >= layers


def choose_version(release: Release, live: Sequence[Announcement]) -> ModelId:
    """The model that an owner should ask: the newest whose layers are wholly covered.

    The release's, or the one before it as long as the release's is not covered.
    """
    if release.previous and not covers(live, release.model, release.layers):
        return ModelId(release.previous)
    return release.model


def _can_leave(peer: PeerId, live: Sequence[Announcement], release: Release, old: ModelId) -> bool:
    """Whether all layers of one version stay covered without this peer."""
    rest = [one for one in live if one.peer != peer]
    return any(covers(rest, model, release.layers) for model in (old, release.model))


def _old_span(one: Announcement, release: Release) -> Span | None:
    """What a peer hosts of this line's versions before the release, if it has not got that."""
    if one.hosting_of(release.model) is not None:
        return None
    hosting = one.hosting_of(ModelId(release.previous))
    return (
        Span(hosting.spans[0].start, hosting.spans[-1].end) if hosting and hosting.spans else None
    )


def _span_for(release: Release, olds: Sequence[Hosted], view: View) -> Span:
    """Where this worker is already; else where the new version lacks most."""
    for old in olds:
        if old.layers == release.layers:
            return old.span
    capacity = max((old.span.layers for old in olds), default=view.room_layers)
    hostings = (one.hosting_of(release.model) for one in view.live)
    held = (span for hosting in hostings if hosting for span in hosting.spans)
    return least_hosted(release.layers, capacity, held)


def _overlap(one: Span, other: Span) -> bool:
    return one.start < other.end and other.start < one.end


def _rank(release: Release, peer: PeerId) -> bytes:
    """A place in a line that everybody computes alike, and nobody chooses (rendezvous hash)."""
    return hashlib.sha256(f"{release.model}/{release.number}/{peer}".encode()).digest()
