"""Which plan one peer follows: proposed in turn, recomputed by all, taken over from the silent.

A plan is a pure function of a snapshot, so nobody has to be believed. In each epoch the peers of
a model stand in a line that a hash draws. Whose turn comes looks whether a new plan is due; if
so, and if nobody before it has proposed one, it signs the snapshot and the plan's digest. Who
gets a proposal compares the snapshot with what peers have announced (`witness.py`), decides by
itself what follows, and accepts the plan only if it is the same. Of two good ones the same wins
everywhere (`spread.standing`). A plan is advice: without one, peers place themselves one by one.

Sans-IO: deciding takes a second or a few for a thousand peers, so the shell is asked to do it in a
thread, for one snapshot at a time and not more than a third of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from gennode.errors import LocalError, RemoteError
from gennode.node.actions import Send
from gennode.node.plans.proposals import Decided, Pending, Planned, Proposals, Refused
from gennode.node.plans.spread import Spread, standing
from gennode.node.plans.witness import PACE, Pace, TakeSnapshot, Witness, has_gap
from gennode.wire.announcement import Announcement
from gennode.wire.ids import Hop, ModelId, PeerId, Span
from gennode.wire.messages import PlanDigest, PlanSent, PlanWanted
from gennode.wire.proposal import sign_proposal
from gennode.wire.signing import Key
from gennode.wire.snapshot import Snapshot

LOOK_S = 1.0  # between looks at who is live
REST_FACTOR = 2.0  # for so many times what a decision took, none is begun
TOLD_FIRST = 3  # of those next in line, who would otherwise propose something too


@dataclass(frozen=True)
class Judge:
    """Decide what follows from a snapshot, away from the loop; `judged` is told the outcome.

    `accepted`: what the plan that is being carried out has peers host, where we think of
    proposing another; it has to be better than that, too. Empty for proposals of others, which
    all who check them have to judge alike.
    """

    job: int
    snapshot: Snapshot
    accepted: tuple[Hop, ...] = ()


@dataclass(frozen=True)
class Accepted:
    """This peer follows a plan from now on."""

    publisher: PeerId
    epoch: int
    plan: Planned
    snapshot: Snapshot


PlanMessage = PlanDigest | PlanWanted | PlanSent
PlanEvent = Judge | Accepted | Refused
PlanAction = Send | PlanEvent


@dataclass(frozen=True)
class _Job:
    """A decision that is under way: on somebody's proposal, or on a snapshot of our own."""

    number: int
    began_s: float
    snapshot: Snapshot
    marks: bytes
    pending: Pending | None


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
        self._spread = Spread(model, rng)
        self._unix_s = 0.0
        self._next_look_s = float("-inf")
        self._current: Accepted | None = None
        self._first_epoch: int | None = None  # of plans that follow each other too soon, the first
        self._proposals = Proposals(self._witness, pace)
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

    @property
    def accepted(self) -> Accepted | None:
        """The same with its publisher and epoch."""
        return self._current

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
            self._proposals.forget(self._epoch - 1)
        actions = self._weigh(now_s)
        actions += self._propose(now_s)
        others = [peer for peer in self._witness.live if peer != self.peer]
        actions += self._spread.tick(now_s, others, self._epoch, self._wants)
        return actions

    @property
    def _epoch(self) -> int:
        return int(self._unix_s // self._pace.epoch_s)

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
                return [*self._spread.heard(sender, message, now_s, is_known=is_known)]
            case PlanWanted():
                return [*self._spread.wanted(sender, message, now_s)]
            case PlanSent():
                try:
                    told = self._spread.answered(sender, message, payload)
                    if told is not None and self._wants(told):
                        self._proposals.read(told, payload, now_s)
                except RemoteError:
                    self._spread.shun(sender, now_s)
                    raise
        return self._weigh(now_s)

    def _wants(self, digest: PlanDigest) -> bool:
        """Whether to ask for a proposal now: it would win, and its publisher's turn has come.

        Of old epochs `Spread` keeps no offers, and in later ones nobody has a turn yet.
        """
        if not self._would_win(digest) or not self._proposals.may_read(digest):
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

    # -- judging others -----------------------------------------------------------------------

    def _weigh(self, now_s: float) -> list[PlanAction]:
        """Begin to recompute the best proposal whose snapshot is sound."""
        if self._job is not None or now_s < self._rest_until_s:
            return []
        best, refused = self._proposals.weigh(now_s, self._would_win)
        actions: list[PlanAction] = [*refused]
        if best is not None:
            proposal = best.proposal
            actions.append(self._begin(proposal.snapshot, proposal.marks, best, now_s))
        return actions

    def _begin(
        self, snapshot: Snapshot, marks: bytes, pending: Pending | None, now_s: float
    ) -> Judge:
        self._jobs += 1
        self._job = _Job(self._jobs, now_s, snapshot, marks, pending)
        carried_out = self._current.plan.hosts if self._current and pending is None else ()
        return Judge(self._jobs, snapshot, carried_out)

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

    def _conclude(self, one: Pending, decision: Decided | None) -> list[PlanAction]:
        plan = self._proposals.conclude(one, decision)
        if isinstance(plan, Refused):
            return [plan]
        if self._comes_too_soon(one.digest.epoch) and not has_gap(one.proposal.snapshot):
            reason = "it comes too soon after the plan before"
            return [Refused(one.digest.publisher, one.digest.epoch, reason, is_proven=False)]
        return [self._accept(one.digest, one.sent, plan, one.proposal.snapshot)]

    def _comes_too_soon(self, epoch: int) -> bool:
        """Whether everybody would move again while they hardly have. Of the epoch after a plan's
        another is accepted: it was made by those who did not know of ours."""
        if self._first_epoch is None:
            return False
        since = epoch - self._first_epoch
        return since > 1 and since * self._pace.epoch_s < self._pace.rest_s

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
        if not (
            self._first_epoch is not None
            and self._first_epoch <= digest.epoch
            and digest.epoch <= self._first_epoch + 1
        ):
            self._first_epoch = digest.epoch
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
        if epoch in {self._looked_epoch, self._looked_epoch - 1} or self._is_resting(epoch):
            return False
        since_s = self._unix_s - epoch * self._pace.epoch_s
        if self._witness.age_s(now_s) < since_s + self._pace.settle_s:
            return False
        turn_s = self._turn_s(epoch, self.peer)
        if turn_s is None or self._unix_s < turn_s:
            return False
        ours = standing(PlanDigest(self.model, epoch, self.peer, b""))
        return not self._proposals.has_better(ours, now_s)

    def _is_resting(self, epoch: int) -> bool:
        """Whether a plan was accepted lately; one far ahead tells that our clock was wrong."""
        if self._current is None:
            return False
        epochs = epoch - self._current.epoch
        return epochs >= -1 and epochs * self._pace.epoch_s < self._pace.rest_s

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
