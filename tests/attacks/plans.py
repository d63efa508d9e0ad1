"""One honest peer that plans, and all others played by hand: what attacks on plans share."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec

from gennode.node.actions import Send
from gennode.node.plans.planning import Accepted, Judge, PlanAction, PlanningMachine
from gennode.node.plans.proposals import Refused
from gennode.node.plans.witness import PACE
from gennode.wire.ids import PeerId
from gennode.wire.messages import PlanDigest, PlanSent, PlanWanted
from gennode.wire.proposal import (
    MARK_BYTES,
    mark_of,
    place_in_line,
    sign_proposal,
)
from gennode.wire.signing import Key
from gennode.wire.snapshot import Candidate, Snapshot
from tests.node.plans.planners import (
    EPOCH_ZERO_S,
    KEYS,
    MODEL,
    ToyDecision,
    announced,
    decide,
    take,
)

PEERS = 12
AGO_S = 100.0  # so long has the victim been looking when an attack begins
EPOCH = int(EPOCH_ZERO_S // PACE.epoch_s)

Forge = Callable[["Stage", Snapshot, bytes], tuple[Snapshot, bytes]]


class Stage:
    """One honest peer and what it sees; all others are played by hand."""

    def __init__(self, *, needs_plan: bool = True, peers: int = PEERS) -> None:
        self.keys = {key.peer: key for key in KEYS[:peers]}
        self.line = sorted(self.keys, key=lambda peer: place_in_line(MODEL, EPOCH, peer))
        self.victim = self.line[5]
        self.attacker = self.keys[self.line[0]]
        self.machine = PlanningMachine(self.keys[self.victim], MODEL, take, Random(1))
        self.live = [announced(peer, capacity=6) for peer in sorted(self.keys)]
        self.now_s = -AGO_S
        self.refused: list[Refused] = []
        self.accepted: list[Accepted] = []
        self.asked: list[tuple[PeerId, PlanWanted]] = []
        self.jobs = 0
        if not needs_plan:
            plan = decide(take(self.live, 0)).plan
            assert plan is not None
            spans = {hop.peer: hop.span for hop in plan.hosts}
            self.live = [announced(peer, capacity=6, held=spans[peer]) for peer in sorted(spans)]
        while self.now_s < 0.5:  # just after the epoch began
            self.wait(0.5, decides=False)

    def wait(self, duration_s: float, *, decides: bool = True) -> None:
        """Let time pass."""
        end_s = self.now_s + duration_s
        while self.now_s < end_s:
            self.now_s += 0.5
            self.act(self.machine.tick(self.now_s, EPOCH_ZERO_S + self.now_s, self.live), decides)

    def act(self, actions: list[PlanAction], decides: bool = True) -> None:
        """Do at once what the victim's shell would."""
        for action in actions:
            match action:
                case Judge():
                    self.jobs += decides
                    decision = decide(action.snapshot) if decides else ToyDecision(None)
                    self.act(self.machine.judged(action.job, decision, self.now_s))
                case Refused():
                    self.refused.append(action)
                case Accepted():
                    self.accepted.append(action)
                case Send() if isinstance(action.message, PlanWanted):
                    self.asked.append((action.peer, action.message))

    def sealed(
        self, forge: Forge | None = None, *, plan: bytes | None = None, key: Key | None = None,
        epoch: int = EPOCH,
    ) -> tuple[PlanDigest, bytes]:  # fmt: skip
        """A proposal, honest but for what is forged in it."""
        key = key or self.attacker
        snapshot = take(self.live, epoch)
        marks = b"".join(mark_of(msgspec.msgpack.encode(one)) for one in self.live)
        if forge is not None:
            snapshot, marks = forge(self, snapshot, marks)
        found = decide(snapshot).plan
        digest = plan or (found.digest if found else bytes(32))
        sent, name = sign_proposal(key, snapshot, marks, digest)
        return PlanDigest(MODEL, epoch, key.peer, name), sent

    def hear(self, digest: PlanDigest, teller: PeerId | None = None) -> None:
        """Be told of a proposal by somebody."""
        teller = teller or self.attacker.peer
        self.act(self.machine.receive(teller, digest, b"", self.now_s))
        self.wait(0.5)

    def get(self, digest: PlanDigest, sent: bytes, teller: PeerId | None = None) -> None:
        """Be told, ask, and be sent it."""
        teller = teller or self.attacker.peer
        self.hear(digest, teller)
        assert self.asked[-1] == (teller, PlanWanted(MODEL, digest.proposal))
        answer = PlanSent(MODEL, digest.proposal)
        self.act(self.machine.receive(teller, answer, sent, self.now_s))


def strangers(stage: Stage, snapshot: Snapshot, marks: bytes) -> tuple[Snapshot, bytes]:
    """Add two peers that nobody has heard of."""
    new = [better(take([announced(key.peer)], 0).peers[0]) for key in KEYS[40:42]]
    pairs = [(one, bytes(MARK_BYTES)) for one in new]
    known = range(len(snapshot.peers))
    pairs += [
        (snapshot.peers[index], marks[index * MARK_BYTES : (index + 1) * MARK_BYTES])
        for index in known
    ]
    pairs.sort(key=lambda pair: pair[0].peer)
    peers = tuple(one for one, _ in pairs)
    return msgspec.structs.replace(snapshot, peers=peers), b"".join(mark for _, mark in pairs)


def other_demand(_stage: Stage, snapshot: Snapshot, marks: bytes) -> tuple[Snapshot, bytes]:
    demand = msgspec.structs.replace(snapshot.demand, step_limit_s=3.0)
    return msgspec.structs.replace(snapshot, demand=demand), marks


def better(one: Candidate) -> Candidate:
    return msgspec.structs.replace(one, capacity_layers=24, memory_bytes=1 << 40)
