"""Floods of plans, of word of them and of questions: none costs much, nor keeps good ones away."""

from __future__ import annotations

import tracemalloc
from random import Random

import pytest

from gennode.node.actions import Send
from gennode.node.plans.planning import REST_FACTOR, Judge, PlanAction
from gennode.node.plans.proposals import MAX_PENDING, MAX_READ
from gennode.node.plans.spread import MAX_ASKED, SENT_BURST_BYTES, SENT_BYTES_PER_S
from gennode.node.plans.witness import PACE
from gennode.wire.announcement import Announcement
from gennode.wire.ids import PeerId, peer_id_of
from gennode.wire.messages import PlanDigest, PlanSent, PlanWanted
from tests.attacks.plans import EPOCH, PEERS, Forge, Stage, strangers
from tests.node.plans.planners import EPOCH_ZERO_S, MODEL, announced, decide

MAX_GROWTH_BYTES = 4 * 1024 * 1024


def test_a_flood_of_digests_takes_little_and_asks_little() -> None:
    stage = Stage()
    chance = Random(1)
    tracemalloc.start()
    try:
        for number in range(20_000):
            publisher = stage.line[chance.randrange(PEERS)]
            teller = PeerId(f"nobody {number}") if number % 2 else stage.line[1 + number % 4]
            digest = PlanDigest(MODEL, EPOCH, publisher, chance.randbytes(32))
            stage.act(stage.machine.receive(teller, digest, b"", stage.now_s))
            if number % 1000 == 0:
                stage.wait(0.5)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < MAX_GROWTH_BYTES
    assert 0 < len(stage.asked) <= 2 * MAX_ASKED * 20 // 6  # none again within its time limit
    stage.wait(20.0, decides=False)


def test_large_snapshots_that_nobody_can_vouch_for_hold_little_memory() -> None:
    stage = Stage(peers=16)
    entry_bytes = 1000  # of a candidate and what is noted of it; measured some 900
    chance = Random(1)
    crowd = sorted((announced(peer_id_of(chance.randbytes(32))) for _ in range(1000)), key=name_of)
    sealed = []
    for key in (stage.keys[peer] for peer in stage.line if peer != stage.victim):
        stage.live, known = sorted([*crowd, announced(key.peer)], key=name_of), stage.live
        sealed.append((key.peer, *stage.sealed(plan=bytes(32), key=key)))
        stage.live = known
    stage.wait(26.0, decides=False)
    tracemalloc.start()
    try:
        for teller, digest, sent in sealed:
            stage.act(stage.machine.receive(teller, digest, b"", stage.now_s))
            stage.act(stage.machine.tick(stage.now_s, EPOCH_ZERO_S + stage.now_s, stage.live))
            answer = PlanSent(MODEL, digest.proposal)
            stage.act(stage.machine.receive(teller, answer, sent, stage.now_s))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(stage.asked) >= 10
    assert peak_bytes < (MAX_PENDING + 2) * len(crowd) * entry_bytes
    assert stage.jobs == 0


def name_of(one: Announcement) -> PeerId:
    return one.peer


@pytest.mark.parametrize("forge", [None, strangers])
def test_little_is_read_of_one_publisher_in_an_epoch(forge: Forge | None) -> None:
    stage = Stage()
    for number in range(40):
        digest, sent = stage.sealed(forge, plan=bytes([number]) * 32)
        stage.hear(digest)
        if stage.asked and stage.asked[-1][1].proposal == digest.proposal:
            answer = PlanSent(MODEL, digest.proposal)
            stage.act(stage.machine.receive(stage.attacker.peer, answer, sent, stage.now_s))
    assert len(stage.asked) == (1 if forge is None else MAX_READ)
    assert stage.jobs == (1 if forge is None else 0)


class SlowStage(Stage):
    """A victim that takes a second to decide, and is sent whatever it asks for."""

    def __init__(self) -> None:
        self.book: dict[bytes, bytes] = {}
        self.spent_s = 0.0
        self.running: list[tuple[Judge, float]] = []
        super().__init__(peers=16)

    def act(self, actions: list[PlanAction], decides: bool = True) -> None:
        if not decides:
            super().act(actions, decides)
            return
        for action in actions:
            if isinstance(action, Judge):
                self.running.append((action, self.now_s + 1.0))
            elif isinstance(action, Send) and isinstance(action.message, PlanWanted):
                name = action.message.proposal
                answer = PlanSent(MODEL, name)
                self.act(self.machine.receive(action.peer, answer, self.book[name], self.now_s))

    def finish(self) -> None:
        """End the decision that is under way, once it is time."""
        assert len(self.running) <= 1
        if self.running and self.now_s >= self.running[0][1]:
            job, _ = self.running.pop()
            self.spent_s += 1.0
            self.act(self.machine.judged(job.job, decide(job.snapshot), self.now_s))


def test_proposals_of_all_in_line_take_a_third_of_the_time_at_most() -> None:
    stage = SlowStage()
    others = [key for key in stage.keys.values() if key.peer != stage.victim]
    for key in others:
        digest, sent = stage.sealed(plan=bytes([7]) * 32, key=key)
        stage.book[digest.proposal] = sent
        stage.act(stage.machine.receive(key.peer, digest, b"", stage.now_s))
    start_s = stage.now_s
    while stage.now_s < PACE.epoch_s - 1:
        stage.wait(0.5)
        stage.finish()
    assert 3 < stage.spent_s <= (stage.now_s - start_s) / (1 + REST_FACTOR) + 1.0


def test_a_flood_of_questions_is_answered_at_a_bounded_rate() -> None:
    stage = Stage()
    stage.get(*stage.sealed())
    stage.wait(1.0)
    [accepted] = stage.accepted
    wanted = PlanWanted(MODEL, stage.asked[0][1].proposal)
    sent_bytes, answers = 0, 0
    for number in range(20_000):
        asker = PeerId(f"asker {number}")
        for action in stage.machine.receive(asker, wanted, b"", stage.now_s):
            assert isinstance(action, Send)
            sent_bytes += len(action.payload)
            answers += 1
        for action in stage.machine.receive(asker, wanted, b"", stage.now_s):
            raise AssertionError(f"the same asker was answered twice: {action}")
    assert answers == 20_000
    assert 0 < sent_bytes <= SENT_BURST_BYTES + SENT_BYTES_PER_S
    assert accepted.publisher == stage.attacker.peer


def test_a_crowd_that_never_sends_what_it_tells_of_does_not_keep_the_plan_away() -> None:
    stage = Stage(peers=40)
    digest, sent = stage.sealed()
    honest = stage.line[-1]
    fakes = [peer for peer in stage.line if peer not in (stage.victim, honest)]
    chance = Random(3)
    began_s = stage.now_s
    while not stage.accepted and stage.now_s < began_s + 29.0:
        for teller in fakes:
            fake = PlanDigest(MODEL, EPOCH, stage.attacker.peer, chance.randbytes(32))
            stage.act(stage.machine.receive(teller, fake, b"", stage.now_s))
        stage.act(stage.machine.receive(honest, digest, b"", stage.now_s))
        asked = len(stage.asked)
        stage.wait(0.5)
        for teller, _ in stage.asked[asked:]:
            if teller == honest:
                answer = PlanSent(MODEL, digest.proposal)
                stage.act(stage.machine.receive(honest, answer, sent, stage.now_s))
    assert stage.accepted
