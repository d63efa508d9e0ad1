"""What a witness knows, for how long, and what it says of snapshots that differ from its view."""

from __future__ import annotations

import msgspec
import pytest

from gennode.node.plans.witness import (
    MAX_FACTS,
    PACE,
    TOLERATED_SHARE,
    Opinion,
    Witness,
    claims_of,
    stands_without,
)
from gennode.wire.announcement import Announcement
from gennode.wire.ids import Hop, PeerId, Span
from gennode.wire.proposal import RULES, Proposal, place_in_line
from gennode.wire.snapshot import Snapshot
from tests.node.plans.planners import KEYS, MODEL, announced, take

ME, ONE, OTHER = (PeerId(name) for name in ("me", "one", "other"))
LONG_S = 100.0


def crowd(count: int) -> list[Announcement]:
    return sorted((announced(key.peer) for key in KEYS[:count]), key=lambda one: one.peer)


def looking(live: list[Announcement], since_s: float = 0.0) -> Witness:
    witness = Witness(ME, MODEL, take, PACE)
    witness.see(live, since_s)
    return witness


def opinion(
    witness: Witness, snapshot: Snapshot, marks: bytes, *, waited_s: float = 0.0,
    now_s: float = LONG_S, publisher: PeerId = ME,
) -> Opinion:  # fmt: skip
    proposal = Proposal(RULES, publisher, snapshot, marks, bytes(32))
    return witness.judge(proposal, claims_of(proposal), waited_s, now_s)


def view(live: list[Announcement], now_s: float = LONG_S) -> tuple[Snapshot, bytes]:
    """What somebody else who saw these from the beginning would publish."""
    return looking(live).snapshot(7, now_s)


def test_equal_views_agree() -> None:
    live = crowd(5)
    assert opinion(looking(live), *view(live)) == Opinion("sound")


def test_a_snapshot_has_nothing_that_others_may_not_have_heard_yet() -> None:
    witness = looking([announced(ONE)])
    witness.see([announced(ONE, capacity=9, sequence=2), announced(OTHER)], 20.0)
    snapshot, _ = witness.snapshot(7, 20.0 + PACE.settle_s - 1)
    assert [(one.peer, one.capacity_layers) for one in snapshot.peers] == [(ONE, 8)]
    snapshot, marks = witness.snapshot(7, 20.0 + PACE.settle_s)
    assert [(one.peer, one.capacity_layers) for one in snapshot.peers] == [(ONE, 9), (OTHER, 8)]
    assert len(marks) == 16


def test_who_came_back_is_new_again() -> None:
    witness = looking([announced(ONE)])
    witness.see([], 20.0)
    assert not witness.is_live(ONE)
    witness.see([announced(ONE)], 22.0)
    assert witness.is_live(ONE)
    assert witness.snapshot(7, 23.0)[0].peers == ()
    assert len(witness.snapshot(7, 32.0)[0].peers) == 1


def test_facts_are_remembered_for_a_minute() -> None:
    old = [announced(ONE), announced(OTHER)]
    snapshot, marks = view(old)
    witness = looking(old)
    witness.see([announced(ONE, capacity=9, sequence=2), old[1]], 50.0)
    assert opinion(witness, snapshot, marks).says == "sound"
    witness.see([announced(ONE, capacity=9, sequence=2), old[1]], 50.0 + PACE.remember_s)
    assert opinion(witness, snapshot, marks).says == "unsure"


def test_the_dead_are_remembered_for_a_minute() -> None:
    old = [announced(ONE), announced(OTHER)]
    snapshot, marks = view(old)
    witness = looking(old)
    witness.see(old[:1], 50.0)
    assert opinion(witness, snapshot, marks).says == "sound"
    witness.see(old[:1], 50.0 + PACE.remember_s)
    assert opinion(witness, snapshot, marks).says == "unsure"


def test_only_so_many_facts_of_one_peer_are_kept() -> None:
    witness = looking([])
    pool = [view([announced(ONE, capacity=number)]) for number in range(1, MAX_FACTS + 3)]
    for number in range(1, MAX_FACTS + 3):
        witness.see([announced(ONE, capacity=number, sequence=number)], float(number))
    says = [opinion(witness, *one, now_s=10.0).says for one in pool]
    assert says == ["unsure"] * 2 + ["sound"] * MAX_FACTS


def test_other_words_with_the_same_facts_are_the_same() -> None:
    live = [announced(ONE)]
    snapshot, marks = view(live)
    busy = [msgspec.structs.replace(live[0], sessions=3, sequence=2)]
    assert opinion(looking(busy), snapshot, marks) == Opinion("sound")


def test_what_a_peers_own_announcement_contradicts_is_a_lie() -> None:
    live = crowd(5)
    snapshot, marks = view(live)
    more = msgspec.structs.replace(snapshot.peers[2], capacity_layers=9)
    peers = (*snapshot.peers[:2], more, *snapshot.peers[3:])
    lie = msgspec.structs.replace(snapshot, peers=peers)
    said = opinion(looking(live), lie, marks)
    assert said == Opinion("false", f"{more.peer} announced something else")
    assert opinion(looking(live), lie, bytes(len(marks))).says == "unsure"


def test_a_lie_shows_also_by_the_newest_words_of_the_same_facts() -> None:
    live = crowd(5)
    witness = looking(live)
    live[2] = msgspec.structs.replace(live[2], sessions=3, sequence=2)
    witness.see(live, 1.0)
    snapshot, marks = view(live)
    more = msgspec.structs.replace(snapshot.peers[2], capacity_layers=9)
    peers = (*snapshot.peers[:2], more, *snapshot.peers[3:])
    assert opinion(witness, msgspec.structs.replace(snapshot, peers=peers), marks).says == "false"


def test_what_is_said_of_ourselves_has_to_be_known() -> None:
    live = [announced(ME), announced(ONE), announced(OTHER)]
    snapshot, marks = view([announced(ME, capacity=20), *live[1:]])
    for waited_s in (0.0, PACE.catch_up_s, PACE.give_up_s):
        said = opinion(looking(live), snapshot, marks, waited_s=waited_s, publisher=ONE)
        assert said.says == "unsure"
    forged = opinion(looking(live), snapshot, view(live)[1], publisher=ONE)
    assert forged == Opinion("false", "me announced something else")


def test_another_demand_is_a_lie() -> None:
    live = crowd(5)
    snapshot, marks = view(live)
    demand = msgspec.structs.replace(snapshot.demand, layers=5)
    said = opinion(looking(live), msgspec.structs.replace(snapshot, demand=demand), marks)
    assert said.says == "false"


@pytest.mark.parametrize(("peers", "unknown"), [(5, 1), (49, 1), (60, 1)])
def test_some_unknown_entries_are_borne_once_there_was_time(peers: int, unknown: int) -> None:
    live = crowd(peers)
    snapshot, marks = view(live)
    for missing in (unknown, unknown + 1):
        witness = looking(live[missing:])
        for waited_s in (0.0, PACE.catch_up_s - 0.1, PACE.catch_up_s):
            said = opinion(witness, snapshot, marks, waited_s=waited_s)
            is_borne = waited_s >= PACE.catch_up_s and missing == unknown
            assert said.says == ("sound" if is_borne else "unsure")
            if is_borne:
                assert said.unknown == {one.peer for one in live[:missing]}
    assert max(1, peers // TOLERATED_SHARE) == unknown


def test_a_publishers_own_entry_has_to_be_known() -> None:
    live = crowd(5)
    snapshot, marks = view(live)
    witness = looking(live[1:])
    late_s = PACE.catch_up_s
    assert opinion(witness, snapshot, marks, waited_s=late_s).says == "sound"
    stranger = live[0].peer
    said = opinion(witness, snapshot, marks, waited_s=late_s, publisher=stranger)
    assert said.says == "unsure"


def test_one_old_peer_may_be_left_out_and_any_number_of_new_ones() -> None:
    live = crowd(8)
    for missing, says in ((1, "sound"), (2, "unsure")):
        snapshot, marks = view(live[missing:])
        assert opinion(looking(live), snapshot, marks).says == says
        fresh = looking(live, LONG_S - PACE.fresh_s + 1)
        assert opinion(fresh, snapshot, marks).says == "sound"


def test_the_line_has_those_who_are_live() -> None:
    live = crowd(6)
    witness = looking(live)
    line = sorted((one.peer for one in live), key=lambda peer: place_in_line(MODEL, 7, peer))
    assert [witness.rank(7, peer) for peer in line] == list(range(6))
    assert witness.next_in_line(7, line[3], 5) == line[4:]
    witness.see([one for one in live if one.peer != line[0]], 1.0)
    assert witness.rank(7, line[0]) is None
    assert witness.rank(7, line[1]) == 0
    assert witness.rank(7, PeerId("nobody")) is None


def test_who_hosts_something_else_is_not_of_the_pool() -> None:
    other = announced(OTHER)
    hosting = msgspec.structs.replace(other.hosting[0], model="b" * 64)
    witness = looking([announced(ONE), msgspec.structs.replace(other, hosting=(hosting,))])
    assert witness.live == [ONE]
    witness.see([], 1.0)
    assert witness.live == []


def test_a_plan_stands_where_known_peers_hold_every_layer() -> None:
    hosts = [Hop(ONE, Span(0, 4)), Hop(OTHER, Span(3, 8)), Hop(ME, Span(0, 8))]
    assert stands_without(hosts, frozenset(), 8)
    assert stands_without(hosts, frozenset({ME}), 8)
    assert stands_without(hosts, frozenset({ONE, OTHER}), 8)
    assert not stands_without(hosts, frozenset({ME, ONE}), 8)
    assert not stands_without(hosts[:2], frozenset(), 9)
    assert not stands_without([Hop(ONE, Span(0, 4)), Hop(ME, Span(5, 8))], frozenset(), 8)
