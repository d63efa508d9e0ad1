"""A py-libp2p host, as the trio thread sees it: noise, yamux and TCP alone, a client of the DHT.

py-libp2p's own `new_host` also accepts `/plaintext`, where anybody may claim any identity, dials
peers that nobody asked for, and refuses for a minute to dial again where a dial failed.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from itertools import chain
from typing import TypeVar

import psutil
import trio
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.peer_routing import PeerRouting
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.routing_table import RoutingTable
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import YamuxStream
from multiaddr import Multiaddr

from gennode.errors import GennodeError, LocalError, NetworkError, RemoteError
from gennode.mesh import multiaddr
from gennode.mesh.pylibp2p.limits import (
    MAX_CONNECTIONS,
    BoundedSwarm,
    BoundedUpgrader,
    BoundedYamux,
    DirectTCP,
)
from gennode.mesh.pylibp2p.stream import Post, Pump, PyLibp2pStream
from gennode.wire.ids import PeerId
from gennode.wire.signing import SEED_BYTES, Key

HANDSHAKE_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 2.0
ADDRESS_LIFE_S = 600  # how long the host remembers where it reached a peer

HOST_ERRORS = (BaseLibp2pError, OSError, ValueError, trio.BrokenResourceError, trio.TooSlowError)
"""What py-libp2p raises where a peer or an address is to blame."""

# Without a handler Python prints its warnings, such as one for each peer that can't be reached.
logging.getLogger("libp2p").addHandler(logging.NullHandler())

T = TypeVar("T")
OnStream = Callable[[str, PyLibp2pStream], None]
"""Called in the event loop with the protocol and the stream."""


def cause_of(error: BaseException) -> str:
    """The first cause's own words: py-libp2p wraps errors in others that say less."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, BaseExceptionGroup):
        return cause_of(error.exceptions[0])
    return str(error) or type(error).__name__


def _multihash(key: bytes) -> bytes:
    return bytes([0x12, len(key)]) + key  # SHA-2-256, as the DHT indexes providers


def each_interface(addresses: Iterable[Multiaddr]) -> list[Multiaddr]:
    """`0.0.0.0` and `::` become the addresses of this machine that they stand for."""
    found = []
    for address in map(str, addresses):
        ip = ipaddress.ip_address(address.split("/")[2])
        ours = [ip.compressed]
        if ip.is_unspecified:
            family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
            entries = chain.from_iterable(psutil.net_if_addrs().values())
            known = [entry.address for entry in entries if entry.family == family]
            ours = [one for one in known if "%" not in one]  # others can't dial a link's scope
        found += [Multiaddr(address.replace(f"/{ip.compressed}/", f"/{one}/", 1)) for one in ours]
    return found


class Host:
    """One host. What does not say otherwise belongs to the trio thread."""

    def __init__(self, key: Key, address: str, announce: tuple[str, ...], tell: Post) -> None:
        """`address`: the multiaddress to listen on; `tell` calls into the event loop."""
        pair = ed25519_key_pair(key.to_libp2p()[-2 * SEED_BYTES : -SEED_BYTES])
        upgrader = BoundedUpgrader(
            {NOISE: Noise(pair, x25519_key_pair().private_key)},
            {TProtocol(YAMUX): BoundedYamux},
            negotiate_timeout=int(HANDSHAKE_TIMEOUT_S),
        )
        peers = PeerStore()
        me = ID.from_pubkey(pair.public_key)
        peers.add_key_pair(me, pair)
        self._tcp = DirectTCP()
        self._swarm = BoundedSwarm(
            me,
            peers,
            upgrader,
            transports=[self._tcp],
            retry_config=RetryConfig(max_retries=0),  # whoever dials decides whether to dial again
            connection_config=ConnectionConfig(
                max_connections=MAX_CONNECTIONS,
                high_watermark=MAX_CONNECTIONS,
                min_connections=0,
                low_watermark=0,
                max_connections_per_peer=1,
                dial_timeout=HANDSHAKE_TIMEOUT_S,
                inbound_upgrade_timeout=HANDSHAKE_TIMEOUT_S,
                outbound_upgrade_timeout=HANDSHAKE_TIMEOUT_S,
            ),
        )
        self._host = BasicHost(
            self._swarm,
            announce_addrs=[Multiaddr(multiaddr.to_bytes(text)) for text in announce] or None,
            addrs_factory=None if announce else each_interface,
            disable_identify_address_discovery=True,
        )
        self._routing = PeerRouting(self._host, RoutingTable(me, self._host))
        self._listen = Multiaddr(multiaddr.to_bytes(address))
        self._tell = tell
        self._stopping = trio.Event()

    async def run(self, on_ready: Callable[[tuple[str, ...]], None]) -> None:
        """Listen until `stop`; `on_ready` gets our addresses, in the event loop."""
        self._token = trio.lowlevel.current_trio_token()
        async with self._host.run([self._listen]), trio.open_nursery() as self._nursery:
            self._tell(on_ready, self._addresses())
            try:
                await self._stopping.wait()
            finally:
                self._stopping.set()
                await self._disconnect()
            self._nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """End `run`. Of any thread, once `on_ready` was called."""
        self._post(self._stopping.set)

    def call(
        self,
        function: Callable[[], Awaitable[T]],
        timeout_s: float,
        settle: Callable[[T | NetworkError], None],
    ) -> Callable[[], None]:
        """Run `function` in the trio thread; returns what cancels it. Of any thread.

        `settle` is called in the event loop, with the result or an error, unless cancelled.
        """
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                try:
                    with trio.fail_after(timeout_s):
                        result = await function()
                except trio.TooSlowError:
                    self._tell(settle, NetworkError(f"no answer in {timeout_s:g} s"))
                except (GennodeError, *HOST_ERRORS) as error:
                    self._tell(settle, NetworkError(cause_of(error)))
                else:
                    self._tell(settle, result)

        def begin() -> None:
            if self._stopping.is_set():
                self._tell(settle, NetworkError("the transport is closed"))
            else:
                self._nursery.start_soon(run)

        self._post(begin)
        return lambda: self._post(scope.cancel)

    def _addresses(self) -> tuple[str, ...]:
        end = f"/p2p/{self._host.get_id()}"
        return tuple(sorted(str(at).removesuffix(end) + end for at in self._host.get_addrs()))

    async def _disconnect(self) -> None:
        """Close every socket. py-libp2p would say farewell to one peer after the other."""
        deadline = trio.current_time() + STOP_TIMEOUT_S
        with trio.CancelScope(deadline=deadline, shield=True):
            await self._tcp.close()  # those that came in close as their handlers end
            for listener in self._swarm.listeners.values():
                await listener.close()

    # Peers and streams.

    async def connect(self, way: str, peer: PeerId) -> None:
        """Dial one address, unless we are connected to that peer."""
        target = ID(multiaddr.peer_to_bytes(peer))
        if self._is_connected(target):
            return
        address = Multiaddr(multiaddr.to_bytes(way))
        if not self._tcp.can_dial(address):
            raise NetworkError("this transport dials TCP addresses only")
        await self._swarm.dial_addr(address, target)
        self._host.get_peerstore().add_addr(target, address, ADDRESS_LIFE_S)

    async def direct_peers(self) -> frozenset[PeerId]:
        """Whom we are connected to: this transport knows no relays."""
        connected = list(self._swarm.connections)
        return frozenset(multiaddr.peer_from_bytes(target.to_bytes()) for target in connected)

    async def open(self, peer: PeerId, protocol: str) -> PyLibp2pStream:
        """A new stream; a peer that we are not connected to is looked up in the DHT."""
        target = ID(multiaddr.peer_to_bytes(peer))
        if not self._is_connected(target):
            await self._find(target)
        near, pump = self._halves(await self._host.new_stream(target, [TProtocol(protocol)]))
        self._nursery.start_soon(pump.run, near)
        return near

    def accept(self, protocol: str, on_stream: OnStream) -> None:
        """Hand every inbound stream of `protocol` to the event loop."""

        async def handle(stream: INetStream) -> None:
            near, pump = self._halves(stream)
            self._tell(on_stream, protocol, near)
            await pump.run(near)

        self._host.set_stream_handler(TProtocol(protocol), handle)

    def _halves(self, stream: INetStream) -> tuple[PyLibp2pStream, Pump]:
        muxed = stream.muxed_stream if isinstance(stream, NetStream) else None
        if not isinstance(stream, NetStream) or not isinstance(muxed, YamuxStream):
            raise LocalError("py-libp2p made a stream of another kind than yamux")
        pump = Pump(stream, muxed, self._tell)
        peer = multiaddr.peer_from_bytes(stream.muxed_conn.peer_id.to_bytes())
        return PyLibp2pStream(peer, _remote(stream), pump, self._post), pump

    def _post(self, call: Callable[..., object], *arguments: object) -> None:
        with suppress(trio.RunFinishedError):  # all streams have ended by then
            self._token.run_sync_soon(call, *arguments)

    def _is_connected(self, target: ID) -> bool:
        return any(not known.is_closed for known in self._swarm.get_connections(target))

    async def _find(self, target: ID) -> None:
        found = await self._routing.find_peer(target)
        if found is None:
            raise NetworkError("not connected, and the DHT does not know where it is")
        refusal: Exception = NetworkError("the DHT knows no address of it")
        for address in found.addrs:
            try:
                await self._swarm.dial_addr(address, target)
                return
            except HOST_ERRORS as error:
                refusal = error
        raise refusal

    # The DHT.

    async def provide(self, key: bytes) -> None:
        """Tell the peers closest to `key` that we serve it; they are go-libp2p's as well."""
        if not await self._providers().provide(_multihash(key)):
            raise NetworkError("no peer of the DHT took the record")

    async def find_providers(self, key: bytes, limit: int) -> list[PeerId]:
        """Who claims to serve `key`."""
        found: dict[PeerId, None] = {}
        for provider in await self._providers().find_providers(_multihash(key), limit):
            with suppress(RemoteError):  # a peer with another kind of key is no peer of ours
                found[multiaddr.peer_from_bytes(provider.peer_id.to_bytes())] = None
        return list(found)[:limit]

    def _providers(self) -> ProviderStore:
        """Made anew each time: one that is kept answers from what it heard first, for ever."""
        return ProviderStore(self._host, self._routing)


def _remote(stream: INetStream) -> str:
    """Where the other end is, as a multiaddress; empty if the socket is gone already."""
    where = stream.get_remote_address()
    if where is None:
        return ""
    host, port = where
    return f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"
