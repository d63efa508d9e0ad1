"""One worker's part when layers change hands: from what it hosts to another span, while serving.

Where to go is told by the accepted plan. Where nobody hosts some layers, that comes first: the
rule of `sharding.rebalance` names who closes the gap, and everybody computes it alike.

A worker loads beside what it has as long as memory allows. What it no longer should host it
announces no longer and takes no new sessions on; it lets go of it once no session uses it, or
after a while, when sessions that are left fail over. It does so only where others host those
layers, announced and reachable, and will go on hosting them: of several who would leave a layer
at a time the last in the order of a hash stays until somebody comes. News takes seconds, so
what is decided has to hold for a while, and whoever sees that it left too early takes back what
it still has in memory. Sans-IO.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gennode.engine.contract import maximal_spans
from gennode.node.worker import Worker
from gennode.sharding.rebalance import next_moves
from gennode.sharding.snapshots import snapshot_of
from gennode.wire.announcement import Announcement
from gennode.wire.ids import Hop, ModelId, PeerId, Span
from gennode.wire.manifest import ModelShape
from gennode.wire.snapshot import Snapshot

SETTLE_S = 5.0  # longer than an announcement takes to reach everybody
DRAIN_LIMIT_S = 60.0  # how long sessions may go on using layers that a plan takes away

# A gap stops every prompt, so who closes it waits no longer than for news of goodbyes and of
# newcomers, and lets sessions that are in the way fail over soon.
GAP_SETTLE_S = 1.0
GAP_DRAIN_S = 1.0
# Who was named to close a gap and has shown nothing by then (and the time that loading takes)
# can't; the next one is named.
GIVE_UP_S = 8.0
MAX_PATIENCE_S = 120.0
FORGIVE_S = 300.0  # who was passed over may be named again after this

RETRY_S = 1.0  # after a fetch or a load that failed; twice as long after each further one
MAX_RETRY_S, GAP_RETRY_S = 120.0, 1.0

Layers = frozenset[int]


@dataclass(frozen=True)
class View:
    """All that a decision depends on.

    `live`: what peers announce who can be reached; `snapshot`: the same, as plans see it.
    `plan`: who should host what by the accepted plan, empty if there is none. Of this worker:
    what is `loaded`, what of that is `leaving` (announced no longer), the layers that sessions
    have in `used`, and how many it may load in all.
    """

    snapshot: Snapshot
    live: Sequence[Announcement]
    plan: Sequence[Hop]
    loaded: Layers
    leaving: Layers
    used: Layers
    capacity_layers: int


class Pool:
    """A model's snapshot, drawn anew only when what peers announce has changed."""

    def __init__(self, model: ModelId, shape: ModelShape) -> None:
        self._model, self._shape = model, shape
        self._live: tuple[Announcement, ...] = ()
        self._snapshot: Snapshot | None = None

    def snapshot(self, live: tuple[Announcement, ...]) -> Snapshot:
        """What these announcements come to. `epoch` is 0: it is nobody's but ours."""
        if self._snapshot is None or live != self._live:
            self._live = live
            self._snapshot = snapshot_of(live, model=self._model, shape=self._shape, epoch=0)
        return self._snapshot


def view_of(
    worker: Worker, snapshot: Snapshot, live: Sequence[Announcement], plan: Sequence[Hop]
) -> View:
    """What a worker's move depends on now."""
    return View(
        snapshot=snapshot,
        live=live,
        plan=plan,
        loaded=_layers(*worker.engine.spans()),
        leaving=_layers(*worker.leaving()),
        used=worker.used_layers(),
        capacity_layers=worker.capacity_layers,
    )


@dataclass(frozen=True)
class Fetch:
    """Get the files of a span, in the background; another Fetch takes the place of this one."""

    span: Span


@dataclass(frozen=True)
class Load:
    """Load a layer, and announce it with what is announced."""

    span: Span


@dataclass(frozen=True)
class Withdraw:
    """Announce layers no longer, and begin no more sessions on them."""

    span: Span


@dataclass(frozen=True)
class Restore:
    """Announce layers again that were withdrawn."""

    span: Span


@dataclass(frozen=True)
class Unload:
    """Free the memory of layers that were withdrawn; sessions that still use them fail over."""

    span: Span


MoveAction = Fetch | Load | Withdraw | Restore | Unload


class MoveMachine:
    """Decides, step by step, how one worker goes over to the span that it should host."""

    def __init__(self, peer: PeerId, model: ModelId) -> None:
        self._peer = peer
        self._model = model
        self._target: Span | None = None
        self._fetched: set[int] = set()
        self._fetching: Span | None = None
        self._loading = False
        self._failures = 0
        self._retry_s = float("-inf")
        self._closing: Span | None = None  # the span that we were named for, to close a gap
        self._named_s: dict[PeerId, float] = {}  # since when who is named to close a gap
        self._given_up: dict[PeerId, float] = {}  # since when we count no longer on somebody
        self._free_s: dict[int, float] = {}  # since when we might let go of a layer
        self._left_s: dict[int, float] = {}  # since when a layer is withdrawn
        self.waits_for = ""
        """Why the move does not go on here, in words; empty if it does, or if there is none."""

    @property
    def target(self) -> Span | None:
        """Where this worker is going, or is."""
        return self._target

    def done(self, action: Fetch | Load | Unload, now_s: float, *, succeeded: bool) -> None:
        """A fetch, a load or the freeing of memory has ended."""
        layers = _layers(action.span)
        if isinstance(action, Fetch):
            self._fetching = None
        else:
            self._loading = False
        if not succeeded:
            self._fetched -= layers  # what can't be loaded may be damaged
            longest_s = MAX_RETRY_S if self._closing is None else GAP_RETRY_S
            pause_s = min(longest_s, RETRY_S * (1 << min(self._failures, 10)))
            self._failures += 1
            self._retry_s = now_s + pause_s
            return
        self._failures = 0
        if isinstance(action, Fetch):
            self._fetched |= layers

    def tick(self, now_s: float, view: View) -> list[MoveAction]:
        """What to do now; the outcome of a Fetch, a Load or an Unload is told by `done`."""
        others = {
            one.peer: _layers(*hosting.spans)
            for one in view.live
            if one.peer != self._peer
            and (hosting := one.hosting_of(self._model))
            and hosting.serves
        }
        self._aim(now_s, view, others)
        self.waits_for = ""
        wanted = _layers(self._target) if self._target is not None else view.loaded
        held_elsewhere = _union(others.values())
        self._left_s = {one: self._left_s.get(one, now_s) for one in view.leaving}
        if back := view.leaving & (wanted | (view.leaving - held_elsewhere)):
            return [Restore(span) for span in maximal_spans(back)]
        missing = wanted - view.loaded
        actions: list[MoveAction] = []
        if missing and now_s >= self._retry_s:
            actions += self._take_on(missing, missing - held_elsewhere, view)
        if not self._loading:
            actions += self._let_go(now_s, view, wanted, others)
        return actions

    # -- where to go --------------------------------------------------------------------------

    def _aim(self, now_s: float, view: View, others: Mapping[PeerId, Layers]) -> None:
        """Set the target: a gap that is ours to close comes before the plan."""
        planned = next((hop.span for hop in view.plan if hop.peer == self._peer), None)
        target = self._gap_to_close(now_s, view, others) or planned
        if target != self._target:
            self._target = target
            self._failures, self._retry_s = 0, float("-inf")
            self._free_s = {}

    def _gap_to_close(
        self, now_s: float, view: View, others: Mapping[PeerId, Layers]
    ) -> Span | None:
        demand = view.snapshot.demand
        held = _union([*others.values(), view.loaded - view.leaving])
        gap = _layers(Span(0, demand.layers)) - held
        if not gap:
            self._closing, self._named_s = None, {}
            return None
        beside = self._beside(view, others)
        moves = next_moves(view.snapshot, without=frozenset(self._given_up), beside=beside)
        named = {move.peer: move.span for move in moves}
        self._named_s = {peer: self._named_s.get(peer, now_s) for peer in named}
        self._give_up(now_s, view, named)
        own_s = now_s - self._named_s.get(self._peer, now_s)
        if self._closing is not None and not _layers(self._closing) & gap:
            self._closing = None
        if self._closing is None and self._peer in named and own_s >= GAP_SETTLE_S:
            self._closing = named[self._peer]
        return self._closing

    def _give_up(self, now_s: float, view: View, named: Mapping[PeerId, Span]) -> None:
        """Count no longer on others who were named long ago and did nothing."""
        self._given_up = {
            peer: at_s for peer, at_s in self._given_up.items() if now_s - at_s < FORGIVE_S
        }
        for one in view.snapshot.peers:
            if one.peer in named and one.peer != self._peer:
                load_s = named[one.peer].layers * one.move_s
                if now_s - self._named_s[one.peer] > min(GIVE_UP_S + 2 * load_s, MAX_PATIENCE_S):
                    self._given_up[one.peer] = now_s

    def _beside(self, view: View, others: Mapping[PeerId, Layers]) -> list[Span]:
        """What is held beside the spans that the snapshot tells of: by whom no plan moves, too."""
        planned = {one.peer: _layers(one.held) for one in view.snapshot.peers}
        beside: list[Span] = []
        for peer, held in {**others, self._peer: view.loaded - view.leaving}.items():
            beside += maximal_spans(held - planned.get(peer, frozenset()))
        return beside

    # -- taking on ----------------------------------------------------------------------------

    def _take_on(self, missing: Layers, gap: Layers, view: View) -> list[MoveAction]:
        """Fetch and load what is missing, what nobody hosts first."""
        actions: list[MoveAction] = []
        lacking = missing - self._fetched
        if lacking:
            span = maximal_spans(lacking & gap or lacking)[0]
            if self._fetching is None or not _layers(self._fetching) & lacking & _layers(span):
                self._fetching = span
                actions.append(Fetch(span))
        ready = missing & self._fetched
        if ready and not self._loading and len(view.loaded) < view.capacity_layers:
            layer = min(ready & gap or ready)
            self._loading = True
            actions.append(Load(Span(layer, layer + 1)))
        return actions

    # -- letting go ---------------------------------------------------------------------------

    def _let_go(
        self, now_s: float, view: View, wanted: Layers, others: Mapping[PeerId, Layers]
    ) -> list[MoveAction]:
        """Withdraw what others host, and free what is withdrawn and not used any more."""
        settle_s = GAP_SETTLE_S if self._closing is not None else SETTLE_S
        drain_s = GAP_DRAIN_S if self._closing is not None else DRAIN_LIMIT_S
        missing = wanted - view.loaded
        free = frozenset(
            layer
            for layer, since_s in self._left_s.items()
            if now_s - since_s >= (drain_s if layer in view.used else settle_s)
        )
        if free and missing <= self._fetched:
            self._loading = True
            return [Unload(maximal_spans(free)[0])]
        surplus = view.loaded - view.leaving - wanted
        able = self._able_to_leave(surplus, view, others)
        self._free_s = {one: self._free_s.get(one, now_s) for one in able}
        ripe = frozenset(one for one in able if now_s - self._free_s[one] >= settle_s)
        self.waits_for = self._obstacle(missing, surplus, able, view)
        is_time = self._is_time(missing, view)
        return [Withdraw(span) for span in maximal_spans(ripe)] if is_time else []

    def _is_time(self, missing: Layers, view: View) -> bool:
        """Whether to let go of anything now: a gap is closed before all else; then files have to
        be here, but for a gap's, and what fits beside is loaded first."""
        if self._named_s and self._closing is None:
            return False
        room = view.capacity_layers - len(view.loaded) + len(view.leaving)
        is_here = missing <= self._fetched or self._closing is not None
        return not missing or (is_here and len(missing) > room)

    def _obstacle(self, missing: Layers, surplus: Layers, able: Layers, view: View) -> str:
        if missing - self._fetched:
            return f"the files of layers {_named(missing - self._fetched)} are on their way"
        if view.leaving & view.used:
            return f"sessions still use layers {_named(view.leaving & view.used)}"
        if missing and not surplus and not view.leaving:
            full = len(view.loaded) >= view.capacity_layers
            return f"there is no memory for layers {_named(missing)}" if full else ""
        if surplus and not able:
            return f"layers {_named(surplus)} have to be hosted elsewhere first"
        return ""

    def _able_to_leave(
        self, surplus: Layers, view: View, others: Mapping[PeerId, Layers]
    ) -> Layers:
        """The layers that somebody else hosts, and will host for as long as it takes."""
        going = {hop.peer: _layers(hop.span) for hop in view.plan}
        if self._closing is not None:  # whoever is not named stays where it is
            going = {peer: going.get(peer, frozenset()) for peer in self._named_s}
        rank = self._rank(self._peer)
        staying: Layers = frozenset()
        for peer, held in others.items():
            stays = self._rank(peer) > rank  # it leaves after us, and will see that we have left
            staying |= held if stays else held & going.get(peer, held)
        return surplus & staying

    def _rank(self, peer: PeerId) -> bytes:
        """A place in a line that everybody computes alike, and nobody chooses."""
        return hashlib.sha256(f"{self._model}/{peer}".encode()).digest()


def _layers(*spans: Span) -> Layers:
    return frozenset(layer for span in spans for layer in range(span.start, span.end))


def _union(sets: Iterable[Layers]) -> Layers:
    return frozenset().union(*sets)


def _named(layers: Layers) -> str:
    return ", ".join(map(str, maximal_spans(layers)))
