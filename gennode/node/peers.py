"""The peer store of a node that runs: kept in a file, and used to find the swarm again."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from gennode.errors import NetworkError, ResourceError
from gennode.mesh.directory.peerstore import SECRET_BYTES, Known, PeerStore, Snapshot
from gennode.mesh.transport import Transport
from gennode.node.state import replace_file
from gennode.wire.announcement import Announcement
from gennode.wire.ids import PeerId

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 4 * 1024 * 1024  # 1,540 peers with four addresses of 256 characters each
SAVE_INTERVAL_S = 60.0
CALLED_AT_ONCE = 16  # after a restart: as many as a node has neighbours
CALL_TIMEOUT_S = 5.0


class PeerBook:
    """A store with its file. Without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._rng = random.SystemRandom()
        self.store = _load(path) if path else PeerStore(os.urandom(SECRET_BYTES))

    def hear(self, seen: Announcement, teller: str) -> None:
        """An announcement told us of a peer."""
        self.store.heard(seen.peer, seen.addresses, teller, time.time())

    def met(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """A peer answered us at one of these addresses."""
        self.store.answered(peer, addresses, time.time())

    async def call_old_friends(self, transport: Transport) -> dict[PeerId, tuple[str, ...]]:
        """Dial the anchors and some others that we knew; where those are that answered."""
        known = {one.peer: one for one in self.store.anchors}
        for one in self.store.picks(CALLED_AT_ONCE, self._rng):
            if len(known) < CALLED_AT_ONCE:
                known.setdefault(one.peer, one)
        known.pop(transport.peer, None)
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(self._call(transport, one)) for one in known.values()]
        pairs = zip(known.values(), calls, strict=True)
        return {one.peer: one.addresses for one, call in pairs if call.result()}

    async def feel(self, transport: Transport) -> None:
        """Try one peer that we only heard of: so the store comes to know who is real."""
        one = self.store.feeler(self._rng)
        if one is not None and one.peer != transport.peer:
            await self._call(transport, one)

    async def _call(self, transport: Transport, one: Known) -> bool:
        for address in one.addresses:
            try:
                peer = await transport.connect(address, timeout_s=CALL_TIMEOUT_S)
            except NetworkError as error:
                log.info("peer store: %s", error)
                continue
            if peer == one.peer:
                self.met(peer, one.addresses)
                return True
        self.store.failed(one.peer)
        return False

    def save(self, neighbours: Iterable[tuple[PeerId, tuple[str, ...]]]) -> None:
        """Note the neighbours that answer, longest kept first, and write the file anew.

        A disk that is full costs the file, not the node: it is logged.
        """
        good = []
        for peer, addresses in neighbours:
            self.met(peer, addresses)
            good.append(peer)
        self.store.anchor(good)
        if self._path is None or not len(self.store) or not self._path.parent.is_dir():
            return  # an owner without a folder leaves none behind
        try:
            replace_file(self._path, msgspec.msgpack.encode(self.store.snapshot()))
        except (OSError, ResourceError) as error:
            log.warning("peer_store_not_saved path=%s why=%s", self._path, error)


def _load(path: Path) -> PeerStore:
    """The store of a file; an empty one, with a warning, if the file is damaged."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
        return PeerStore.restored(msgspec.msgpack.decode(data, type=Snapshot))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, msgspec.DecodeError, RecursionError) as error:
        log.warning("peer_store_damaged path=%s why=%s; starting with an empty one", path, error)
    return PeerStore(os.urandom(SECRET_BYTES))
