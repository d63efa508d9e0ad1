"""Hops replaced while they still work: who is to go, who is being fed, when to change over.

A hop that is leaving, or slow, keeps its place until somebody else holds what it holds. All
that goes wrong on the way costs the session nothing: the stand-in is let go, and tried again a
few times at most. Copies of caches that are kept just in case (`replicate`) are fed likewise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gennode.errors import RemoteError
from gennode.node.actions import Action
from gennode.node.sessions.course import Course
from gennode.node.sessions.feeding import Feeding
from gennode.node.sessions.scout import Scout
from gennode.node.sessions.standins import StandIns
from gennode.wire.ids import Hop, PeerId
from gennode.wire.messages import Accept, Credit, Failed, Fed, Leaving, Refuse

HANDOVER_LIMIT_S = 10.0  # a worker that leaves waits no longer
STALL_S = 5.0  # without a sign of progress: half of that, so that frames can be tried after a cache
ACCEPT_LIMIT_S = 2.0  # a stand-in has no layers to load
SWITCH_WAIT_S = 1.0  # for a moment without a step under way, which would have to be sent again
TRIES = 3  # for one hop: by its cache, then by frames; who asks for more asks in vain
PAUSE_S = 2.0  # between them
REPLICA_POSITIONS = 64  # a step's worth of computing again, and a few hundred kB to send

FromHop = Accept | Refuse | Failed | Credit | Fed | Leaving


@dataclass
class _Wish:
    """Why a hop is to go, and how often that may still be tried. `cache_bytes`: None if it is
    not to hand its cache over."""

    reason: str
    tries: int
    cache_bytes: int | None
    positions: int = 0
    again_s: float = float("-inf")


class Handovers:
    """The planned changes of one session: one at a time, and copies beside it."""

    def __init__(self, course: Course, scout: Scout, standins: StandIns) -> None:
        self._course = course
        self._scout = scout
        self._standins = standins
        self._wishes: dict[Hop, _Wish] = {}
        self._planned: Feeding | None = None
        self._fed_s: float | None = None  # since when the change could be made
        self._replicas: dict[Hop, Feeding] = {}
        self._next_replica = REPLICA_POSITIONS
        self._uncopied: set[Hop] = set()  # whose copy failed: it is only a comfort

    # -- who is to go -------------------------------------------------------------------------

    def is_leaving(self, hop: Hop, positions: int, cache_bytes: int) -> None:
        """A hop says that it will leave. It may say so again and again."""
        wish = self._wishes.setdefault(hop, _Wish("is leaving", TRIES, cache_bytes))
        wish.positions, wish.cache_bytes = positions, cache_bytes

    def is_slow(self, hop: Hop) -> None:
        """A hop has become slow. Its frames come from the hop above, who is not."""
        self._wishes.setdefault(hop, _Wish("became slow", 1, None)).tries = 1

    def reason(self, hop: Hop) -> str:
        """Why a hop is to go."""
        return self._wishes[hop].reason

    # -- what stand-ins say -------------------------------------------------------------------

    def under(self, attempt: int) -> Feeding | None:
        """The feeding with this attempt, if it still goes on."""
        return next((one for one in self._all() if one.attempt == attempt), None)

    def receive(
        self, feeding: Feeding, sender: PeerId, message: FromHop, now_s: float
    ) -> list[Action]:
        """React to what was said under a feeding's attempt; RemoteError if it is a breach."""
        if isinstance(message, Failed):
            if sender not in self._course.peers | _peers(feeding):
                raise RemoteError("a failure comes from a peer that has no part in a handover")
            return self._failed(feeding, now_s) if feeding.concerns(sender) else []
        if isinstance(message, Credit):
            if feeding.flow is None or sender != feeding.flow.peer:
                raise RemoteError("a credit comes from a peer that was sent nothing")
            return [*feeding.flow.credit(message.taken_bytes)]
        if feeding.peer_at(message.index) != sender:
            raise RemoteError("a reply names a hop that is not its sender")
        match message:
            case Accept():
                return feeding.accepted(message.index, now_s)
            case Fed():
                feeding.took(message.index, message.positions, now_s)
                return []
        return self._failed(feeding, now_s, spurn=True)  # refuses, or is leaving itself

    def lost(self, peer: PeerId, now_s: float) -> list[Action]:
        """A peer can't be reached: nobody is fed there any more."""
        hit = [one for one in self._all() if peer in _peers(one)]
        return [action for one in hit for action in self._failed(one, now_s, spurn=True)]

    def lower(self, position: int) -> list[Action]:
        """The steps from a position on were forgotten. A copy of more can't be continued."""
        far = [one for one in self._replicas.values() if not one.is_fed or one.fed > position]
        for one in self._all():
            one.lower(position)
        return self._forget(far)

    # -- the session's own course -------------------------------------------------------------

    def due(self, now_s: float) -> Feeding | None:
        """The handover to carry out now: its stand-in is fed, and no step is under way, or
        that was waited for long enough."""
        if self._planned is None or not self._planned.is_fed:
            return None
        if self._fed_s is None:
            self._fed_s = now_s
        is_time = self._course.steps.is_idle or now_s - self._fed_s >= SWITCH_WAIT_S
        return self._planned if is_time else None

    def taken(self) -> None:
        """The handover that was due is carried out."""
        self._planned = self._fed_s = None

    def held(self) -> dict[Hop, int]:
        """What stand-ins hold by now: less to replay if they are needed."""
        return {taker: one.fed for one in self._all() for taker in one.takers}

    def follow(self) -> list[Action]:
        """The path has changed: a handover that was under way is forgotten."""
        path, peers = self._course.path, self._course.peers
        self._wishes = {hop: wish for hop, wish in self._wishes.items() if hop in path}
        self._uncopied &= set(path)
        idle = [
            one
            for one in self._all()
            if one is self._planned or one.hop not in path or _peers(one) & peers
        ]
        return self._forget(idle)

    def peers(self) -> frozenset[PeerId]:
        """Everybody who is being fed."""
        return frozenset[PeerId]().union(*map(_peers, self._all()))

    def tick(self, avoid: Iterable[PeerId], now_s: float) -> list[Action]:
        """Let time pass while the session runs."""
        actions: list[Action] = []
        for one in self._all():
            if not one.is_fed and _is_late(one, now_s):
                actions += self._failed(one, now_s, spurn=not one.is_open)
        if self._planned is None and self._wishes:
            actions += self._begin(avoid, now_s)
        if self._planned is None and self._course.terms.replicate:
            actions += self._replicate(now_s)  # not beside a handover: a hop feeds one at a time
        return actions

    # -- feeding ------------------------------------------------------------------------------

    def _all(self) -> list[Feeding]:
        planned = [self._planned] if self._planned else []
        return [*planned, *self._replicas.values()]

    def _begin(self, avoid: Iterable[PeerId], now_s: float) -> list[Action]:
        for hop, wish in self._wishes.items():
            if wish.tries == 0 or now_s < wish.again_s:
                continue
            wish.again_s = now_s + PAUSE_S
            takers = self._standins.choose(hop, avoid, now_s)
            if not takers:
                if wish.cache_bytes is None:
                    wish.tries = 0  # who is slow may be quick again when somebody is there
                continue
            replica = self._replicas.get(hop)
            if replica and replica.takers == takers:
                self._planned = self._replicas.pop(hop)
                return replica.feed(now_s) if replica.is_fed else []
            closing = self._forget([one for one in self._all() if _shares(one, takers)])
            self._planned = Feeding(
                self._course, hop, takers, now_s, by_cache=self._by_cache(hop, takers, wish)
            )
            return [*closing, *self._planned.open()]
        return []

    def _by_cache(self, hop: Hop, takers: tuple[Hop, ...], wish: _Wish) -> bool:
        """Whether a hop hands over its cache: the first time, if that is quicker."""
        if wish.cache_bytes is None or wish.tries < TRIES or takers[0].span != hop.span:
            return False
        return self._scout.is_cache_quicker(hop, takers[0], wish.positions, wish.cache_bytes)

    def _replicate(self, now_s: float) -> list[Action]:
        """Have each hop send its stand-in what came since the last time."""
        positions = self._course.steps.positions
        if positions < self._next_replica:
            return []
        self._next_replica = positions - positions % REPLICA_POSITIONS + REPLICA_POSITIONS
        actions: list[Action] = []
        for hop in self._course.path:
            if hop in self._uncopied:
                continue
            takers, replica = self._standins.of(hop), self._replicas.get(hop)
            if replica and replica.takers != takers:
                actions += self._forget([replica])
            elif replica:
                if replica.is_fed:
                    actions += replica.feed(now_s)
                continue
            if takers and takers[0].span == hop.span and self._scout.takes_cache(hop, takers[0]):
                self._replicas[hop] = Feeding(self._course, hop, takers, now_s, by_cache=True)
                actions += self._replicas[hop].open()
        return actions

    def _failed(self, feeding: Feeding, now_s: float, *, spurn: bool = False) -> list[Action]:
        """Let a stand-in go. `spurn`: it is at fault; it may be as well wherever no donor is."""
        wish = self._wishes.get(feeding.hop)
        if wish and feeding is self._planned:
            wish.tries -= 1
            wish.again_s = now_s if feeding.by_cache else now_s + PAUSE_S
        if self._replicas.get(feeding.hop) is feeding:
            self._uncopied.add(feeding.hop)
        if spurn or not feeding.by_cache:
            for peer in _peers(feeding):
                self._standins.spurn(peer, now_s)
        return self._forget([feeding])

    def _forget(self, feedings: list[Feeding]) -> list[Action]:
        """Tell stand-ins that they are not needed, unless they are on the path by now."""
        gone = frozenset[PeerId]().union(*map(_peers, feedings)) - self._course.peers
        closed = [one for one in self._all() if one in feedings or _peers(one) & gone]
        if self._planned in closed:
            self._planned = self._fed_s = None
        self._replicas = {hop: one for hop, one in self._replicas.items() if one not in closed}
        return [*self._course.goodbye(sorted(gone))]


def _peers(feeding: Feeding) -> frozenset[PeerId]:
    return frozenset(taker.peer for taker in feeding.takers)


def _is_late(feeding: Feeding, now_s: float) -> bool:
    if not feeding.is_open:
        return now_s - feeding.since_s > ACCEPT_LIMIT_S
    stalls = now_s - feeding.moved_s > STALL_S
    return stalls or now_s - feeding.since_s > HANDOVER_LIMIT_S


def _shares(feeding: Feeding, takers: tuple[Hop, ...]) -> bool:
    return bool(_peers(feeding) & {taker.peer for taker in takers})
