"""One libp2p stream as the daemon hands it over: a unix socket, a header, then raw bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Protobuf

from gennode.errors import LocalError, RemoteError
from gennode.mesh.multiaddr import pack_varint, unpack_varint
from gennode.wire.frames import Buffer
from gennode.wire.ids import PeerId

MAX_CONTROL_BYTES = 1024 * 1024  # one message of the daemon; a peer with many addresses: 10 KiB
JOIN_BYTES = 64 * 1024  # below, copying parts together costs less than one more system call


def pack(message: Protobuf) -> bytes:
    """A control message, preceded by its length."""
    body = message.SerializeToString()
    return pack_varint(len(body)) + body


def unpack(buffer: bytearray, message: Protobuf) -> bool:
    """Take one message off the buffer's front; False if it is not complete yet.

    RemoteError if it is longer than MAX_CONTROL_BYTES or no such message.
    """
    head = unpack_varint(buffer)
    if head is None:
        return False
    length, start = head
    if length > MAX_CONTROL_BYTES:
        raise RemoteError(f"a control message claims {length} bytes")
    if len(buffer) < start + length:
        return False
    try:
        message.ParseFromString(bytes(buffer[start : start + length]))
    except DecodeError as error:
        raise RemoteError(f"a malformed control message: {error}") from error
    del buffer[: start + length]
    return True


class DaemonStream(asyncio.Protocol):
    """A Stream over a unix socket. `peer` is set once the header has been read."""

    def __init__(
        self,
        on_header: Callable[[DaemonStream, bytearray], bool],
        on_lost: Callable[[DaemonStream, str], None],
    ) -> None:
        """`on_header(self, buffer)` takes the header off the buffer: False until it is whole.

        It raises RemoteError to refuse the stream. `on_lost` is called once at the end.
        """
        self._on_header = on_header
        self._on_lost = on_lost
        self._peer: PeerId | None = None
        self._remote = ""
        self._socket: asyncio.Transport | None = None
        self._early = bytearray()  # what came before `start`: the header, and what follows it
        self._on_data: Callable[[bytes], None] | None = None
        self._on_close: Callable[[str], None] | None = None
        self._lost: str | None = None
        self._paused = False
        self._is_aborted = False

    def begin(self, peer: PeerId, remote: str) -> None:
        """The header is read: the rest belongs to `peer`, at the address `remote`."""
        self._peer, self._remote = peer, remote

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        if self._is_aborted:  # while it was being accepted
            self._socket.abort()

    def data_received(self, data: bytes) -> None:
        if self._on_data is not None:
            self._on_data(data)
            return
        self._early += data
        try:
            if self._peer is None and not self._on_header(self, self._early):
                return
        except RemoteError as error:
            self._lost = self._lost or str(error)
            self.abort()
            return
        if self._socket is not None and self._on_data is None:
            self._socket.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._socket = None  # asyncio's fails when it is aborted once more
        self._lost = self._lost or (f"{exc}" if exc else "the stream was closed")
        self._on_lost(self, self._lost)
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self._lost)
        self._on_data = None

    # What the seam promises.

    @property
    def peer(self) -> PeerId:
        if self._peer is None:
            raise LocalError("a stream's peer is asked for before its header is read")
        return self._peer

    @property
    def remote(self) -> str:
        return self._remote

    def start(self, on_data: Callable[[bytes], None], on_close: Callable[[str], None]) -> None:
        asyncio.get_running_loop().call_soon(self._deliver, on_data, on_close)
        if self._socket is not None:
            self._socket.pause_reading()

    def _deliver(self, on_data: Callable[[bytes], None], on_close: Callable[[str], None]) -> None:
        early, self._early = bytes(self._early), bytearray()
        self._on_data, self._on_close = on_data, on_close
        if early:
            on_data(early)
        if self._lost is not None:
            self._on_close = None
            on_close(self._lost)
        elif self._socket is not None and not self._paused:
            self._socket.resume_reading()

    def write(self, *parts: Buffer) -> None:
        if self._socket is None or self._socket.is_closing():
            return
        if len(parts) > 1 and sum(map(len, parts)) <= JOIN_BYTES:
            parts = (b"".join(parts),)
        for part in parts:
            self._socket.write(part)

    def unsent_bytes(self) -> int:
        return 0 if self._socket is None else self._socket.get_write_buffer_size()

    def pause(self, paused: bool) -> None:
        self._paused = paused
        if self._socket is not None and not self._socket.is_closing():
            (self._socket.pause_reading if paused else self._socket.resume_reading)()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def abort(self) -> None:
        self._is_aborted = True
        if self._socket is not None:
            self._socket.abort()
