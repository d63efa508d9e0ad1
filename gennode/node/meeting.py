"""How a node finds others: by addresses that it is given, old acquaintances, and the DHT."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence

from gennode.errors import NetworkError
from gennode.mesh.directory.netgroup import LOCAL, net_group
from gennode.mesh.transport import Transport
from gennode.node.peers import SAVE_INTERVAL_S, PeerBook
from gennode.wire.ids import ModelId, PeerId

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
RENDEZVOUS_INTERVAL_S = 15.0
PROVIDERS_WANTED = 16
MAX_KNOWN = 256  # the DHT forgets the dead only slowly

Where = tuple[PeerId, tuple[str, ...]]


def rendezvous_key(model: ModelId) -> bytes:
    """The DHT key under which a model's workers can be found (32 bytes)."""
    return hashlib.sha256(b"gennode/model/" + model.encode()).digest()


class Meeting:
    """The peers that a node has found by itself, before any directory told it of them."""

    def __init__(
        self,
        transport: Transport,
        book: PeerBook,
        learn: Callable[[PeerId, tuple[str, ...]], None],
    ) -> None:
        """`learn` is told where each can be dialled."""
        self.known: dict[PeerId, str] = {}
        """Each with its net group, oldest first."""
        self._transport = transport
        self._book = book
        self._learn = learn

    async def bootstrap(self, addresses: Sequence[str]) -> None:
        """Connect to the first peers, or without any to those that we knew in earlier runs.

        NetworkError if there are addresses and none of them answers.
        """
        if not addresses:
            for peer, known in (await self._book.call_old_friends(self._transport)).items():
                self._meet(peer, known)
        failures: list[NetworkError] = []
        for address in addresses:
            try:
                peer = await self._transport.connect(address, timeout_s=CONNECT_TIMEOUT_S)
            except NetworkError as error:
                failures.append(error)
                continue
            self._meet(peer, (address,))
            self._book.met(peer, (address,))
        if failures and not self.known:
            raise failures[0]
        for failure in failures:
            log.warning("bootstrap: %s", failure)

    def _meet(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        self._learn(peer, addresses)
        self.known[peer] = net_group(addresses)

    async def rendezvous(self, model: ModelId, *, provide: bool) -> None:
        """Meet peers of the same model through the DHT. A hint only: what it can't do, the
        directory's exchange with the bootstrap peers does."""
        key = rendezvous_key(model)
        try:
            if provide:
                await self._transport.provide(key)
            found = await self._transport.find_providers(
                key, limit=PROVIDERS_WANTED, timeout_s=CONNECT_TIMEOUT_S
            )
        except NetworkError as error:
            log.info("rendezvous: %s", error)
            return
        for peer in found:
            if peer != self._transport.peer:
                self.known.setdefault(peer, LOCAL)
        while len(self.known) > MAX_KNOWN:
            del self.known[next(iter(self.known))]

    async def keep_rendezvous(self, model: ModelId) -> None:
        """Offer a model in the DHT, and look who else does, for as long as this runs."""
        while True:
            await self.rendezvous(model, provide=True)
            await asyncio.sleep(RENDEZVOUS_INTERVAL_S)

    async def keep_book(self, good: Callable[[], Iterable[Where]]) -> None:
        """Save the neighbours that answer, and try a stranger, for as long as this runs."""
        while True:
            await asyncio.sleep(SAVE_INTERVAL_S)
            await self._book.feel(self._transport)
            self._book.save(good())
