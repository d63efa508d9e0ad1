"""A whole network in one process: the transport of tests, simulations and demos."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gennode.errors import LocalError, NetworkError, UsageError
from gennode.mesh.transport import StreamHandler
from gennode.wire.frames import Buffer
from gennode.wire.ids import PeerId

_PREFIX = "/memory/p2p/"
_CIRCUIT = "/memory/p2p-circuit/p2p/"


class MemoryNetwork:
    """Peers that can reach each other. `delay_s`: how long bytes travel."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self._peers: dict[PeerId, MemoryTransport] = {}
        self._providers: dict[bytes, dict[PeerId, None]] = {}
        self._relayed: set[frozenset[PeerId]] = set()

    def relay(self, one: PeerId, other: PeerId, *, relayed: bool = True) -> None:
        """Let new streams between two peers go through a relay from now on, or no longer."""
        (self._relayed.add if relayed else self._relayed.discard)(frozenset((one, other)))

    def is_relayed(self, one: PeerId, other: PeerId) -> bool:
        """Whether new streams between two peers go through a relay."""
        return frozenset((one, other)) in self._relayed

    def join(self, peer: PeerId) -> MemoryTransport:
        """A new peer's transport."""
        if peer in self._peers:
            raise LocalError(f"{peer} is on this network already")
        self._peers[peer] = transport = MemoryTransport(self, peer)
        return transport

    def crash(self, peer: PeerId) -> None:
        """Take a peer away without a word to it: the others see its streams close."""
        transport = self._peers.pop(peer, None)
        if transport is not None:
            transport.drop("the peer is gone")
        for providers in self._providers.values():
            providers.pop(peer, None)

    def reset_streams(self, peer: PeerId, other: PeerId) -> None:
        """Break every stream between two peers; what is on its way is lost."""
        for stream in list(self.find(peer).streams):
            if stream.peer == other:
                stream.abort()

    def find(self, peer: PeerId) -> MemoryTransport:
        """A live peer's transport; NetworkError if there is none."""
        transport = self._peers.get(peer)
        if transport is None:
            raise NetworkError(f"{peer} is not on this network", hint="start that peer first")
        return transport

    def peers(self) -> tuple[PeerId, ...]:
        """Everybody on this network."""
        return tuple(self._peers)

    def providers(self, key: bytes) -> dict[PeerId, None]:
        """Who provides `key`, in order of arrival; changes to it are kept."""
        return self._providers.setdefault(key, {})


class MemoryStream:
    """One end of a stream; `other` is the far end."""

    def __init__(
        self, owner: MemoryTransport, peer: PeerId, delay_s: float, *, relayed: bool
    ) -> None:
        self._owner = owner
        self._peer = peer
        self._remote = f"{_CIRCUIT if relayed else _PREFIX}{peer}"
        self._delay_s = delay_s
        self._loop = asyncio.get_running_loop()
        self._on_data: Callable[[bytes], None] | None = None
        self._on_close: Callable[[str], None] | None = None
        self._waiting: list[bytes] = []  # arrived before `start`, or while paused
        self._ended: str | None = None  # why no more will arrive
        self._paused = False
        self._open = True
        self.other: MemoryStream | None = None
        owner.streams[self] = None

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def remote(self) -> str:
        return self._remote

    def start(self, on_data: Callable[[bytes], None], on_close: Callable[[str], None]) -> None:
        self._on_data, self._on_close = on_data, on_close
        self._loop.call_soon(self._flush)

    def write(self, *parts: Buffer) -> None:
        if self._open and self.other is not None:
            self._later(self.other.arrive, b"".join(parts))

    def unsent_bytes(self) -> int:
        return 0 if self.other is None else sum(map(len, self.other._waiting))

    def pause(self, paused: bool) -> None:
        self._paused = paused
        if not paused:
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        self._end("the stream was closed")

    def abort(self) -> None:
        self._waiting.clear()
        self._end("the stream was reset")
        if self.other is not None:
            self.other._waiting.clear()
            self.other._open = False  # what is on its way finds no one

    def arrive(self, data: bytes) -> None:
        """Take bytes from the far end."""
        if self._open:
            self._waiting.append(data)
            self._flush()

    def _later(self, call: Callable[..., None], *args: object) -> None:
        if self._delay_s:
            self._loop.call_later(self._delay_s, call, *args)
        else:
            self._loop.call_soon(call, *args)

    def _flush(self) -> None:
        while self._waiting and self._on_data is not None and not self._paused:
            self._on_data(self._waiting.pop(0))
        on_close = self._on_close
        if self._ended is not None and on_close is not None and not self._waiting:
            self._on_data = self._on_close = None
            on_close(self._ended)

    def _end(self, reason: str) -> None:
        if not self._open:
            return
        self._loop.call_soon(self.ended, reason)
        self._open = False
        if self.other is not None:
            self._later(self.other.ended, reason)

    def ended(self, reason: str) -> None:
        """Take the end from the far end, or from ourselves."""
        self._open = False
        self._owner.streams.pop(self, None)
        self._ended = self._ended or reason
        self._flush()


class MemoryTransport:
    """Implements `gennode.mesh.transport.Transport` over a MemoryNetwork."""

    def __init__(self, network: MemoryNetwork, peer: PeerId) -> None:
        self._network = network
        self._peer = peer
        self._handlers: dict[str, StreamHandler] = {}
        self.streams: dict[MemoryStream, None] = {}

    @property
    def peer(self) -> PeerId:
        return self._peer

    def addresses(self) -> tuple[str, ...]:
        return (_PREFIX + self._peer,)

    async def connect(self, *addresses: str, timeout_s: float) -> PeerId:
        peers = {PeerId(address.removeprefix(_PREFIX)) for address in addresses}
        if len(peers) != 1 or not all(address.startswith(_PREFIX) for address in addresses):
            hint = f"addresses here look like {_PREFIX}<peer id>"
            raise UsageError(f"{addresses} are not addresses of one peer here", hint=hint)
        peer = peers.pop()
        self._reach(peer)
        return peer

    async def direct_peers(self) -> frozenset[PeerId]:
        self._network.find(self._peer)
        return frozenset(
            peer
            for peer in self._network.peers()
            if peer != self._peer and not self._network.is_relayed(self._peer, peer)
        )

    async def open(self, peer: PeerId, protocol: str, *, timeout_s: float) -> MemoryStream:
        there = self._reach(peer)
        handler = there._handlers.get(protocol)
        if handler is None:
            raise NetworkError(f"{peer} does not speak {protocol}", hint="is it up to date?")
        delay_s, relayed = self._network.delay_s, self._network.is_relayed(self._peer, peer)
        near = MemoryStream(self, peer, delay_s, relayed=relayed)
        far = MemoryStream(there, self._peer, delay_s, relayed=relayed)
        near.other, far.other = far, near
        handler(far)
        return near

    def _reach(self, peer: PeerId) -> MemoryTransport:
        self._network.find(self._peer)  # whoever crashed or closed reaches nobody
        return self._network.find(peer)

    async def accept(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    async def provide(self, key: bytes) -> None:
        self._network.find(self._peer)
        self._network.providers(key)[self._peer] = None

    async def find_providers(self, key: bytes, *, limit: int, timeout_s: float) -> list[PeerId]:
        return list(self._network.providers(key))[:limit]

    def drop(self, reason: str) -> None:
        """End every stream at once."""
        for stream in list(self.streams):
            stream.abort()

    async def close(self) -> None:
        self._network.crash(self._peer)
