"""Frames over a socket between a node and its compute process; nothing is read beyond bounds."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

import msgspec

from gennode.engine.child.protocol import LENGTHS, MAX_HEADER_BYTES
from gennode.errors import LocalError

BUFFER_BYTES = 1 << 16  # one call of the system for a step of some rows
SOCKET_BYTES = 1 << 22  # asked of the system: a prefill chunk of 128 rows of width 8192
_MAX_PIECES = 512  # of one send; systems take 1024

In = TypeVar("In")
Buffer = bytes | bytearray | memoryview


class BrokenChannelError(Exception):
    """The other end is gone, or sends what it must not."""


class GoneError(BrokenChannelError):
    """The other end is gone."""


class Channel(Generic[In]):
    """One end. For one thread at a time. `decoder`: of the headers that come in.

    `is_silence_fine` is asked whenever the other end was silent for `silence_s`: false breaks the
    channel.
    """

    def __init__(
        self,
        end: socket.socket,
        decoder: msgspec.msgpack.Decoder[In],
        *,
        silence_s: float | None = None,
        is_silence_fine: Callable[[], bool] = lambda: True,
    ) -> None:
        end.settimeout(silence_s)
        self._is_silence_fine = is_silence_fine
        self._end = end
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = decoder
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._start = self._filled = 0
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)

    def send(self, header: msgspec.Struct, body: Sequence[Buffer] = ()) -> None:
        """Send a frame; GoneError if nobody is there any more."""
        head = self._encoder.encode(header)
        if len(head) > MAX_HEADER_BYTES:
            raise LocalError(f"a header of {len(head)} bytes")
        views = [one for one in (memoryview(part).cast("B") for part in body if len(part)) if one]
        lengths = LENGTHS.pack(len(head), sum(len(view) for view in views))
        self._send([memoryview(lengths + head), *views])

    def receive(self, max_body_bytes: int) -> tuple[In, bytearray]:
        """The next frame. GoneError if none comes, BrokenChannelError if it breaks bounds."""
        start = LENGTHS.size
        self._have(start)
        head_bytes, body_bytes = LENGTHS.unpack(self._take(start))
        if head_bytes > MAX_HEADER_BYTES or body_bytes > max_body_bytes:
            raise BrokenChannelError(f"a frame of {head_bytes} and {body_bytes} bytes")
        try:
            header = self._decoder.decode(self._bytes(head_bytes))
        except (msgspec.DecodeError, RecursionError) as error:
            raise BrokenChannelError(f"a malformed frame: {error}") from error
        return header, self._bytes(body_bytes)

    def close(self) -> None:
        """End it; whoever waits for a frame at either end hears of it."""
        with suppress(OSError):  # the other end was quicker
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    def _send(self, views: list[memoryview]) -> None:
        while views:
            try:
                sent = self._end.sendmsg(views[:_MAX_PIECES])
            except TimeoutError:
                self._heed_silence()
                continue
            except OSError as error:
                raise GoneError(f"nobody reads: {error.strerror}") from error
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]

    def _bytes(self, count: int) -> bytearray:
        """That many bytes: those in the buffer first, long ones straight from the socket."""
        result = bytearray(count)
        have = min(count, self._filled - self._start)
        result[:have] = self._take(have)
        view = memoryview(result)[have:]
        while view:
            view = view[self._read_into(view) :]
        return result

    def _take(self, count: int) -> memoryview:
        self._start += count
        return self._buffer[self._start - count : self._start]

    def _have(self, count: int) -> None:
        """Fill the buffer until it holds that many bytes."""
        if self._start == self._filled:
            self._start = self._filled = 0
        elif self._start + count > BUFFER_BYTES:
            rest = bytes(self._buffer[self._start : self._filled])
            self._buffer[: len(rest)] = rest
            self._start, self._filled = 0, len(rest)
        while self._filled - self._start < count:
            self._filled += self._read_into(self._buffer[self._filled :])

    def _read_into(self, view: memoryview) -> int:
        while True:
            try:
                count = self._end.recv_into(view)
            except TimeoutError:
                self._heed_silence()
                continue
            except OSError as error:
                raise GoneError(f"nobody sends: {error.strerror}") from error
            if not count:
                raise GoneError("the other end is gone")
            return count

    def _heed_silence(self) -> None:
        if not self._is_silence_fine():
            raise BrokenChannelError("it is frozen")
