"""The peer store on disk: it survives, damage included, and leads back into the swarm."""

from __future__ import annotations

import asyncio
import logging
import stat
from pathlib import Path

import pytest

from gennode.mesh.memory import MemoryNetwork
from gennode.node import peers as limits
from gennode.node.live import LiveNode
from gennode.node.peers import PeerBook
from gennode.wire.signing import Key
from tests.node.toys import THIRDS, WAIT_S, staged, toy_worker


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "peers"


def key(number: int) -> Key:
    return Key(bytes([number]) * 32)


def filled(path: Path) -> PeerBook:
    book = PeerBook(path)
    book.save([(key(number).peer, (f"/memory/p2p/{key(number).peer}",)) for number in (1, 2, 3)])
    return book


def test_a_saved_store_comes_back_and_only_its_user_can_read_it(path: Path) -> None:
    book = filled(path)
    assert len(book.store.anchors) == 3
    assert PeerBook(path).store.snapshot() == book.store.snapshot()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", [b"", b"\xc1", b"\x84" * 1000, b"\x91" * 100_000, None])
def test_a_damaged_file_is_an_empty_store_and_a_warning(
    damage: bytes | None, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(path)
    data = path.read_bytes()
    path.write_bytes(data[:-5] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        book = PeerBook(path)
    assert len(book.store) == 0
    assert "peer_store_damaged" in caplog.text
    filled(path)
    assert len(PeerBook(path).store) == 3


def test_a_file_that_is_too_large_is_not_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    filled(path)
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 10)
    with caplog.at_level(logging.WARNING):
        assert len(PeerBook(path).store) == 0
    assert "more than 10 bytes" in caplog.text


def test_a_disk_that_refuses_costs_the_file_alone(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()
    with caplog.at_level(logging.WARNING):
        filled(path)
    assert "peer_store_not_saved" in caplog.text


def test_without_a_folder_nothing_is_left_behind(tmp_path: Path) -> None:
    filled(tmp_path / "no folder" / "peers")
    assert list(tmp_path.iterdir()) == []


async def test_who_answers_is_tried_and_who_does_not_has_failed(path: Path) -> None:
    network = MemoryNetwork()
    for number in (1, 2):
        network.join(key(number).peer)
    filled(path)
    book = PeerBook(path)
    found = await book.call_old_friends(network.join(key(9).peer))
    assert set(found) == {key(1).peer, key(2).peer}
    failed = {one.peer: one.failures for one in book.store.snapshot().tried}
    assert failed == {key(1).peer: 0, key(2).peer: 0, key(3).peer: 1}


async def test_a_stranger_that_answers_is_not_new_any_more(path: Path) -> None:
    network = MemoryNetwork()
    network.join(key(1).peer)
    book = PeerBook(path)
    book.store.heard(key(1).peer, [f"/memory/p2p/{key(1).peer}"], "", 1e9)
    await book.feel(network.join(key(9).peer))
    assert [one.peer for one in book.store.snapshot().tried] == [key(1).peer]
    await book.feel(network.find(key(9).peer))


async def test_a_node_finds_the_swarm_again_when_all_that_it_was_given_are_gone(
    path: Path,
) -> None:
    async with staged([toy_worker(span) for span in THIRDS]) as cast:
        transport = cast.network.join(key(99).peer)
        async with LiveNode(transport, key(99), book=PeerBook(path)) as node:
            await node.bootstrap(cast.owner.transport.addresses())
            await _sees(node, 3)
        await transport.close()
        assert path.exists()
        cast.network.crash(cast.owner.machine.peer)
        cast.crash(0)
        transport = cast.network.join(key(98).peer)
        async with LiveNode(transport, key(98), book=PeerBook(path)) as node:
            await node.bootstrap(())
            assert not node.is_alone
            await _sees(node, 2)
        await transport.close()


async def _sees(node: LiveNode, workers: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while len(node.live()) < workers or not node.machine.good_neighbours:
            node._directory_changed.clear()
            await node._directory_changed.wait()
