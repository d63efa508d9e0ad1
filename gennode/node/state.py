"""The state folder: a node's key, its lock, and the card by which others on the machine find it."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

import msgspec
import platformdirs

from gennode.errors import LocalError, ResourceError, UsageError
from gennode.wire.ids import ModelId, PeerId
from gennode.wire.signing import SEED_BYTES, Key

_KEY, _LOCK, _CARD, _PEERS = "node.key", "node.lock", "node.json", "peers"
_SESSIONS = "sessions"
LOCK_TRIES, LOCK_PAUSE_S = 10, 0.03
_MAX_CARD_BYTES = 64 * 1024
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600


def hash_cache() -> Path:
    """Where the hashes of model files are remembered, for all nodes of this user."""
    return platformdirs.user_cache_path("gennode") / "hashes"


class NodeCard(msgspec.Struct, frozen=True):
    """What a running node leaves in its state folder for other programs of its user."""

    peer: PeerId
    pid: int
    addresses: tuple[str, ...]
    control: str
    """Path of the unix socket that answers with the node's status."""
    model: ModelId


class StateFolder:
    """One node's folder on disk; at most one node runs from it at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """Make the folder, for its user alone; ResourceError if the disk refuses."""
        with using_disk(self.path):
            self.path.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)

    @property
    def peers(self) -> Path:
        """Where the peers that the node met are kept."""
        return self.path / _PEERS

    @property
    def sessions(self) -> Path:
        """Where journals of answers are kept."""
        return self.path / _SESSIONS

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder as the one node that runs from it; UsageError if another does."""
        with ExitStack() as stack:
            with using_disk(self.path):
                lock = stack.enter_context(open(self.path / _LOCK, "w"))
            try:
                _take(lock)
            except BlockingIOError as error:
                raise UsageError(
                    f"another node runs from {self.path}",
                    hint="stop it, or give this one a folder of its own with --state",
                ) from error
            with using_disk(self.path):  # a node that was killed left its card: it tells of nobody
                (self.path / _CARD).unlink(missing_ok=True)
            try:
                yield
            finally:
                (self.path / _CARD).unlink(missing_ok=True)

    def is_running(self) -> bool:
        """Whether a live process holds the folder; ResourceError if it may not be read."""
        with using_disk(self.path):
            try:
                with open(self.path / _LOCK) as lock:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except FileNotFoundError:
                return False
            except BlockingIOError:
                return True
        return False

    def key(self) -> Key:
        """The node's key, made on first use; only its user can read the file."""
        known = self.known_key()
        if known is not None:
            return known
        path = self.path / _KEY
        with using_disk(path):
            key = Key(os.urandom(SEED_BYTES))
            replace_file(path, key.to_libp2p())
            return key

    def known_key(self) -> Key | None:
        """The key if there is one; UsageError if others can read it, or it is damaged."""
        path = self.path / _KEY
        with using_disk(path):
            if not path.exists():
                return None
            if not path.is_file():  # to read a pipe would wait for ever
                raise UsageError(f"{path} is no plain file", hint="move it away")
            if path.stat().st_mode & 0o077:
                raise UsageError(f"{path} can be read by others", hint=f"chmod 600 {path}")
            try:
                return Key.from_libp2p(path.read_bytes()[:256])
            except LocalError as error:
                hint = "restore it from a backup, or move it away to begin with a new identity"
                raise UsageError(f"{path} is damaged: {error}", hint=hint) from error

    def publish(self, card: NodeCard) -> None:
        """Leave the card, once the node is ready."""
        with using_disk(self.path):
            replace_file(self.path / _CARD, msgspec.json.encode(card))

    def card(self) -> NodeCard | None:
        """The running node's card; None if none runs or it is not ready yet."""
        if not self.is_running():
            return None
        try:
            with open(self.path / _CARD, "rb") as file:
                return msgspec.json.decode(file.read(_MAX_CARD_BYTES), type=NodeCard)
        except (FileNotFoundError, msgspec.DecodeError):
            return None


def _take(lock: TextIO) -> None:
    """Lock a file; a moment's patience, for `is_running` holds it while it looks."""
    for tries_left in reversed(range(LOCK_TRIES)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not tries_left:
                raise
            time.sleep(LOCK_PAUSE_S)
        else:
            return


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file in one go, so that nobody ever reads half of it."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_FILE)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)


@contextmanager
def using_disk(path: Path) -> Iterator[None]:
    """What the disk refuses is a ResourceError with the next step."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ResourceError(
            f"can't use {path}: {error.strerror}",
            hint="free some disk space" if full else "choose another folder with --state",
        ) from error
