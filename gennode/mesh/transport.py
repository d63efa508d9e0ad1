"""The seam between gennode and any network: streams to authenticated peers, and rendezvous."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gennode.wire.frames import Buffer
from gennode.wire.ids import PeerId


class Stream(Protocol):
    """An ordered, encrypted byte stream to one peer whose identity the transport has checked.

    Bytes arrive by callback, straight from the event loop: nothing is awaited per token.
    """

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""

    @property
    def remote(self) -> str:
        """The multiaddress that the connection comes from or leads to; a relay's has
        `/p2p-circuit` in it."""

    def start(self, on_data: Callable[[bytes], None], on_close: Callable[[str], None]) -> None:
        """Begin delivery. `on_close` is called once, with the reason, after the last data."""

    def write(self, *parts: Buffer) -> None:
        """Queue bytes, without waiting; what was queued on a closed stream is lost."""

    def unsent_bytes(self) -> int:
        """Bytes queued here that the operating system has not taken yet."""

    def pause(self, paused: bool) -> None:
        """Stop or resume reading, so that the sender feels that we are full."""

    def close(self) -> None:
        """Send what is queued, then close both directions. Idempotent."""

    def abort(self) -> None:
        """Close at once. Idempotent."""


StreamHandler = Callable[[Stream], None]
"""Called in the event loop for each inbound stream; must call `start` before it returns."""


class Transport(Protocol):
    """One peer's way to others. All methods belong to one asyncio event loop."""

    @property
    def peer(self) -> PeerId:
        """Our own id."""

    def addresses(self) -> tuple[str, ...]:
        """Multiaddresses that others can dial, each ending in `/p2p/<our id>`."""

    async def connect(self, *addresses: str, timeout_s: float) -> PeerId:
        """Dial one peer at any of its multiaddresses, which all end in `/p2p/<its id>`.

        NetworkError if it answers at none of them, UsageError if they name no peer or several.
        """

    async def direct_peers(self) -> frozenset[PeerId]:
        """Peers that we have a connection to that no relay carries."""

    async def open(self, peer: PeerId, protocol: str, *, timeout_s: float) -> Stream:
        """A new stream to a peer; NetworkError if it can't be reached or refuses."""

    async def accept(self, protocol: str, handler: StreamHandler) -> None:
        """Hand every inbound stream of `protocol` to `handler`."""

    async def provide(self, key: bytes) -> None:
        """Announce in the DHT that we serve `key` (a 32-byte SHA-256)."""

    async def find_providers(self, key: bytes, *, limit: int, timeout_s: float) -> list[PeerId]:
        """Peers that claim to serve `key`: a hint, never proof. Empty if none is known."""

    async def close(self) -> None:
        """End all streams and give back every resource. Idempotent."""
