"""The default transport: go-libp2p's daemon over TCP and Noise, driven over a unix socket.

A daemon that dies is started again by whoever needs it next: same identity, same port, same
handlers. Its streams are gone, and links carry on over new ones.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gennode.errors import GennodeError, NetworkError, RemoteError
from gennode.mesh import handles, multiaddr
from gennode.mesh.listening import check_free, socket_folder
from gennode.mesh.p2pd import p2pd_pb2 as pb
from gennode.mesh.p2pd.control import (
    DaemonGoneError,
    add_peer,
    address_of,
    ask,
    connect_request,
    find_request,
    handler_request,
    open_request,
    opened,
    provide_request,
    take_providers,
)
from gennode.mesh.p2pd.daemon import Daemon, DaemonOptions
from gennode.mesh.p2pd.roles import Role, worth_telling
from gennode.mesh.p2pd.stream import DaemonStream, pack, unpack
from gennode.mesh.reach.reach import is_relayed
from gennode.mesh.transport import StreamHandler
from gennode.wire.ids import PeerId
from gennode.wire.signing import Key

CONTROL_TIMEOUT_S = 5.0  # for what the daemon answers without asking other peers
PROVIDE_TIMEOUT_S = 30.0  # a walk through a large DHT, with dead peers on the way
HEADER_TIMEOUT_S = 5.0
MAX_STREAMS = 4096  # each is one file handle here and two in the daemon
MAX_DEATHS = 5  # of the daemon within DEATHS_S: then it would go on like that for ever
DEATHS_S = 60.0


class P2pdTransport:
    """Implements `gennode.mesh.transport.Transport`."""

    def __init__(
        self, key: Key, options: DaemonOptions, on_exit: Callable[[str], None] | None = None
    ) -> None:
        self._key = key
        self._options = options
        self._on_exit = on_exit
        self._daemon: Daemon | None = None
        self._launching = asyncio.Lock()
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)  # when, on the loop's clock
        self._down = ""  # why nothing will ever work again
        self._folder = socket_folder()
        self._addresses: tuple[str, ...] = ()
        self._handlers: dict[str, str] = {}  # protocol to the path of its socket
        self._servers: list[asyncio.Server] = []
        self._streams: set[DaemonStream] = set()
        self._most_streams = handles.for_streams(MAX_STREAMS)
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def start(
        cls,
        key: Key,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        role: Role = Role.LOCAL,
        relays: tuple[str, ...] = (),
        announce: tuple[str, ...] = (),
        on_exit: Callable[[str], None] | None = None,
        binary: Path | None = None,
    ) -> P2pdTransport:
        """Start the daemon, listening on one IP address (`0.0.0.0`: all; port 0: any free).

        `relays`: multiaddresses of those that a node behind a NAT may use. `announce`: what to
        tell others instead of the addresses listened on. `on_exit` is called with the reason if
        the daemon keeps dying: every later call raises NetworkError then. NetworkError if it
        can't be started.
        """
        options = DaemonOptions((host, port), role, relays, announce, binary)
        self = cls(key, options, on_exit)
        try:
            await self._alive()
        except (GennodeError, asyncio.CancelledError):
            await self.close()
            raise
        return self

    # -- the daemon ---------------------------------------------------------------------------

    async def _alive(self) -> Daemon:
        """The daemon, started if there is none; NetworkError if that can't be."""
        if self._daemon is not None:
            return self._daemon
        async with self._launching:
            if self._down:
                raise NetworkError(self._down, hint="restart the node")
            if self._daemon is None:
                self._daemon = await self._launch()
            return self._daemon

    async def _ask(
        self,
        request: pb.Request,
        timeout_s: float,
        take: Callable[[bytearray], bool] = lambda _: True,
    ) -> pb.Response:
        daemon = await self._alive()
        try:
            return await ask(daemon.control, request, timeout_s, take)
        except DaemonGoneError:
            await daemon.ended()
            return await ask((await self._alive()).control, request, timeout_s, take)

    async def _launch(self) -> Daemon:
        host, port = self._options.listen
        self._options = replace(self._options, listen=(host, check_free(host, port)))
        daemon = await Daemon.start(self._key, self._folder, self._options, on_exit=self._died)
        try:
            self._addresses = await self._identify(daemon)
            for protocol, path in self._handlers.items():
                await ask(daemon.control, handler_request(protocol, path), CONTROL_TIMEOUT_S)
        except (GennodeError, asyncio.CancelledError):
            await daemon.stop()
            raise
        return daemon

    async def _identify(self, daemon: Daemon) -> tuple[str, ...]:
        request = pb.Request(type=pb.Request.IDENTIFY)
        answer = await ask(daemon.control, request, CONTROL_TIMEOUT_S)
        if multiaddr.peer_from_bytes(answer.identify.id) != self.peer:
            raise NetworkError("the daemon took another identity", hint="report this bug")
        texts = [text for raw in answer.identify.addresses if (text := address_of(raw))]
        if not texts and self.role is not Role.PRIVATE:  # such a one hides a public address
            host, port = self._options.listen
            hint = "choose an IP address of this machine, and a free port"
            raise NetworkError(f"the daemon listens nowhere on {host}:{port}", hint=hint)
        return tuple(f"{text}/p2p/{self.peer}" for text in texts)

    def _died(self, reason: str) -> None:
        """The daemon has ended by itself. Unless it does so all the time, the next call revives
        it, and the loss of its streams makes links call at once."""
        self._daemon = None
        now_s = self._loop.time()
        self._deaths.append(now_s)
        if len(self._deaths) == MAX_DEATHS and now_s - self._deaths[0] < DEATHS_S:
            self._down = f"{reason} ({MAX_DEATHS} times within {DEATHS_S:g} s)"
        for stream in list(self._streams):
            stream.abort()
        if self._down and self._on_exit is not None:
            self._on_exit(self._down)

    async def become(self, role: Role, relays: tuple[str, ...] = ()) -> None:
        """Go on in another role; every stream ends, and links open new ones."""
        async with self._launching:
            self._options = replace(self._options, role=role, relays=relays)
            daemon, self._daemon = self._daemon, None
            if daemon is not None:
                await daemon.stop()
            for stream in list(self._streams):
                stream.abort()
        await self._alive()

    async def close(self) -> None:
        self._down = self._down or "the transport is closed"
        # A stream that was just accepted comes to be a turn of the loop later. asyncio's server
        # must not be closed before that: it would lose the socket (CPython's issue 109564).
        for listening in (socket for server in self._servers for socket in server.sockets):
            self._loop.remove_reader(listening.fileno())
        await asyncio.sleep(0)
        for server in self._servers:
            server.close()
        for stream in list(self._streams):
            stream.abort()
        async with self._launching:  # a daemon that is just being started must not stay behind
            daemon, self._daemon = self._daemon, None
            if daemon is not None:
                await daemon.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- what we are --------------------------------------------------------------------------

    @property
    def peer(self) -> PeerId:
        return self._key.peer

    @property
    def role(self) -> Role:
        """How we stand to the network now."""
        return self._options.role

    @property
    def relays(self) -> tuple[str, ...]:
        """Those that we may use while behind a NAT."""
        return self._options.relays

    @property
    def port(self) -> int:
        """The TCP port that we listen on."""
        return self._options.listen[1]

    @property
    def folder(self) -> Path:
        """A private folder that is gone when we are, even after SIGKILL."""
        return self._folder

    def addresses(self) -> tuple[str, ...]:
        return worth_telling(self._addresses, self._options.role)

    async def refresh(self) -> bool:
        """Ask the daemon for its addresses again; whether those worth telling have changed."""
        before = self.addresses()
        daemon = await self._alive()
        self._addresses = await self._identify(daemon)
        return self.addresses() != before

    # -- other peers --------------------------------------------------------------------------

    async def connect(self, *addresses: str, timeout_s: float) -> PeerId:
        peer, ways = multiaddr.split_peers(addresses)
        try:
            await self._ask(connect_request(peer, ways, timeout_s), timeout_s)
        except NetworkError as error:
            hint = "is that peer running, its port open, and the id the one that it prints?"
            text = " or ".join(addresses)
            raise NetworkError(f"can't reach {text}: {error}", hint=hint) from error
        return peer

    async def direct_peers(self) -> frozenset[PeerId]:
        request = pb.Request(type=pb.Request.LIST_PEERS)
        answer = await self._ask(request, CONTROL_TIMEOUT_S)
        found: dict[PeerId, None] = {}
        for entry in answer.peers:
            if not any(is_relayed(address_of(raw)) for raw in entry.addresses):
                add_peer(found, entry.id)
        return frozenset(found)

    async def provide(self, key: bytes) -> None:
        await self._ask(provide_request(key, PROVIDE_TIMEOUT_S), PROVIDE_TIMEOUT_S)

    async def find_providers(self, key: bytes, *, limit: int, timeout_s: float) -> list[PeerId]:
        request = find_request(key, limit, timeout_s)
        found: dict[PeerId, None] = {}
        try:
            await self._ask(request, timeout_s, take_providers(found, limit))
        except NetworkError:
            await self._alive()  # nobody in the table, or no time left: what came is a hint too
        return list(found)

    # -- streams ------------------------------------------------------------------------------

    async def open(self, peer: PeerId, protocol: str, *, timeout_s: float) -> DaemonStream:
        opened_: asyncio.Future[None] = self._loop.create_future()
        opened_.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen

        def on_header(stream: DaemonStream, buffer: bytearray) -> bool:
            remote = opened(buffer, peer)
            if remote is None:
                return False
            stream.begin(peer, remote)
            if not opened_.done():
                opened_.set_result(None)
            return True

        def on_lost(stream: DaemonStream, reason: str) -> None:
            self._streams.discard(stream)
            if not opened_.done():
                opened_.set_exception(NetworkError(reason))

        stream: DaemonStream | None = None
        try:
            async with asyncio.timeout(timeout_s):
                stream = await self._dial_daemon(lambda: DaemonStream(on_header, on_lost))
                stream.write(pack(open_request(peer, protocol, timeout_s)))
                await opened_
        except (TimeoutError, OSError, NetworkError) as error:
            reason = str(error) or f"no answer in {timeout_s:g} s"
            hint = "is it still running? connect to one of its addresses first"
            raise NetworkError(f"no stream to {peer}: {reason}", hint=hint) from error
        finally:
            if stream is not None and (not opened_.done() or opened_.cancelled()):
                stream.abort()
        return stream

    async def _dial_daemon(self, factory: Callable[[], DaemonStream]) -> DaemonStream:
        if len(self._streams) >= self._most_streams:
            hint = "let the node have more file handles: ulimit -n"
            raise NetworkError(f"{self._most_streams} streams are open already", hint=hint)
        daemon = await self._alive()
        try:
            _, stream = await self._loop.create_unix_connection(factory, daemon.control)
        except OSError:
            await daemon.ended()
            control = (await self._alive()).control
            _, stream = await self._loop.create_unix_connection(factory, control)
        self._streams.add(stream)
        return stream

    async def accept(self, protocol: str, handler: StreamHandler) -> None:
        daemon = await self._alive()
        path = str(self._folder / f"in{len(self._servers)}")
        server = await self._loop.create_unix_server(lambda: self._inbound(handler), path)
        self._servers.append(server)
        self._handlers[protocol] = path
        await ask(daemon.control, handler_request(protocol, path), CONTROL_TIMEOUT_S)

    def _inbound(self, handler: StreamHandler) -> DaemonStream:
        def on_header(stream: DaemonStream, buffer: bytearray) -> bool:
            header = pb.StreamInfo()
            if not unpack(buffer, header):
                return False
            if len(self._streams) > self._most_streams:
                raise RemoteError("too many streams")
            stream.begin(multiaddr.peer_from_bytes(header.peer), address_of(header.address))
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
