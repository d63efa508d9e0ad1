"""Stores for frames: what was put aside comes back as it was, or not at all."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gennode.errors import ResourceError
from gennode.node.hops.spill import DiskStore, FrameStore, MemoryStore, Ticket


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskStore]:
    """A store of 1,000 bytes."""
    with closing(DiskStore(tmp_path, limit_bytes=1000, least_free_bytes=0)) as store:
        yield store


def _put(store: FrameStore, payload: bytes) -> Ticket:
    ticket = store.put(payload)
    assert ticket is not None
    return ticket


@pytest.mark.parametrize("kind", [MemoryStore, DiskStore])
def test_both_stores_give_back_what_they_took_up_to_their_limit(
    kind: type, disk: DiskStore
) -> None:
    store = MemoryStore(1000) if kind is MemoryStore else disk
    first, second = _put(store, b"a" * 600), _put(store, b"b" * 400)
    assert store.put(b"c") is None
    assert store.get(first) == b"a" * 600
    store.drop(first)
    third = _put(store, b"c" * 500)
    assert store.get(second) == b"b" * 400
    assert store.get(third) == b"c" * 500


def test_without_a_limit_given_the_twin_has_no_room() -> None:
    assert MemoryStore().put(b"x") is None


def test_the_twin_fails_when_it_is_told_to() -> None:
    store = MemoryStore(1000)
    ticket = _put(store, b"x")
    store.refuses = store.loses = True
    assert store.put(b"y") is None
    with pytest.raises(ResourceError):
        store.get(ticket)


def test_the_file_has_no_name_and_is_ours_alone(disk: DiskStore, tmp_path: Path) -> None:
    _put(disk, b"secret")
    assert list(tmp_path.iterdir()) == []
    assert stat.S_IMODE(os.fstat(disk._descriptor()).st_mode) == 0o600


def test_a_flipped_bit_is_noticed(disk: DiskStore, caplog: pytest.LogCaptureFixture) -> None:
    ticket = _put(disk, bytes(100))
    os.pwrite(disk._descriptor(), b"\1", 50)
    for _ in range(3):
        with pytest.raises(ResourceError, match="has changed"):
            disk.get(ticket)
    assert [record.message.split()[0] for record in caplog.records] == ["spill_failed"]


def test_a_file_that_was_cut_short_is_noticed(disk: DiskStore) -> None:
    ticket = _put(disk, bytes(100))
    os.ftruncate(disk._descriptor(), 50)
    with pytest.raises(ResourceError):
        disk.get(ticket)


def test_a_disk_that_refuses_is_logged_once_and_has_no_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = DiskStore(tmp_path / "gone")
    with caplog.at_level(logging.WARNING):
        assert [store.put(b"x"), store.put(b"y")] == [None, None]
    assert len(caplog.records) == 1
    assert store.size_bytes == 0


def test_a_write_that_fails_leaves_no_hole(disk: DiskStore) -> None:
    first = _put(disk, b"first")
    writable = disk._file
    with open(os.devnull, "rb", buffering=0) as unwritable:
        disk._file = unwritable
        assert disk.put(b"second") is None
    disk._file = writable
    assert disk.size_bytes == len(b"first")
    assert disk.get(first) == b"first"


def test_the_disk_keeps_free_space_for_others(tmp_path: Path) -> None:
    assert DiskStore(tmp_path, least_free_bytes=1 << 60).put(b"x") is None


def test_the_file_shrinks_when_its_end_is_free(disk: DiskStore) -> None:
    first, second, third = (_put(disk, bytes(size)) for size in (10, 20, 30))
    disk.drop(second)
    assert disk.size_bytes == 60
    assert _put(disk, bytes(15)).offset == 10  # in the hole
    disk.drop(third)
    assert disk.size_bytes == 25
    disk.drop(first)
    assert (disk.size_bytes, os.fstat(disk._descriptor()).st_size) == (25, 25)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 120), st.integers(0, 9)), max_size=60))
def test_payloads_never_overlap_and_no_space_is_lost(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, int]]
) -> None:
    """Each move puts a payload of that size aside, or drops one if there is no room."""
    folder = tmp_path_factory.getbasetemp()
    store = DiskStore(folder, limit_bytes=1000, least_free_bytes=0)
    held: list[tuple[Ticket, bytes]] = []
    for number, (size, place) in enumerate(moves):
        payload = bytes([number]) * size
        ticket = store.put(payload)
        if ticket is not None:
            held.append((ticket, payload))
        elif held:
            store.drop(held.pop(place % len(held))[0])
        assert all(store.get(one) == expected for one, expected in held)
        holes = sum(size for _, size in store._holes)
        assert sum(one.size_bytes for one, _ in held) + holes == store.size_bytes <= 1000
    for one, _ in held:
        store.drop(one)
    assert (store.size_bytes, store._holes) == (0, [])
    store.close()
