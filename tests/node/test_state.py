"""The state folder: one node at a time, a key that stays, a card while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gennode.errors import ResourceError, UsageError
from gennode.node.state import NodeCard, StateFolder
from gennode.wire.ids import ModelId


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    made = StateFolder(tmp_path / "state")
    made.prepare()
    return made


def test_one_node_at_a_time_holds_it(folder: StateFolder) -> None:
    assert not folder.is_running()
    with folder.locked():
        assert folder.is_running()
        with pytest.raises(UsageError, match="another node"), StateFolder(folder.path).locked():
            pass
    assert not folder.is_running()


def test_the_key_stays_and_is_its_users_alone(folder: StateFolder) -> None:
    assert folder.known_key() is None
    key = folder.key()
    assert folder.key().peer == key.peer
    known = folder.known_key()
    assert known is not None
    assert known.peer == key.peer
    assert (folder.path / "node.key").stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_the_card_is_there_while_the_node_runs(folder: StateFolder) -> None:
    card = NodeCard(folder.key().peer, 1, ("/ip4/127.0.0.1/tcp/1",), "control", ModelId("0" * 64))
    with folder.locked():
        assert folder.card() is None
        folder.publish(card)
        assert folder.card() == card
        (folder.path / "node.json").write_bytes(b"{")
        assert folder.card() is None
    assert not (folder.path / "node.json").exists()


def test_the_card_of_a_node_that_was_killed_is_not_its_successors(folder: StateFolder) -> None:
    card = NodeCard(folder.key().peer, 1, ("/ip4/127.0.0.1/tcp/1",), "control", ModelId("0" * 64))
    folder.publish(card)
    with folder.locked():
        assert folder.card() is None


def test_only_the_disks_own_faults_are_laid_to_it(folder: StateFolder) -> None:
    with pytest.raises(ConnectionError), folder.locked():
        raise ConnectionResetError("a peer went away")
    with pytest.raises(ResourceError, match="can't use") as caught:
        StateFolder(Path("/proc/gennode")).prepare()
    assert "--state" in caught.value.hint
