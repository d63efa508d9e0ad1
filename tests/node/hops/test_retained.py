"""Retained frames: which there are, which can be replayed, what they take of memory."""

from __future__ import annotations

import pytest

from gennode.errors import LocalError, ResourceError
from gennode.node.hops.retained import Kept, Retained
from gennode.node.hops.spill import MemoryStore


def _frame(number: int, position: int, rows: int = 1) -> Kept:
    return Kept(
        number, position, rows, 1, rebuild=False, size_bytes=10, payload=bytes([number]) * 10
    )


def _filled(count: int, store: MemoryStore | None = None) -> Retained:
    retained = Retained(store or MemoryStore(1000))
    for number in range(count):
        retained.add(_frame(number, number))
    return retained


def _numbers(frames: list[Kept]) -> list[int]:
    return [frame.number for frame in frames]


def test_frames_from_a_position_on_are_cut_the_last_first() -> None:
    retained = _filled(5)
    assert _numbers(retained.cut(3)) == [4, 3]
    assert (retained.end, retained.memory_bytes) == (3, 30)


def test_a_frame_that_begins_before_stays_whole() -> None:
    # Three of four drafted tokens were wrong: the next step begins inside of their frame.
    retained = _filled(2)
    retained.add(_frame(2, 2, rows=4))
    assert retained.cut(3) == []
    retained.add(_frame(3, 3))
    assert retained.end == 4
    assert _numbers(retained.between(0, 3)) == [0, 1, 2]
    assert _numbers(retained.between(3, 4)) == [2, 3]
    assert _numbers(retained.between(4, 6)) == [2, 3]  # never without its correction
    assert retained.covers(0, 6)


def test_only_what_is_there_without_a_gap_can_be_replayed() -> None:
    retained = Retained(MemoryStore())
    assert retained.covers(0, 0)
    assert not retained.covers(0, 1)
    retained.add(_frame(0, 8))  # the cache up to here was restored
    assert not retained.covers(0, 9)
    assert retained.covers(8, 9)
    assert not retained.covers(8, 10)
    assert retained.covers(10, 10)


def test_the_oldest_frames_are_put_aside_and_come_back() -> None:
    store = MemoryStore(1000)
    retained = _filled(4, store)
    assert retained.spill_oldest()
    assert retained.spill_oldest()
    assert (retained.memory_bytes, store.held_bytes) == (20, 20)
    assert [retained.payload(frame)[0] for frame in retained.frames] == [0, 1, 2, 3]
    assert retained.covers(0, 4)
    store.loses = True
    with pytest.raises(ResourceError):
        retained.payload(retained.frames[0])


def test_what_is_cut_or_given_up_leaves_the_store_too() -> None:
    store = MemoryStore(1000)
    retained = _filled(4, store)
    for _ in range(3):
        retained.spill_oldest()
    retained.cut(2)
    assert (retained.memory_bytes, store.held_bytes) == (0, 20)
    retained.add(_frame(9, 2))
    assert retained.spill_oldest()
    assert store.held_bytes == 30
    retained.give_up()
    assert (retained.memory_bytes, store.held_bytes, retained.frames) == (0, 0, [])


def test_without_room_nothing_is_put_aside() -> None:
    retained = _filled(2, MemoryStore(5))
    assert not retained.spill_oldest()
    assert retained.memory_bytes == 20


def test_a_frame_that_was_given_up_is_not_sent() -> None:
    store = MemoryStore(1000)
    retained = _filled(1, store)
    [frame] = retained.frames
    retained.spill_oldest()
    retained.give_up()
    with pytest.raises(LocalError):
        retained.payload(frame)
