"""Who is asked for what: fast sources get more, slow ones lose what they sit on, all arrives."""

from __future__ import annotations

import random

import pytest

from gennode.mesh.blobs.fetching import BUSY_PAUSE_S, CHUNK_TIMEOUT_S, MAX_COPIES, WINDOW, Fetching
from gennode.wire.ids import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def fetching(count: int, *peers: PeerId) -> Fetching:
    machine = Fetching(f"{number:03}" for number in range(count))
    for peer in peers:
        machine.add(peer)
    return machine


def test_a_source_is_asked_for_a_window_and_then_for_one_more_each() -> None:
    machine = fetching(10, A)
    first = machine.ask(A, 0.0)
    assert first == ["000", "001", "002"][:WINDOW]
    assert machine.ask(A, 0.0) == []
    machine.kept(A, first[0], 1.0)
    assert machine.ask(A, 1.0) == ["003"]


def test_fast_sources_get_more() -> None:
    machine = fetching(40, A, B)
    got = {A: 0, B: 0}
    now_s = 0.0
    owed: dict[PeerId, list[str]] = {A: [], B: []}
    while not machine.is_done:
        now_s += 1.0
        for peer, pace in ((A, 1), (B, 4)):
            owed[peer] += machine.ask(peer, now_s)
            if now_s % pace == 0 and owed[peer]:
                machine.kept(peer, owed[peer].pop(0), now_s)
                got[peer] += 1
    assert got[A] > 3 * got[B]


def test_an_idle_fast_source_takes_over_what_a_slow_one_owes() -> None:
    machine = fetching(4, A, B)
    slow = machine.ask(A, 0.0)
    [own] = machine.ask(B, 0.0)
    assert machine.ask(B, 0.0) == []  # nothing is known of either: no stealing
    machine.kept(B, own, 1.0)
    assert machine.ask(B, 1.0 - 0.4) == []  # it is not late yet, as far as B can tell
    stolen = machine.ask(B, 30.0)
    assert stolen[0] == slow[-1]  # the one that would take longest
    machine.kept(B, stolen[0], 31.0)
    assert not machine.owes(A, stolen[0])
    machine.kept(A, stolen[0], 32.0)  # comes too late, and does no harm
    assert machine.missing == 2


def test_no_more_than_two_owe_the_same_chunk() -> None:
    machine = fetching(3, A, B, C)
    [first, *_] = machine.ask(A, 0.0)
    for peer in (B, C):
        machine._sources[peer].chunk_s = 0.1
    stolen = {peer: machine.ask(peer, 50.0) for peer in (B, C)}
    owing = [peer for peer in (A, B, C) if machine.owes(peer, first)]
    assert len(owing) <= MAX_COPIES
    assert all(stolen.values())


def test_what_a_source_lacks_is_asked_of_others_and_not_of_it_again() -> None:
    machine = fetching(1, A, B)
    [chunk] = machine.ask(A, 0.0)
    machine.absent(A, chunk)
    assert machine.ask(A, 0.0) == []
    assert not machine.is_stuck
    assert machine.ask(B, 0.0) == [chunk]
    machine.absent(B, chunk)
    assert machine.is_stuck


def test_a_lost_source_owes_nothing() -> None:
    machine = fetching(3, A, B)
    asked = machine.ask(A, 0.0)
    machine.drop(A)
    machine.drop(A)
    assert machine.ask(A, 0.0) == []
    assert machine.ask(B, 0.0) == asked
    machine.drop(B)
    assert machine.is_stuck
    assert machine.missing == 3


def test_a_busy_source_is_left_alone_for_a_while() -> None:
    machine = fetching(2, A)
    asked = machine.ask(A, 0.0)
    machine.busy(A, 0.0)
    assert machine.ask(A, BUSY_PAUSE_S / 2) == []
    assert not machine.is_stuck
    assert machine.ask(A, BUSY_PAUSE_S) == asked


def test_only_a_source_that_owes_can_be_overdue() -> None:
    machine = fetching(2, A, B)
    asked = machine.ask(A, 0.0)
    assert not machine.is_overdue(A, CHUNK_TIMEOUT_S)
    assert machine.is_overdue(A, CHUNK_TIMEOUT_S + 1)
    assert not machine.is_overdue(B, CHUNK_TIMEOUT_S + 1)
    machine.kept(A, asked[0], CHUNK_TIMEOUT_S)
    assert not machine.is_overdue(A, CHUNK_TIMEOUT_S + 1)


@pytest.mark.parametrize("seed", range(40))
def test_everything_arrives_through_losses_gaps_and_pauses(seed: int) -> None:
    chance = random.Random(seed)
    machine = fetching(60, A, B, C)
    held = {A: 0.5, B: 0.5, C: 1.0}  # the share of chunks that each has
    owed: dict[PeerId, list[str]] = {A: [], B: [], C: []}
    now_s, steps = 0.0, 0
    while not machine.is_done:
        now_s, steps = now_s + chance.random(), steps + 1
        assert steps < 2000
        assert not machine.is_stuck
        peer = chance.choice(list(owed))
        owed[peer] += machine.ask(peer, now_s)
        assert len([chunk for chunk in owed[peer] if machine.owes(peer, chunk)]) <= WINDOW
        if not owed[peer]:
            continue
        chunk = owed[peer].pop(0)
        if not machine.owes(peer, chunk):
            continue
        if chance.random() > held[peer]:
            machine.absent(peer, chunk)
        elif chance.random() < 0.05:
            machine.busy(peer, now_s)
            owed[peer].clear()
        elif peer != C and chance.random() < 0.01:
            machine.drop(peer)
            owed[peer].clear()
        else:
            machine.kept(peer, chunk, now_s)
    assert machine.missing == 0
