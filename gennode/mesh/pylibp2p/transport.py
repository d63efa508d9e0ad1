"""The transport without a daemon: py-libp2p, which knows only trio, in a thread of its own."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from gennode.errors import NetworkError, UsageError
from gennode.mesh import multiaddr
from gennode.mesh.listening import check_free, socket_folder
from gennode.mesh.pylibp2p.host import Host, cause_of
from gennode.mesh.pylibp2p.stream import PyLibp2pStream
from gennode.mesh.reach.reach import is_relayed
from gennode.mesh.transport import StreamHandler
from gennode.wire.ids import PeerId
from gennode.wire.signing import Key

START_TIMEOUT_S = 15.0
PROVIDE_TIMEOUT_S = 30.0  # a walk through a large DHT, with dead peers on the way
KEY_BYTES = 32

T = TypeVar("T")


class PyLibp2pTransport:
    """Implements `gennode.mesh.transport.Transport`."""

    def __init__(self, key: Key, on_exit: Callable[[str], None] | None = None) -> None:
        self._peer = key.peer
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._host: Host | None = None
        self._thread: threading.Thread | None = None
        self._ready: asyncio.Future[tuple[str, ...]] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._addresses: tuple[str, ...] = ()
        self._handlers: dict[str, StreamHandler] = {}
        self._calls: dict[Callable[[NetworkError], None], None] = {}  # how each is told
        self._down = ""  # why nothing works any more
        self._is_closing = False
        self._folder: Path | None = None

    @classmethod
    async def start(
        cls,
        key: Key,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        announce: tuple[str, ...] = (),
        on_exit: Callable[[str], None] | None = None,
    ) -> PyLibp2pTransport:
        """Listen on one IP address (`0.0.0.0`: all; port 0: any free).

        `announce`: multiaddresses to tell others instead of the ones listened on. `on_exit` is
        called with the reason if the host dies before `close`; all streams end then, and every
        later call raises NetworkError. NetworkError if it can't be started.
        """
        check_free(host, port)
        self = cls(key, on_exit)
        address = f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"
        self._host = Host(key, address, announce, self._tell)
        self._thread = threading.Thread(
            target=self._run, args=(self._host,), name="py-libp2p", daemon=True
        )
        self._thread.start()
        try:
            await self._started()
            if not self._ready.done():
                reason = self._down or "it did not come up in time"
                hint = "choose an IP address of this machine, and a free port"
                raise NetworkError(f"py-libp2p can't listen on {host}:{port}: {reason}", hint=hint)
            self._addresses = self._ready.result()
            self._folder = socket_folder()
        except (NetworkError, asyncio.CancelledError):
            await self.close()
            raise
        return self

    async def _started(self) -> None:
        """Until the thread is ready, or has failed."""
        either: set[asyncio.Future[Any]] = {self._ready, self._ended}
        await asyncio.wait(either, timeout=START_TIMEOUT_S, return_when="FIRST_COMPLETED")

    def _run(self, host: Host) -> None:
        try:
            trio.run(host.run, self._ready.set_result)
        except BaseException as error:  # noqa: BLE001 - task root: the thread's
            self._tell(self._over, f"py-libp2p died: {cause_of(error)}")
        else:
            self._tell(self._over, "the transport is closed")

    def _tell(self, call: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the event loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(call, *arguments)

    def _over(self, reason: str) -> None:
        """The thread has ended, and says why."""
        self._down = self._down or reason
        self._ended.set_result(None)
        for fail in list(self._calls):
            fail(NetworkError(self._down))
        if not self._is_closing and self._ready.done() and self._on_exit is not None:
            self._on_exit(self._down)

    @property
    def peer(self) -> PeerId:
        return self._peer

    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    @property
    def folder(self) -> Path:
        """A private folder that is gone when we are closed."""
        if self._folder is None:
            raise NetworkError(self._down or "the transport is closed", hint="restart the node")
        return self._folder

    async def connect(self, *addresses: str, timeout_s: float) -> PeerId:
        peer, ways = multiaddr.split_peers(addresses)
        refusals = []
        for way in sorted(ways, key=is_relayed):
            try:
                await self._call(partial(self._alive().connect, way, peer), timeout_s)
            except NetworkError as error:
                refusals.append(f"{way}: {error}")
            else:
                return peer
        hint = "is that peer running, its port open, and the id the one that it prints?"
        raise NetworkError(f"can't reach {peer} at {'; '.join(refusals)}", hint=hint)

    async def direct_peers(self) -> frozenset[PeerId]:
        return await self._call(self._alive().direct_peers, START_TIMEOUT_S)

    async def open(self, peer: PeerId, protocol: str, *, timeout_s: float) -> PyLibp2pStream:
        multiaddr.peer_to_bytes(peer)  # RemoteError, before anybody is asked for it
        opening = partial(self._alive().open, peer, protocol)
        try:
            return await self._call(opening, timeout_s, undo=PyLibp2pStream.abort)
        except NetworkError as error:
            hint = "is it still running? connect to one of its addresses first"
            raise NetworkError(f"no stream to {peer}: {error}", hint=hint) from error

    async def accept(self, protocol: str, handler: StreamHandler) -> None:
        host = self._alive()

        async def accept() -> None:
            host.accept(protocol, self._inbound)

        self._handlers[protocol] = handler
        await self._call(accept, START_TIMEOUT_S)

    def _inbound(self, protocol: str, stream: PyLibp2pStream) -> None:
        self._handlers[protocol](stream)

    async def provide(self, key: bytes) -> None:
        await self._call(partial(self._alive().provide, _checked(key)), PROVIDE_TIMEOUT_S)

    async def find_providers(self, key: bytes, *, limit: int, timeout_s: float) -> list[PeerId]:
        host = self._alive()
        try:
            return await self._call(partial(host.find_providers, _checked(key), limit), timeout_s)
        except NetworkError:
            self._alive()  # nobody to ask, or no time left: no hint then
            return []

    def _alive(self) -> Host:
        if self._host is None or self._down:
            raise NetworkError(self._down or "the transport is closed", hint="restart the node")
        return self._host

    async def _call(
        self,
        function: Callable[[], Awaitable[T]],
        timeout_s: float,
        undo: Callable[[T], None] = lambda _result: None,
    ) -> T:
        """Await `function` in the trio thread; `undo` a result that nobody waits for any more."""
        done: asyncio.Future[T] = self._loop.create_future()

        def settle(outcome: T | NetworkError) -> None:
            if isinstance(outcome, NetworkError):
                _fail(done, outcome)
            elif done.done():
                undo(outcome)
            else:
                done.set_result(outcome)

        fail = partial(_fail, done)
        self._calls[fail] = None
        cancel = self._alive().call(function, timeout_s, settle)
        try:
            return await done
        except asyncio.CancelledError:
            cancel()
            raise
        finally:
            del self._calls[fail]

    async def close(self) -> None:
        self._is_closing = True
        self._down = self._down or "the transport is closed"
        host, thread = self._host, self._thread
        self._host = self._thread = None
        if host is not None and thread is not None:
            await self._started()
            if self._ready.done():
                host.stop()
                await self._ended
            thread.join()  # it has said that it is over
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _fail(done: asyncio.Future[T], error: NetworkError) -> None:
    if not done.done():
        done.set_exception(error)


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise UsageError(f"a DHT key has {KEY_BYTES} bytes, not {len(key)}", hint="use a SHA-256")
    return key
