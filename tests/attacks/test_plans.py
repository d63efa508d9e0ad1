"""Hostile publishers: no false plan is followed, and each lie costs its publisher its turn."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from gennode.errors import RemoteError
from gennode.node.plans.witness import PACE
from gennode.wire.ids import PeerId
from gennode.wire.messages import PlanDigest, PlanWanted
from gennode.wire.proposal import (
    MARK_BYTES,
    MAX_PROPOSAL_BYTES,
    place_in_line,
    sign_proposal,
)
from gennode.wire.snapshot import Snapshot
from tests.attacks.plans import EPOCH, PEERS, Forge, Stage, better, other_demand, strangers
from tests.node.plans.planners import KEYS, MODEL, announced, decide, take


def entry(stage: Stage, snapshot: Snapshot, peer: PeerId) -> int:
    return [one.peer for one in snapshot.peers].index(peer)


def changed(*peers: int, invents: bool) -> Forge:
    """Make more of peers, by their place in line; under the mark of a made-up announcement."""

    def forge(stage: Stage, snapshot: Snapshot, marks: bytes) -> tuple[Snapshot, bytes]:
        entries, parts = list(snapshot.peers), bytearray(marks)
        for number in peers:
            index = entry(stage, snapshot, stage.line[number])
            entries[index] = better(entries[index])
            if invents:
                parts[index * MARK_BYTES : (index + 1) * MARK_BYTES] = b"invented"
        return msgspec.structs.replace(snapshot, peers=tuple(entries)), bytes(parts)

    return forge


def without(count: int) -> Forge:
    """Leave out the last in line."""

    def forge(stage: Stage, snapshot: Snapshot, marks: bytes) -> tuple[Snapshot, bytes]:
        lost = set(stage.line[-count:])
        kept = [index for index, one in enumerate(snapshot.peers) if one.peer not in lost]
        peers = tuple(snapshot.peers[index] for index in kept)
        parts = [marks[index * MARK_BYTES : (index + 1) * MARK_BYTES] for index in kept]
        return msgspec.structs.replace(snapshot, peers=peers), b"".join(parts)

    return forge


LIES: dict[str, tuple[Forge | None, bytes | None, str]] = {
    "of another peer": (changed(3, invents=False), None, "announced something else"),
    "of itself": (changed(0, invents=False), None, "announced something else"),
    "of the victim": (changed(5, invents=False), None, "announced something else"),
    "of what the model needs": (other_demand, None, "another demand"),
    "of what follows": (None, b"\7" * 32, "another plan follows"),
}
DOUBTS: dict[str, tuple[Forge, str]] = {
    "two entries of made-up announcements": (changed(3, 4, invents=True), "not known here"),
    "the victim's entry of a made-up announcement": (changed(5, invents=True), "not known here"),
    "its own entry of a made-up announcement": (changed(0, invents=True), "not known here"),
    "two made-up peers": (strangers, "not known here"),
    "two peers left out": (without(2), "leaves out 2 of 12"),
}


def test_the_stage_is_set_for_an_honest_proposal() -> None:
    stage = Stage()
    stage.get(*stage.sealed())
    stage.wait(1.0)
    assert [one.publisher for one in stage.accepted] == [stage.attacker.peer]
    assert stage.machine.target(stage.victim) is not None


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_and_laid_at_its_publishers_door(lie: str) -> None:
    forge, plan, why = LIES[lie]
    stage = Stage()
    stage.get(*stage.sealed(forge, plan=plan))
    stage.wait(2.0)
    [refused] = stage.refused
    assert refused.is_proven
    assert why in refused.reason
    assert refused.publisher == stage.attacker.peer
    assert stage.accepted == []
    asked = len(stage.asked)
    stage.hear(stage.sealed()[0])  # an honest one of a liar comes too late
    assert len(stage.asked) == asked
    follows(stage, 1)


def follows(stage: Stage, rank: int) -> None:
    """Whoever comes later in line is followed all the same."""
    key = stage.keys[stage.line[rank]]
    stage.get(*stage.sealed(key=key), key.peer)
    stage.wait(4.0)
    assert [one.publisher for one in stage.accepted] == [key.peer]


@pytest.mark.parametrize("doubt", DOUBTS)
def test_what_can_not_be_told_is_not_followed_and_nobody_blamed(doubt: str) -> None:
    forge, why = DOUBTS[doubt]
    stage = Stage()
    stage.get(*stage.sealed(forge))
    stage.wait(PACE.give_up_s + 2.0, decides=False)
    [refused] = stage.refused
    assert not refused.is_proven
    assert why in refused.reason
    assert stage.accepted == []
    assert stage.jobs == 0


def test_a_plan_that_rests_on_an_unknown_entry_is_not_followed() -> None:
    stage = Stage(peers=6)
    alone = next(  # of six peers that hold six layers each, the third and the fourth are alone
        stage.line.index(peer)
        for peer in sorted(stage.keys)[2:4]
        if peer not in (stage.victim, stage.attacker.peer)
    )
    stage.get(*stage.sealed(changed(alone, invents=True)))
    stage.wait(PACE.catch_up_s + 3.0)
    assert [one.reason for one in stage.refused] == ["it rests on peers that are not known"]
    assert not stage.refused[0].is_proven
    assert stage.accepted == []


def test_who_says_two_things_at_once_has_nobody_else_blamed() -> None:
    """One peer signs two announcements under one number: the publisher has one, we the other."""
    stage = Stage()
    twofaced = stage.line[3]
    known = list(stage.live)
    stage.live = [
        announced(one.peer, capacity=7) if one.peer == twofaced else one for one in stage.live
    ]
    digest, sent = stage.sealed()
    stage.live = known
    stage.get(digest, sent)
    stage.wait(PACE.catch_up_s + 3.0)
    assert stage.refused == []
    assert [one.publisher for one in stage.accepted] == [stage.attacker.peer]


def test_one_unknown_entry_that_the_plan_could_do_without_is_borne() -> None:
    stage = Stage()
    stage.get(*stage.sealed(changed(3, invents=True)))
    stage.wait(PACE.catch_up_s - 2.0, decides=False)
    assert stage.accepted == []  # first there is time for news of it to come
    stage.wait(4.0)
    assert [one.publisher for one in stage.accepted] == [stage.attacker.peer]


def test_a_plan_that_is_not_due_is_a_lie() -> None:
    stage = Stage(needs_plan=False)
    stage.get(*stage.sealed(plan=b"\1" * 32))
    assert [one.is_proven for one in stage.refused] == [True]
    assert "no plan is due" in stage.refused[0].reason


def test_nobody_publishes_before_its_turn() -> None:
    stage = Stage(peers=20)
    late = stage.keys[stage.line[4]]  # its turn comes after 8 s, less what clocks may be off
    digest, _ = stage.sealed(key=late)
    stage.hear(digest, late.peer)
    assert stage.asked == []
    stage.wait(3.0)
    assert stage.asked == []
    stage.wait(1.5)
    assert stage.asked == [(late.peer, PlanWanted(MODEL, digest.proposal))]


def test_who_has_no_turn_in_an_epoch_is_never_asked() -> None:
    stage = Stage(peers=20)
    last = stage.keys[stage.line[-1]]
    stranger = KEYS[60]
    for key in (last, stranger):
        for teller in (last.peer, stage.line[1]):
            stage.hear(stage.sealed(key=key)[0], teller)
            stage.wait(12.0, decides=False)
    assert stage.asked == []


@pytest.mark.parametrize("epochs", [-1000, -2, 2, 1 << 40])
def test_other_epochs_are_not_listened_to(epochs: int) -> None:
    stage = Stage()
    for publisher in stage.line:
        stage.hear(PlanDigest(MODEL, EPOCH + epochs, publisher, bytes(32)))
    assert stage.asked == []


def test_an_old_proposal_under_a_new_name_costs_its_teller_the_link() -> None:
    stage = Stage()
    digest, sent = stage.sealed(epoch=EPOCH - 9)
    with pytest.raises(RemoteError, match="not what its teller said"):
        stage.get(msgspec.structs.replace(digest, epoch=EPOCH), sent)
    stage.hear(stage.sealed()[0])
    assert len(stage.asked) == 1  # and for a while it is asked nothing


@pytest.mark.parametrize("kind", ["oversized", "noise", "empty map", "another's", "unsigned"])
def test_what_is_no_proposal_costs_its_sender_the_link(kind: str) -> None:
    stage = Stage()
    digest, sent = stage.sealed()
    other, _ = sign_proposal(
        KEYS[60], take(stage.live, EPOCH), bytes(PEERS * MARK_BYTES), bytes(32)
    )
    payload = {
        "oversized": bytes(MAX_PROPOSAL_BYTES + 1),
        "noise": Random(1).randbytes(5000),
        "empty map": b"\x80",
        "another's": other,
        "unsigned": sent[:-64] + bytes(64),
    }[kind]
    with pytest.raises(RemoteError):
        stage.get(digest, payload)
    assert stage.jobs == 0
    stage.wait(10.5, decides=False)
    follows(stage, 1)


def test_an_old_plan_is_kept_whatever_others_propose() -> None:
    stage = Stage()
    stage.get(*stage.sealed())
    before = stage.machine.current
    assert before is not None
    stage.wait(PACE.epoch_s)
    epoch = EPOCH + 1
    line = sorted(stage.keys, key=lambda peer: place_in_line(MODEL, epoch, peer))
    stage.attacker = stage.keys[next(peer for peer in line if peer != stage.victim)]
    stage.get(*stage.sealed(plan=b"\7" * 32, epoch=epoch))
    stage.wait(5.0, decides=False)
    assert [one.is_proven for one in stage.refused] == [True]
    assert stage.machine.current == before


def test_nobody_makes_everybody_move_in_each_epoch() -> None:
    stage = Stage()
    spans = [hop.span for hop in decide(take(stage.live, 0)).plan.hosts]  # type: ignore[union-attr]
    peers = sorted(stage.keys)
    stage.live = [
        announced(peer, capacity=6, held=span)
        for peer, span in zip(peers, spans[::-1], strict=True)
    ]  # no layer lacks a host, and yet a plan is due
    stage.wait(PACE.settle_s, decides=False)
    told = []
    for number in range(1, 1 + int(PACE.rest_s // PACE.epoch_s) + 1):
        start_s = number * PACE.epoch_s
        stage.wait(start_s + 0.5 - stage.now_s, decides=False)
        line = sorted(stage.keys, key=lambda peer: place_in_line(MODEL, EPOCH + number, peer))
        publisher = next(peer for peer in line if peer != stage.victim)
        stage.wait(line.index(publisher) * PACE.takeover_s, decides=False)
        digest, sent = stage.sealed(key=stage.keys[publisher], epoch=EPOCH + number)
        stage.get(digest, sent, publisher)
        told.append(digest.epoch)
    assert len(told) == 5
    assert [one.epoch for one in stage.accepted] == [told[0], told[1], told[4]]
    assert {one.reason for one in stage.refused} == {"it comes too soon after the plan before"}
    assert not any(one.is_proven for one in stage.refused)
