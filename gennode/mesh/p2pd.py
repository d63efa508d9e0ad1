"""The default transport: go-libp2p's daemon over TCP and Noise, driven over a unix socket."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

from gennode.errors import GennodeError, NetworkError, RemoteError, UsageError
from gennode.mesh import multiaddr
from gennode.mesh import p2pd_pb2 as pb
from gennode.mesh.daemon import Daemon
from gennode.mesh.p2pd_stream import DaemonStream, pack, unpack
from gennode.mesh.reach import is_relayed
from gennode.mesh.transport import StreamHandler
from gennode.wire.ids import PeerId
from gennode.wire.signing import Key

CONTROL_TIMEOUT_S = 5.0  # for what the daemon answers without asking other peers
PROVIDE_TIMEOUT_S = 30.0  # a walk through a large DHT, with dead peers on the way
HEADER_TIMEOUT_S = 5.0
MAX_STREAMS = 4096  # each is one file handle here and two in the daemon

# CIDv1, codec raw, SHA-2-256 of 32 bytes: https://github.com/multiformats/cid
_CID_PREFIX = bytes([0x01, 0x55, 0x12, 0x20])
KEY_BYTES = 32


class P2pdTransport:
    """Implements `gennode.mesh.transport.Transport`."""

    def __init__(self, key: Key, on_exit: Callable[[str], None] | None = None) -> None:
        self._peer = key.peer
        self._on_exit = on_exit
        self._daemon: Daemon | None = None
        self._down = ""  # why nothing works any more
        self._addresses: tuple[str, ...] = ()
        self._servers: list[asyncio.Server] = []
        self._streams: set[DaemonStream] = set()
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def start(
        cls,
        key: Key,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        announce: tuple[str, ...] = (),
        on_exit: Callable[[str], None] | None = None,
        binary: Path | None = None,
    ) -> P2pdTransport:
        """Start the daemon, listening on one IP address (`0.0.0.0`: all; port 0: any free).

        `announce`: multiaddresses to tell others instead of the ones listened on. `on_exit` is
        called with the reason if the daemon dies before `close`; all streams end then, and
        every later call raises NetworkError. NetworkError if it can't be started.
        """
        self = cls(key, on_exit)
        self._daemon = await Daemon.start(
            key, listen=(host, port), announce=announce, on_exit=self._died, binary=binary
        )
        try:
            answer = await self._ask(pb.Request(type=pb.Request.IDENTIFY), CONTROL_TIMEOUT_S)
            if multiaddr.peer_from_bytes(answer.identify.id) != key.peer:
                raise NetworkError("the daemon took another identity", hint="report this bug")
            texts = sorted(multiaddr.from_bytes(raw) for raw in answer.identify.addresses)
            if not texts:
                hint = "choose an IP address of this machine, and a free port"
                raise NetworkError(f"the daemon listens nowhere on {host}:{port}", hint=hint)
            self._addresses = tuple(f"{text}/p2p/{key.peer}" for text in texts)
        except (GennodeError, asyncio.CancelledError):
            await self.close()
            raise
        return self

    @property
    def peer(self) -> PeerId:
        return self._peer

    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    @property
    def folder(self) -> Path:
        """A private folder that is gone when we are, even after SIGKILL."""
        return self._alive().folder

    async def connect(self, *addresses: str, timeout_s: float) -> PeerId:
        peer, ways = multiaddr.split_peers(addresses)
        request = pb.Request(
            type=pb.Request.CONNECT,
            connect=pb.ConnectRequest(
                peer=multiaddr.peer_to_bytes(peer),
                addresses=[multiaddr.to_bytes(way) for way in ways],
                timeout_s=math.ceil(timeout_s),
            ),
        )
        try:
            await self._ask(request, timeout_s)
        except NetworkError as error:
            hint = "is that peer running, its port open, and the id the one that it prints?"
            text = " or ".join(addresses)
            raise NetworkError(f"can't reach {text}: {error}", hint=hint) from error
        return peer

    async def direct_peers(self) -> frozenset[PeerId]:
        answer = await self._ask(pb.Request(type=pb.Request.LIST_PEERS), CONTROL_TIMEOUT_S)
        found: dict[PeerId, None] = {}
        for entry in answer.peers:
            if not any(is_relayed(_remote(raw)) for raw in entry.addresses):
                _add_provider(found, entry.id)
        return frozenset(found)

    async def open(self, peer: PeerId, protocol: str, *, timeout_s: float) -> DaemonStream:
        request = pb.Request(
            type=pb.Request.STREAM_OPEN,
            stream_open=pb.StreamOpenRequest(
                peer=multiaddr.peer_to_bytes(peer),
                protocols=[protocol],
                timeout_s=math.ceil(timeout_s),
            ),
        )
        opened: asyncio.Future[None] = self._loop.create_future()
        opened.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen

        def on_header(stream: DaemonStream, buffer: bytearray) -> bool:
            remote = _opened(buffer, peer)
            if remote is None:
                return False
            stream.begin(peer, remote)
            if not opened.done():
                opened.set_result(None)
            return True

        def on_lost(stream: DaemonStream, reason: str) -> None:
            self._streams.discard(stream)
            if not opened.done():
                opened.set_exception(NetworkError(reason))

        stream: DaemonStream | None = None
        try:
            async with asyncio.timeout(timeout_s):
                stream = await self._dial_daemon(lambda: DaemonStream(on_header, on_lost))
                stream.write(pack(request))
                await opened
        except (TimeoutError, OSError, NetworkError) as error:
            reason = str(error) or f"no answer in {timeout_s:g} s"
            hint = "is it still running? connect to one of its addresses first"
            raise NetworkError(f"no stream to {peer}: {reason}", hint=hint) from error
        finally:
            if stream is not None and (not opened.done() or opened.cancelled()):
                stream.abort()
        return stream

    async def _dial_daemon(self, factory: Callable[[], DaemonStream]) -> DaemonStream:
        daemon = self._alive()
        if len(self._streams) >= MAX_STREAMS:
            raise NetworkError(f"{MAX_STREAMS} streams are open already")
        _, stream = await self._loop.create_unix_connection(factory, daemon.control)
        self._streams.add(stream)
        return stream

    async def accept(self, protocol: str, handler: StreamHandler) -> None:
        path = str(self._alive().folder / f"in{len(self._servers)}")
        server = await self._loop.create_unix_server(lambda: self._inbound(handler), path)
        self._servers.append(server)
        wanted = pb.StreamHandlerRequest(
            address=multiaddr.unix_to_bytes(path), protocols=[protocol], balanced=False
        )
        request = pb.Request(type=pb.Request.STREAM_HANDLER, stream_handler=wanted)
        await self._ask(request, CONTROL_TIMEOUT_S)

    def _inbound(self, handler: StreamHandler) -> DaemonStream:
        def on_header(stream: DaemonStream, buffer: bytearray) -> bool:
            header = pb.StreamInfo()
            if not unpack(buffer, header):
                return False
            if len(self._streams) > MAX_STREAMS:
                raise RemoteError("too many streams")
            stream.begin(multiaddr.peer_from_bytes(header.peer), _remote(header.address))
            timer.cancel()
            handler(stream)
            return True

        def on_lost(stream: DaemonStream, reason: str) -> None:
            timer.cancel()
            self._streams.discard(stream)

        stream = DaemonStream(on_header, on_lost)
        timer = self._loop.call_later(HEADER_TIMEOUT_S, stream.abort)
        self._streams.add(stream)
        return stream

    async def provide(self, key: bytes) -> None:
        request = pb.Request(
            type=pb.Request.DHT,
            dht=pb.DHTRequest(
                type=pb.DHTRequest.PROVIDE, cid=_cid(key), timeout_s=int(PROVIDE_TIMEOUT_S)
            ),
        )
        await self._ask(request, PROVIDE_TIMEOUT_S)

    async def find_providers(self, key: bytes, *, limit: int, timeout_s: float) -> list[PeerId]:
        request = pb.Request(
            type=pb.Request.DHT,
            dht=pb.DHTRequest(
                type=pb.DHTRequest.FIND_PROVIDERS,
                cid=_cid(key),
                count=limit,
                timeout_s=math.ceil(timeout_s),
            ),
        )
        found: dict[PeerId, None] = {}

        def take(buffer: bytearray) -> bool:
            answer = pb.DHTResponse()
            while len(found) < limit and unpack(buffer, answer):
                if answer.type == pb.DHTResponse.END:
                    return True
                if answer.type == pb.DHTResponse.VALUE:
                    _add_provider(found, answer.peer.id)
            return len(found) >= limit

        try:
            await self._ask(request, timeout_s, take)
        except NetworkError:
            self._alive()  # no peer in the table, or no time left: what came so far is a hint too
        return list(found)

    async def _ask(
        self,
        request: pb.Request,
        timeout_s: float,
        take: Callable[[bytearray], bool] = lambda _: True,
    ) -> pb.Response:
        """Send one request on a connection of its own and read the daemon's answer.

        `take` reads what follows the answer, until it says True. NetworkError in words of the
        daemon if it refuses, dies or takes longer than `timeout_s`.
        """
        answer = pb.Response()
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(self._alive().control)
                try:
                    writer.write(pack(request))
                    buffer = bytearray()
                    while not unpack(buffer, answer):
                        buffer += await _some(reader)
                    if answer.type != pb.Response.OK:
                        raise NetworkError(answer.error.message)
                    while not take(buffer):
                        buffer += await _some(reader)
                finally:
                    writer.transport.abort()
        except TimeoutError as error:
            raise NetworkError(f"no answer in {timeout_s:g} s") from error
        except (OSError, RemoteError) as error:
            raise NetworkError(f"the libp2p daemon failed: {self._down or error}") from error
        return answer

    def _alive(self) -> Daemon:
        if self._daemon is None or self._down:
            reason = self._down or "the transport is closed"
            raise NetworkError(reason, hint="restart the node")
        return self._daemon

    def _died(self, reason: str) -> None:
        self._down = reason
        for stream in list(self._streams):
            stream.abort()
        if self._on_exit is not None:
            self._on_exit(reason)

    async def close(self) -> None:
        self._down = self._down or "the transport is closed"
        for server in self._servers:
            server.close()
        for stream in list(self._streams):
            stream.abort()
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            await daemon.stop()


def _cid(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise UsageError(f"a DHT key has {KEY_BYTES} bytes, not {len(key)}", hint="use a SHA-256")
    return _CID_PREFIX + key


def _opened(buffer: bytearray, peer: PeerId) -> str | None:
    """The address at the other end, or None while the daemon's answer to STREAM_OPEN is not whole.

    RemoteError if it is a refusal.
    """
    answer = pb.Response()
    if not unpack(buffer, answer):
        return None
    if answer.type != pb.Response.OK:
        raise RemoteError(answer.error.message)
    if multiaddr.peer_from_bytes(answer.stream_info.peer) != peer:
        raise RemoteError("another peer answered")
    return _remote(answer.stream_info.address)


def _remote(raw: bytes) -> str:
    """An address for people and for telling relays apart; empty if it is of a kind unknown here."""
    try:
        return multiaddr.from_bytes(raw)
    except RemoteError:
        return ""


def _add_provider(found: dict[PeerId, None], raw: bytes) -> None:
    try:
        found[multiaddr.peer_from_bytes(raw)] = None
    except RemoteError:
        return  # a peer with another kind of key is no peer of ours


async def _some(reader: asyncio.StreamReader) -> bytes:
    data = await reader.read(65536)
    if not data:
        raise RemoteError("the connection to the daemon ended")
    return data
