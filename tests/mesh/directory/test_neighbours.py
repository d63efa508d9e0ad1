"""Neighbours: of many networks, kept while they answer, replaced when they don't."""

from __future__ import annotations

from collections import Counter
from random import Random

from gennode.mesh.directory.neighbours import (
    MAX_LEFT_ALONE,
    MAX_NEIGHBOURS,
    MAX_PER_GROUP,
    MAX_UNANSWERED,
    RETRY_S,
    ROTATE_S,
    STAYING,
    Neighbours,
)
from gennode.mesh.directory.netgroup import LOCAL
from gennode.wire.ids import PeerId

SELF = PeerId("self")


def peers(group: str, count: int) -> list[tuple[PeerId, str]]:
    return [(PeerId(f"{group}-{number}"), group) for number in range(count)]


def make(candidates: list[tuple[PeerId, str]], seed: int = 0) -> Neighbours:
    one = Neighbours(SELF, Random(seed))
    one.offer(candidates, 0.0)
    return one


def groups(one: Neighbours) -> Counter[str]:
    return Counter(peer.split("-")[0] for peer in one.chosen)


def test_each_network_has_one_place_while_others_have_somebody() -> None:
    for seed in range(50):
        flood = [pair for number in range(4) for pair in peers(f"hostile{number}", 50)]
        honest = [pair for number in range(20) for pair in peers(f"honest{number}", 1)]
        one = make(flood + honest, seed)
        assert len(one.chosen) == MAX_NEIGHBOURS
        assert max(groups(one).values()) == 1


def test_few_networks_do_not_fill_all_places() -> None:
    one = make(peers("8.8", 100) + peers("9.9", 100))
    assert groups(one) == {"8.8": MAX_PER_GROUP, "9.9": MAX_PER_GROUP}
    one = make(peers("8.8", 100) + peers(LOCAL, 100))
    assert groups(one) == {"8.8": MAX_PER_GROUP, LOCAL: MAX_PER_GROUP}


def test_a_swarm_of_one_machine_has_no_networks_to_choose_from() -> None:
    one = make([*peers(LOCAL, 100), (SELF, LOCAL)])
    assert groups(one) == {LOCAL: MAX_NEIGHBOURS}
    assert SELF not in one


def test_each_has_a_turn_before_any_has_two() -> None:
    one = make(peers(LOCAL, 5))
    for _ in range(3):
        assert {one.next() for _ in range(5)} == set(one.chosen)
    assert make([]).next() is None


def test_who_keeps_silent_is_replaced_and_left_alone_for_a_while() -> None:
    one = make(peers(LOCAL, 2))
    silent, speaking = one.chosen
    for _ in range(MAX_UNANSWERED + 1):
        one.asked(speaking, 1.0)
        one.heard(speaking)
        one.asked(silent, 1.0)
    assert one.chosen == one.good == (speaking,)
    assert one.is_wanting(1.0)
    one.offer(peers(LOCAL, 2), 1.0)
    assert one.chosen == (speaking,)
    one.offer(peers(LOCAL, 2), 1.0 + RETRY_S)
    assert set(one.chosen) == {speaking, silent}


def test_half_stay_and_half_change() -> None:
    candidates = peers(LOCAL, 100)
    one = make(candidates)
    before = one.chosen
    for number in range(1, 200):
        one.offer(candidates, number * 2 * ROTATE_S)
        assert len(one.chosen) == MAX_NEIGHBOURS
    assert one.chosen[:STAYING] == before[:STAYING]
    assert not set(one.chosen[STAYING:]) & set(before[STAYING:])


def test_small_swarms_do_not_change_neighbours() -> None:
    candidates = peers(LOCAL, MAX_NEIGHBOURS - 1)
    one = make(candidates)
    for number in range(1, 20):
        one.offer(candidates, number * 2 * ROTATE_S)
    assert set(one.chosen) == {peer for peer, _ in candidates}


def test_those_left_alone_are_bounded() -> None:
    one = make([])
    for peer, _ in peers(LOCAL, MAX_LEFT_ALONE + 1):
        one.lost(peer, 0.0)
    one.offer(peers(LOCAL, MAX_NEIGHBOURS), 1.0)
    assert one.chosen == (PeerId("local-0"),)  # it was forgotten
