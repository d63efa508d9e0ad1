"""Proposals of others: read once each, held until it can be told whether they are right, judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gennode.errors import RemoteError
from gennode.node.plans.spread import Standing, standing
from gennode.node.plans.witness import Claim, Pace, Witness, claims_of, stands_without
from gennode.wire.ids import Hop, PeerId
from gennode.wire.messages import PlanDigest
from gennode.wire.proposal import Proposal, read_proposal

MAX_PENDING = 4  # that we have and can't judge yet; a few MB each, at the very most
MAX_READ = 2  # of one publisher in one epoch: an honest one makes one
MAX_REFUSED = 256  # remembered: more than can be read in the epochs that count
LOOK_AGAIN_S = 1.0


class Planned(Protocol):
    """What planning needs of a plan: `sharding.plan.Plan` is one."""

    @property
    def hosts(self) -> tuple[Hop, ...]:
        """Who hosts what, one hop per peer."""

    @property
    def digest(self) -> bytes:
        """The same for two plans that are the same."""


class Decided(Protocol):
    """What planning needs of a decision: `sharding.replan.Decision` is one."""

    @property
    def plan(self) -> Planned | None:
        """The plan that is due; None if none is."""

    @property
    def why(self) -> str:
        """The reason, in words."""


@dataclass(frozen=True)
class Refused:
    """A proposal is not followed. `is_proven`: its publisher lied, whoever looks at it."""

    publisher: PeerId
    epoch: int
    reason: str
    is_proven: bool


@dataclass
class Pending:
    """A proposal that was read and is neither accepted nor refused yet.

    `sent`: as it travels. `unknown`: whose entries nobody vouches for, once it is found sound.
    """

    digest: PlanDigest
    sent: bytes
    proposal: Proposal
    claims: list[Claim]
    since_s: float
    next_look_s: float
    unknown: frozenset[PeerId] = frozenset()

    @property
    def standing(self) -> Standing:
        """Its place among all: the lowest wins."""
        return standing(self.digest)


class Proposals:
    """Those that are pending, and as much of the others as keeps us from reading them again."""

    def __init__(self, witness: Witness, pace: Pace) -> None:
        self._witness = witness
        self._pace = pace
        self._pending: dict[bytes, Pending] = {}
        self._refused: dict[bytes, None] = {}
        self._read: dict[tuple[int, PeerId], int] = {}

    def forget(self, oldest_epoch: int) -> None:
        """Let go of what belongs to epochs before one."""
        self._read = {key: count for key, count in self._read.items() if key[0] >= oldest_epoch}
        self._pending = {
            name: one for name, one in self._pending.items() if one.digest.epoch >= oldest_epoch
        }

    def may_read(self, digest: PlanDigest) -> bool:
        """Whether a proposal is new, and its publisher has neither lied nor made too many."""
        if digest.proposal in self._refused or digest.proposal in self._pending:
            return False
        return self._read.get((digest.epoch, digest.publisher), 0) < MAX_READ

    def read(self, told: PlanDigest, sent: bytes, now_s: float) -> None:
        """Take a proposal that we asked for; RemoteError if it is not what its teller told.

        Whoever passes one on has checked it, so a malformed one is the teller's fault.
        """
        proposal = read_proposal(sent, told.proposal)
        if proposal is None:
            self._note_refused(told.proposal)
            return
        snapshot = proposal.snapshot
        stated = PlanDigest(snapshot.model, snapshot.epoch, proposal.publisher, told.proposal)
        if stated != told:
            raise RemoteError("a proposal is not what its teller said of it")
        author = (told.epoch, told.publisher)
        self._read[author] = self._read.get(author, 0) + 1
        claims = claims_of(proposal)
        self._pending[told.proposal] = Pending(told, sent, proposal, claims, now_s, now_s)
        while len(self._pending) > MAX_PENDING:
            del self._pending[max(self._pending, key=lambda name: self._pending[name].standing)]

    def has_better(self, than: Standing, now_s: float) -> bool:
        """Whether one that came lately, and would win, is not judged yet."""
        return any(
            one.standing < than and now_s - one.since_s < self._pace.catch_up_s
            for one in self._pending.values()
        )

    def weigh(
        self, now_s: float, would_win: Callable[[PlanDigest], bool]
    ) -> tuple[Pending | None, list[Refused]]:
        """The best one whose snapshot is sound, to be recomputed; and who is refused."""
        refused: list[Refused] = []
        for one in sorted(self._pending.values(), key=lambda one: one.standing):
            if not would_win(one.digest):
                del self._pending[one.digest.proposal]
            elif now_s >= one.next_look_s:
                waited_s = now_s - one.since_s
                opinion = self._witness.judge(one.proposal, one.claims, waited_s, now_s)
                if opinion.says == "sound":
                    one.unknown = opinion.unknown
                    return one, refused
                if opinion.says == "false" or waited_s >= self._pace.give_up_s:
                    is_proven = opinion.says == "false"
                    refused.append(self._refuse(one, opinion.why, is_proven=is_proven))
                one.next_look_s = now_s + LOOK_AGAIN_S
        return None, refused

    def conclude(self, one: Pending, decision: Decided | None) -> Planned | Refused:
        """The plan to follow, once it is decided what follows from a sound snapshot."""
        if decision is None:
            return self._refuse(one, "it could not be recomputed here", is_proven=False)
        plan = decision.plan
        if plan is None:
            return self._refuse(one, f"no plan is due: {decision.why}", is_proven=True)
        if plan.digest != one.proposal.plan:
            return self._refuse(one, "another plan follows from its pool", is_proven=True)
        layers = one.proposal.snapshot.demand.layers
        if one.unknown and not stands_without(plan.hosts, one.unknown, layers):
            return self._refuse(one, "it rests on peers that are not known", is_proven=False)
        self._pending.pop(one.digest.proposal, None)
        return plan

    def _refuse(self, one: Pending, reason: str, *, is_proven: bool) -> Refused:
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
