"""The planning machine: whose turn it is, when it looks, proposes, rests, and what it follows."""

from __future__ import annotations

from random import Random

import pytest

from gennode.errors import LocalError
from gennode.node.actions import Send
from gennode.node.plans.planning import TOLD_FIRST, Accepted, Judge, PlanAction, PlanningMachine
from gennode.node.plans.spread import FAN_OUT
from gennode.node.plans.witness import PACE
from gennode.sharding import replan
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.messages import PlanDigest, PlanSent, PlanWanted
from gennode.wire.proposal import MARK_BYTES, place_in_line, read_proposal, sign_proposal
from tests.node.plans.planners import (
    EPOCH_ZERO_S,
    KEYS,
    MODEL,
    ToyDecision,
    announced,
    decide,
    take,
)

EPOCH = int(EPOCH_ZERO_S // PACE.epoch_s)
CAST = {key.peer: key for key in KEYS[:8]}
LINE = sorted(CAST, key=lambda peer: place_in_line(MODEL, EPOCH, peer))
ENOUGH_S = -20.0  # when it has to have begun, to have seen who is there


class Stage:
    """One machine, by its place in line; nobody else says anything."""

    def __init__(self, rank: int, *, since_s: float = ENOUGH_S) -> None:
        self.peer = LINE[rank]
        self.machine = PlanningMachine(CAST[self.peer], MODEL, take, Random(1))
        self.live = [announced(peer) for peer in sorted(CAST)]
        self.offset_s = 0.0  # by which its clock is ahead
        self.tick(since_s)

    def tick(self, now_s: float) -> list[PlanAction]:
        """What it asks for, so long after the epoch began."""
        unix_s = EPOCH_ZERO_S + now_s + self.offset_s
        actions = self.machine.tick(now_s, unix_s, self.live)
        idle = PlanDigest(MODEL, 0, PeerId(""), bytes(32))
        return [one for one in actions if not (isinstance(one, Send) and one.message == idle)]

    def looks(self, start_s: float, end_s: float) -> list[tuple[float, Judge]]:
        """Decisions that it asks for between two moments, and when; none is due."""
        jobs, at_s = [], start_s
        while at_s < end_s:
            for action in self.tick(at_s):
                assert isinstance(action, Judge)
                jobs.append((at_s, action))
                assert self.machine.judged(action.job, ToyDecision(None), at_s) == []
            at_s += 0.5
        return jobs

    def publish(self, at_s: float) -> Accepted:
        [job] = self.tick(at_s)
        assert isinstance(job, Judge)
        [accepted] = self.machine.judged(job.job, decide(job.snapshot), at_s)
        assert isinstance(accepted, Accepted)
        return accepted


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_each_looks_when_its_turn_has_come(rank: int) -> None:
    [(at_s, job)] = Stage(rank).looks(0.0, PACE.epoch_s)
    assert at_s == rank * PACE.takeover_s
    assert job.snapshot.epoch == EPOCH
    assert [one.peer for one in job.snapshot.peers] == sorted(CAST)


def test_who_has_just_come_lets_an_epoch_pass() -> None:
    stage = Stage(0, since_s=1 - PACE.settle_s)
    assert stage.looks(0.0, PACE.epoch_s) == []
    assert len(stage.looks(PACE.epoch_s, 2 * PACE.epoch_s)) == 1
    late = Stage(6, since_s=1.0)  # it has seen enough by its turn, but not who came before
    assert late.looks(1.5, PACE.epoch_s) == []


def test_who_was_before_us_is_waited_for_while_its_proposal_is_in_doubt() -> None:
    stage = Stage(1)
    stage.tick(0.5)
    pool = [*stage.live, announced(KEYS[40].peer), announced(KEYS[41].peer)]
    snapshot = take(pool, EPOCH)
    first, marks = CAST[LINE[0]], bytes(MARK_BYTES * len(snapshot.peers))
    sent, name = sign_proposal(first, snapshot, marks, bytes(32))
    digest = PlanDigest(MODEL, EPOCH, first.peer, name)
    assert stage.machine.receive(first.peer, digest, b"", 0.5) == []
    assert stage.tick(0.6) == [Send(first.peer, PlanWanted(MODEL, name))]
    assert stage.machine.receive(first.peer, PlanSent(MODEL, name), sent, 1.0) == []
    [(at_s, _)] = stage.looks(1.0, PACE.give_up_s)
    assert at_s == 1.0 + PACE.catch_up_s


def test_a_pool_for_which_nothing_was_due_is_not_decided_on_again() -> None:
    stage = Stage(0)
    assert len(stage.looks(0.0, 5 * PACE.epoch_s)) == 1
    stage.live = [announced(peer, capacity=9, sequence=2) for peer in sorted(CAST)]
    assert len(stage.looks(5 * PACE.epoch_s, 7 * PACE.epoch_s)) == 1


def test_in_each_epoch_a_peer_looks_once_even_if_its_clock_is_set_back() -> None:
    stage = Stage(0)
    assert len(stage.looks(0.0, 5.0)) == 1
    stage.live = [announced(peer, capacity=9, sequence=2) for peer in sorted(CAST)]
    assert stage.looks(5.0, PACE.epoch_s) == []
    assert len(stage.looks(PACE.epoch_s, 2 * PACE.epoch_s)) == 1
    stage.live = [announced(peer, capacity=7, sequence=3) for peer in sorted(CAST)]
    stage.offset_s = -2 * PACE.epoch_s
    assert stage.looks(2 * PACE.epoch_s, 4 * PACE.epoch_s) == []
    assert len(stage.looks(4 * PACE.epoch_s, 5 * PACE.epoch_s)) == 1


def test_a_clock_that_was_an_hour_ahead_does_not_stop_planning() -> None:
    stage = Stage(0)
    stage.offset_s = 3600.0
    at_s = 0.0
    while stage.machine.current is None and at_s < 10 * PACE.epoch_s:
        for job in stage.tick(at_s):
            if isinstance(job, Judge):
                stage.machine.judged(job.job, decide(job.snapshot), at_s)
        at_s += 0.5
    assert stage.machine.accepted is not None
    stage.offset_s = 0.0
    later_s = PACE.epoch_s * (at_s // PACE.epoch_s + 1)
    stage.live = [announced(peer, capacity=9, sequence=2) for peer in sorted(CAST)]
    actions = [one for step in range(200) for one in stage.tick(later_s + step)]
    assert any(isinstance(one, Judge) for one in actions)


def test_who_is_not_live_itself_proposes_nothing() -> None:
    stage = Stage(0)
    stage.live = [one for one in stage.live if one.peer != stage.peer]
    assert stage.looks(0.0, PACE.epoch_s) == []


def test_of_a_long_line_only_the_first_have_a_turn() -> None:
    keys = {key.peer: key for key in KEYS[:40]}
    line = sorted(keys, key=lambda peer: place_in_line(MODEL, EPOCH, peer))
    last = int(PACE.epoch_s / PACE.takeover_s) - 1
    for rank, looks in ((last, 1), (last + 1, 0)):
        stage = Stage(0)
        stage.machine = PlanningMachine(keys[line[rank]], MODEL, take, Random(1))
        stage.live = [announced(peer) for peer in sorted(keys)]
        stage.tick(ENOUGH_S)
        assert len(stage.looks(0.0, PACE.epoch_s)) == looks


def test_a_proposal_is_followed_by_its_publisher_and_told_of() -> None:
    stage = Stage(0)
    assert stage.machine.target(stage.peer) is None
    accepted = stage.publish(0.0)
    plan = decide(accepted.snapshot).plan
    assert plan is not None
    assert stage.machine.current == (plan, accepted.snapshot)
    assert {peer: stage.machine.target(peer) for peer in CAST} == {
        hop.peer: hop.span for hop in plan.hosts
    }
    assert isinstance(stage.machine.target(stage.peer), Span)
    told = stage.tick(0.5)
    assert all(isinstance(one, Send) for one in told)
    peers = {one.peer for one in told if isinstance(one, Send)}
    assert peers >= set(LINE[1 : 1 + TOLD_FIRST])
    assert stage.peer not in peers
    assert len(peers) <= TOLD_FIRST + FAN_OUT


def test_what_is_sent_is_what_everybody_else_can_check() -> None:
    stage = Stage(0)
    accepted = stage.publish(0.0)
    [digest, *_] = [one.message for one in stage.tick(0.5) if isinstance(one, Send)]
    assert isinstance(digest, PlanDigest)
    wanted = PlanWanted(MODEL, digest.proposal)
    [answer] = stage.machine.receive(LINE[3], wanted, b"", 1.0)
    assert isinstance(answer, Send)
    proposal = read_proposal(bytes(answer.payload), digest.proposal)
    assert proposal is not None
    assert proposal.snapshot == accepted.snapshot
    assert proposal.plan == accepted.plan.digest


def test_after_a_plan_there_is_rest() -> None:
    stage = Stage(0)
    accepted = stage.publish(0.0)
    stage.live = [announced(peer, capacity=9, sequence=2) for peer in sorted(CAST)]
    epochs = int(PACE.rest_s / PACE.epoch_s)
    at_s, jobs = 1.0, list[Judge]()
    while at_s < (epochs + 1) * PACE.epoch_s:
        jobs += [one for one in stage.tick(at_s) if isinstance(one, Judge)]
        at_s += 1.0
    assert [job.snapshot.epoch for job in jobs] == [EPOCH + epochs]
    assert jobs[0].accepted == accepted.plan.hosts


def test_the_same_plan_is_not_proposed_again() -> None:
    stage = Stage(0)
    first = stage.publish(0.0)
    at_s = 1.0
    while not (jobs := [one for one in stage.tick(at_s) if isinstance(one, Judge)]):
        at_s += 1.0
    assert stage.machine.judged(jobs[0].job, decide(jobs[0].snapshot), at_s) == []
    assert stage.machine.current == (first.plan, first.snapshot)


def test_a_decision_that_comes_an_epoch_late_is_not_proposed() -> None:
    stage = Stage(0)
    [job] = stage.tick(0.0)
    assert isinstance(job, Judge)
    late_s = PACE.epoch_s + 1
    stage.tick(late_s)
    assert stage.machine.judged(job.job, decide(job.snapshot), late_s) == []
    assert stage.machine.current is None


def test_a_decision_that_failed_is_no_plan_and_one_that_nobody_asked_for_is_nothing() -> None:
    stage = Stage(0)
    [job] = stage.tick(0.0)
    assert isinstance(job, Judge)
    assert stage.machine.judged(job.job + 1, decide(job.snapshot), 0.0) == []
    assert stage.machine.judged(job.job, None, 0.0) == []
    assert stage.machine.judged(job.job, decide(job.snapshot), 0.0) == []
    assert stage.machine.current is None


def test_messages_about_other_models_belong_elsewhere() -> None:
    other = PlanWanted(ModelId("b" * 64), bytes(32))
    with pytest.raises(LocalError):
        Stage(0).machine.receive(LINE[1], other, b"", 0.0)


def test_the_real_rule_fits_in() -> None:
    """Two peers host the whole model and six could: more are put to work."""
    stage = Stage(0)
    held = {peer: Span(12 * index, 12 * index + 12) for index, peer in enumerate(LINE[:2])}
    stage.live = [
        announced(peer, capacity=12, held=held.get(peer), layer_time_s=0.001)
        for peer in sorted(CAST)
    ]
    stage.machine = PlanningMachine(CAST[stage.peer], MODEL, take, Random(1))
    stage.tick(ENOUGH_S)
    [job] = stage.tick(0.0)
    assert isinstance(job, Judge)
    decision = replan.decide(job.snapshot, job.accepted)
    [accepted] = stage.machine.judged(job.job, decision, 0.0)
    assert isinstance(accepted, Accepted)
    assert accepted.plan == decision.plan
    assert len(accepted.plan.hosts) > 2
