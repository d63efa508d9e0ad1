"""Which plan one peer follows: proposed in turn, recomputed by all, taken over from the silent.

A plan is a pure function of a snapshot, so nobody has to be believed. In each epoch the peers of
a model stand in a line that a hash draws. Whose turn comes looks whether a new plan is due; if
so, and if nobody before it has proposed one, it signs the snapshot and the plan's digest. Who
gets a proposal compares the snapshot with what peers have announced (`witness.py`), decides by
itself what follows, and accepts the plan only if it is the same. Of two good ones the same wins
everywhere (`spread.standing`). A plan is advice: without one, peers place themselves one by one.

Sans-IO: deciding takes up to a second for a thousand peers, so the shell is asked to do it in a
thread, for one snapshot at a time and not more than a third of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from gennode.errors import LocalError, RemoteError
from gennode.node.actions import Send
from gennode.node.spread import Spread, Standing, standing
from gennode.node.witness import (
    PACE,
    Claim,
    Pace,
    TakeSnapshot,
    Witness,
    claims_of,
    stands_without,
)
from gennode.wire.announcement import Announcement
from gennode.wire.ids import Hop, ModelId, PeerId, Span
from gennode.wire.messages import PlanDigest, PlanSent, PlanWanted
from gennode.wire.proposal import Proposal, read_proposal, sign_proposal
from gennode.wire.signing import Key
from gennode.wire.snapshot import Snapshot

LOOK_S = 1.0  # between looks at who is live
MAX_PENDING = 4  # proposals that we have and can't judge yet; a few MB each, at the very most
MAX_READ = 2  # proposals of one publisher in one epoch: an honest one makes one
MAX_REFUSED = 256  # remembered: more than can be read in the epochs that count
REST_FACTOR = 2.0  # for so many times what a decision took, none is begun
TOLD_FIRST = 3  # of those next in line, who would otherwise propose something too


class Planned(Protocol):
    """What this module needs of a plan: `sharding.plan.Plan` is one."""

    @property
    def hosts(self) -> tuple[Hop, ...]:
        """Who hosts what, one hop per peer."""

    @property
    def digest(self) -> bytes:
        """The same for two plans that are the same."""


class Decided(Protocol):
    """What this module needs of a decision: `sharding.rebalance.Decision` is one."""

    @property
    def plan(self) -> Planned | None:
        """The plan that is due; None if none is."""

    @property
    def why(self) -> str:
        """The reason, in words."""


@dataclass(frozen=True)
class Judge:
    """Decide what follows from a snapshot, away from the loop; `judged` is told the outcome."""

    job: int
    snapshot: Snapshot


@dataclass(frozen=True)
class Accepted:
    """This peer follows a plan from now on."""

    publisher: PeerId
    epoch: int
    plan: Planned
    snapshot: Snapshot


@dataclass(frozen=True)
class Refused:
    """A proposal is not followed. `is_proven`: its publisher lied, whoever looks at it."""

    publisher: PeerId
    epoch: int
    reason: str
    is_proven: bool


PlanMessage = PlanDigest | PlanWanted | PlanSent
PlanAction = Send | Judge | Accepted | Refused


@dataclass
class _Pending:
    """A proposal that was read and is neither accepted nor refused yet."""

    digest: PlanDigest
    sent: bytes
    proposal: Proposal
    claims: list[Claim]
    since_s: float
    next_look_s: float
    unknown: frozenset[PeerId] = frozenset()


@dataclass(frozen=True)
class _Job:
    """A decision that is under way: on somebody's proposal, or on a snapshot of our own."""

    number: int
    began_s: float
    snapshot: Snapshot
    marks: bytes
    pending: _Pending | None


class PlanningMachine:
    """One peer's part in planning one model.

    `snapshot_of` makes the pool of the model out of announcements. `now_s` is a monotonic clock,
    `unix_s` the time since 1970, which may be off by a few seconds.
    """

    def __init__(
        self,
        key: Key,
        model: ModelId,
        snapshot_of: TakeSnapshot,
        rng: Random,
        pace: Pace = PACE,
    ) -> None:
        self.peer = key.peer
        self.model = model
        self._key = key
        self._pace = pace
        self._witness = Witness(key.peer, model, snapshot_of, pace)
        self._spread = Spread(key.peer, model, rng)
        self._unix_s = 0.0
        self._next_look_s = float("-inf")
        self._current: Accepted | None = None
        self._pending: dict[bytes, _Pending] = {}
        self._refused: dict[bytes, None] = {}
        self._read: dict[tuple[int, PeerId], int] = {}
        self._job: _Job | None = None
        self._jobs = 0
        self._rest_until_s = float("-inf")
        self._looked_epoch = -1
        self._quiet: tuple[object, ...] | None = None  # a pool that no plan was due for

    # -- what is decided ----------------------------------------------------------------------

    @property
    def current(self) -> tuple[Planned, Snapshot] | None:
        """The plan that this peer follows, and what it follows from."""
        return (self._current.plan, self._current.snapshot) if self._current else None

    def target(self, peer: PeerId) -> Span | None:
        """What the plan has a peer host; None if the plan does not speak of it."""
        hosts = self._current.plan.hosts if self._current else ()
        return next((hop.span for hop in hosts if hop.peer == peer), None)

    # -- time ---------------------------------------------------------------------------------

    def tick(self, now_s: float, unix_s: float, live: Sequence[Announcement]) -> list[PlanAction]:
        """Let time pass. `live`: the announcements of all who can be reached, our own too."""
        self._unix_s = unix_s
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + LOOK_S
            self._witness.see(live, now_s)
            self._forget()
        actions = self._weigh(now_s)
        actions += self._propose(now_s)
        others = [peer for peer in self._witness.live if peer != self.peer]
        actions += self._spread.tick(now_s, others, self._epoch - 1, self._wants)
        return actions

    @property
    def _epoch(self) -> int:
        return int(self._unix_s // self._pace.epoch_s)

    def _forget(self) -> None:
        oldest = self._epoch - 1
        self._read = {key: count for key, count in self._read.items() if key[0] >= oldest}
        self._pending = {
            name: one for name, one in self._pending.items() if one.digest.epoch >= oldest
        }

    # -- what comes in ------------------------------------------------------------------------

    def receive(
        self, sender: PeerId, message: PlanMessage, payload: bytes, now_s: float
    ) -> list[PlanAction]:
        """React to a message about our model; RemoteError if its sender broke the protocol."""
        if message.model != self.model:
            raise LocalError("a message about another model came here")
        match message:
            case PlanDigest():
                is_known = self._witness.is_live(sender)
                return [*self._spread.heard(sender, message, now_s)] if is_known else []
            case PlanWanted():
                return [*self._spread.wanted(sender, message, now_s)]
            case PlanSent():
                try:
                    self._take(sender, message, payload, now_s)
                except RemoteError:
                    self._spread.shun(sender, now_s)
                    raise
        return self._weigh(now_s)

    def _wants(self, digest: PlanDigest) -> bool:
        """Whether to ask for a proposal now: it would win, and its publisher's turn has come."""
        if abs(digest.epoch - self._epoch) > 1 or digest.proposal in self._refused:
            return False
        if digest.proposal in self._pending or not self._would_win(digest):
            return False
        if self._read.get((digest.epoch, digest.publisher), 0) >= MAX_READ:
            return False
        turn_s = self._turn_s(digest.epoch, digest.publisher)
        return turn_s is not None and self._unix_s + self._pace.skew_s >= turn_s

    def _turn_s(self, epoch: int, peer: PeerId) -> float | None:
        """When a peer may propose, in seconds since 1970; None if not in this epoch."""
        rank = self._witness.rank(epoch, peer)
        if rank is None or rank * self._pace.takeover_s >= self._pace.epoch_s:
            return None
        return epoch * self._pace.epoch_s + rank * self._pace.takeover_s

    def _would_win(self, digest: PlanDigest) -> bool:
        return standing(digest) < standing(self._spread.told)

    def _take(self, sender: PeerId, message: PlanSent, payload: bytes, now_s: float) -> None:
        """Read a proposal that we asked for. Whoever passes one on has checked it."""
        asked = self._spread.answered(sender, message, payload)
        if asked is None or not self._wants(asked):
            return
        proposal = read_proposal(payload, asked.proposal)
        if proposal is None:
            self._note_refused(asked.proposal)
            return
        snapshot = proposal.snapshot
        stated = PlanDigest(snapshot.model, snapshot.epoch, proposal.publisher, asked.proposal)
        if stated != asked:
            raise RemoteError("a proposal is not what its teller said of it")
        author = (asked.epoch, asked.publisher)
        self._read[author] = self._read.get(author, 0) + 1
        claims = claims_of(proposal)
        self._pending[asked.proposal] = _Pending(asked, payload, proposal, claims, now_s, now_s)
        while len(self._pending) > MAX_PENDING:
            del self._pending[max(self._pending, key=self._standing_of)]

    def _standing_of(self, name: bytes) -> Standing:
        return standing(self._pending[name].digest)

    # -- judging others -----------------------------------------------------------------------

    def _weigh(self, now_s: float) -> list[PlanAction]:
        """Begin to recompute the best proposal whose snapshot is sound."""
        actions: list[PlanAction] = []
        for name in sorted(self._pending, key=self._standing_of):
            one = self._pending[name]
            if self._job is not None or now_s < self._rest_until_s:
                break
            if not self._would_win(one.digest):
                del self._pending[name]
            elif now_s >= one.next_look_s:
                actions += self._weigh_one(one, now_s)
        return actions

    def _weigh_one(self, one: _Pending, now_s: float) -> list[PlanAction]:
        waited_s = now_s - one.since_s
        opinion = self._witness.judge(one.proposal, one.claims, waited_s, now_s)
        if opinion.says == "sound":
            one.unknown = opinion.unknown
            return [self._begin(one.proposal.snapshot, one.proposal.marks, one, now_s)]
        if opinion.says == "false" or waited_s >= self._pace.give_up_s:
            return [self._refuse(one, opinion.why, is_proven=opinion.says == "false")]
        one.next_look_s = now_s + LOOK_S
        return []

    def _begin(
        self, snapshot: Snapshot, marks: bytes, pending: _Pending | None, now_s: float
    ) -> Judge:
        self._jobs += 1
        self._job = _Job(self._jobs, now_s, snapshot, marks, pending)
        return Judge(self._jobs, snapshot)

    def judged(self, job: int, decision: Decided | None, now_s: float) -> list[PlanAction]:
        """What follows from a snapshot of `Judge`; None if it could not be decided."""
        under_way = self._job
        if under_way is None or under_way.number != job:
            return []
        self._job = None
        self._rest_until_s = now_s + REST_FACTOR * (now_s - under_way.began_s)
        if under_way.pending is None:
            return self._propose_it(under_way, decision, now_s)
        return self._conclude(under_way.pending, decision)

    def _conclude(self, one: _Pending, decision: Decided | None) -> list[PlanAction]:
        if decision is None:
            return [self._refuse(one, "it could not be recomputed here", is_proven=False)]
        plan = decision.plan
        if plan is None:
            return [self._refuse(one, f"no plan is due: {decision.why}", is_proven=True)]
        if plan.digest != one.proposal.plan:
            return [self._refuse(one, "another plan follows from its pool", is_proven=True)]
        layers = one.proposal.snapshot.demand.layers
        if one.unknown and not stands_without(plan.hosts, one.unknown, layers):
            return [self._refuse(one, "it rests on peers that are not known", is_proven=False)]
        self._pending.pop(one.digest.proposal, None)
        if not self._would_win(one.digest):
            return []
        return [self._accept(one.digest, one.sent, plan, one.proposal.snapshot)]

    def _refuse(self, one: _Pending, reason: str, *, is_proven: bool) -> Refused:
        digest = one.digest
        self._pending.pop(digest.proposal, None)
        self._note_refused(digest.proposal)
        if is_proven:
            self._read[digest.epoch, digest.publisher] = MAX_READ
        return Refused(digest.publisher, digest.epoch, reason, is_proven)

    def _note_refused(self, name: bytes) -> None:
        self._refused[name] = None
        while len(self._refused) > MAX_REFUSED:
            del self._refused[next(iter(self._refused))]

    def _accept(
        self,
        digest: PlanDigest,
        sent: bytes,
        plan: Planned,
        snapshot: Snapshot,
        tell_first: Sequence[PeerId] = (),
    ) -> Accepted:
        self._spread.follow(digest, sent, tell_first)
        self._quiet = None
        self._current = Accepted(digest.publisher, digest.epoch, plan, snapshot)
        return self._current

    # -- proposing ----------------------------------------------------------------------------

    def _propose(self, now_s: float) -> list[PlanAction]:
        """When our turn has come and nobody before us was heard, look whether a plan is due."""
        epoch = self._epoch
        if self._job is not None or now_s < self._rest_until_s or not self._may_look(epoch, now_s):
            return []
        self._looked_epoch = epoch
        snapshot, marks = self._witness.snapshot(epoch, now_s)
        if not snapshot.peers or self._quiet == snapshot.peers:
            return []
        return [self._begin(snapshot, marks, None, now_s)]

    def _may_look(self, epoch: int, now_s: float) -> bool:
        """Whether it is our turn in an epoch that we have seen from its beginning."""
        if epoch <= self._looked_epoch or self._is_resting(epoch):
            return False
        since_s = self._unix_s - epoch * self._pace.epoch_s
        if self._witness.age_s(now_s) < since_s + self._pace.settle_s:
            return False
        turn_s = self._turn_s(epoch, self.peer)
        if turn_s is None or self._unix_s < turn_s:
            return False
        ours = standing(PlanDigest(self.model, epoch, self.peer, b""))
        return not any(
            standing(one.digest) < ours and now_s - one.since_s < self._pace.catch_up_s
            for one in self._pending.values()
        )

    def _is_resting(self, epoch: int) -> bool:
        if self._current is None:
            return False
        return (epoch - self._current.epoch) * self._pace.epoch_s < self._pace.rest_s

    def _propose_it(self, job: _Job, decision: Decided | None, now_s: float) -> list[PlanAction]:
        plan = decision.plan if decision is not None else None
        epoch = job.snapshot.epoch
        if plan is None:
            self._quiet = job.snapshot.peers if decision is not None else None
            return []
        if epoch != self._epoch or self._is_resting(epoch):
            return []
        if self._current is not None and self._current.plan.digest == plan.digest:
            return []
        sent, name = sign_proposal(self._key, job.snapshot, job.marks, plan.digest)
        first = self._witness.next_in_line(epoch, self.peer, TOLD_FIRST)
        digest = PlanDigest(self.model, epoch, self.peer, name)
        return [self._accept(digest, sent, plan, job.snapshot, first)]
