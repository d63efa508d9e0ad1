"""One py-libp2p stream in two halves: a Stream in the event loop, a Pump in the trio thread.

Bytes cross by callback. What is read and not taken by our side is bounded; the pump then stops
reading, and the peer runs into its yamux window.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from gennode.errors import LocalError
from gennode.wire.frames import Buffer
from gennode.wire.ids import PeerId

READ_BYTES = 256 * 1024  # the most that one read takes
READ_AHEAD_BYTES = 1024 * 1024  # read, and not taken by our side yet
WRITE_BYTES = 65_507  # with its yamux header just one Noise message; 64 KiB would be two
WINDOW_POLL_S = 0.002  # py-libp2p tells nobody when a window opens
LINGER_S = 5.0  # for the other end to close as well; then the stream is reset

STREAM_ERRORS = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)

CLOSED = "the stream was closed"
RESET = "the stream was reset"

Post = Callable[..., None]
"""Calls a function with arguments in the other thread, soon and in order."""


class PyLibp2pStream:
    """The event loop's half; implements `gennode.mesh.transport.Stream`."""

    def __init__(self, peer: PeerId, remote: str, pump: Pump, post: Post) -> None:
        """`post` calls into the trio thread."""
        self._peer = peer
        self._remote = remote
        self._pump = pump
        self._post = post
        self._on_data: Callable[[bytes], None] | None = None
        self._on_close: Callable[[str], None] | None = None
        self._waiting: deque[bytes] = deque()  # arrived before `start`, or while paused
        self._taken_bytes = 0  # since the pump was last told
        self._queued_bytes = 0  # written in all
        self._ended: str | None = None  # why no more will arrive
        self._is_open = True  # for writing
        self._is_paused = False

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def remote(self) -> str:
        return self._remote

    def start(self, on_data: Callable[[bytes], None], on_close: Callable[[str], None]) -> None:
        if self._on_data is not None:
            raise LocalError("a stream is started twice")
        self._on_data, self._on_close = on_data, on_close
        asyncio.get_running_loop().call_soon(self._flush)

    def write(self, *parts: Buffer) -> None:
        if not self._is_open:
            return
        self._pump.queue.extend(parts)
        self._queued_bytes += sum(map(len, parts))
        self._post(self._pump.wake)

    def unsent_bytes(self) -> int:
        return self._queued_bytes - self._pump.sent_bytes if self._is_open else 0

    def pause(self, paused: bool) -> None:
        self._is_paused = paused
        if not paused:
            asyncio.get_running_loop().call_soon(self._flush)

    def close(self) -> None:
        self._end(CLOSED, self._pump.finish)

    def abort(self) -> None:
        self._end(RESET, self._pump.abort)

    def _end(self, reason: str, tell: Callable[[], None]) -> None:
        self._post(tell)
        self._waiting.clear()
        if self._is_open:
            self._is_open = False
            self._ended = self._ended or reason
            asyncio.get_running_loop().call_soon(self._flush)

    # What the pump calls, in the event loop.

    def arrive(self, data: bytes) -> None:
        """Take bytes that the peer sent; the pump reads on as they are delivered."""
        if self._ended is None:
            self._waiting.append(data)
            self._flush()

    def ended(self, reason: str) -> None:
        """No more will arrive; what waits is still delivered."""
        self._ended = self._ended or reason
        self._is_open = False
        self._flush()

    def _flush(self) -> None:
        while self._waiting and self._on_data is not None and not self._is_paused:
            data = self._waiting.popleft()
            self._taken_bytes += len(data)
            self._on_data(data)
        if self._taken_bytes >= READ_AHEAD_BYTES // 2:
            self._post(self._pump.grant, self._taken_bytes)
            self._taken_bytes = 0
        on_close = self._on_close
        if self._ended is not None and on_close is not None and not self._waiting:
            self._on_data, self._on_close = _nobody, None
            on_close(self._ended)


def _nobody(_data: bytes) -> None:
    """Where data goes after the end."""


class Pump:
    """The trio thread's half: moves bytes between libp2p's stream and ours."""

    def __init__(self, stream: NetStream, muxed: YamuxStream, post: Post) -> None:
        """`post` calls into the event loop."""
        self._stream = stream
        self._muxed = muxed
        self._post = post
        self._scope = trio.CancelScope()
        self._credit_bytes = READ_AHEAD_BYTES
        self._granted = trio.Event()
        self._woken = trio.Event()
        self._is_finishing = False
        self.queue: deque[Buffer] = deque()
        """Filled by the event loop, emptied by the trio thread alone."""
        self.sent_bytes = 0
        """All that libp2p has handed to the operating system. Read by the event loop."""

    # What the event loop posts.

    def wake(self) -> None:
        """There is something to write."""
        self._woken.set()

    def grant(self, taken_bytes: int) -> None:
        """Our side took bytes: as many more may be read."""
        self._credit_bytes += taken_bytes
        self._granted.set()

    def finish(self) -> None:
        """Send what is queued, then close; what still comes in is dropped."""
        self._is_finishing = True
        self._woken.set()
        self._granted.set()

    def abort(self) -> None:
        """Reset the stream at once."""
        self.queue.clear()
        self._scope.cancel()

    # What runs in the trio thread.

    async def run(self, near: PyLibp2pStream) -> None:
        """Until both directions are closed, or one is reset; tells `near` what happens."""
        outcome: list[str] = []
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_all, outcome)
                    await self._read_all(near, outcome)
                    self._post(near.ended, outcome[0])
                    self.finish()
                    self._scope.deadline = trio.current_time() + LINGER_S
            if outcome != [CLOSED] or self._scope.cancelled_caught:
                await self._reset()
        finally:  # also if the whole host ends
            self._post(near.ended, outcome[0] if outcome else RESET)

    async def _reset(self) -> None:
        unread = self._muxed.conn.stream_buffers.get(self._muxed.stream_id)
        if unread is not None:
            unread.clear()  # nobody will read it, and it counts
        await self._stream.reset()

    async def _read_all(self, near: PyLibp2pStream, outcome: list[str]) -> None:
        while True:
            while self._credit_bytes <= 0 and not self._is_finishing:
                self._granted = trio.Event()
                await self._granted.wait()
            try:
                data = await self._muxed.read(READ_BYTES)
            except EOFError:
                outcome.append(CLOSED)
                return
            except STREAM_ERRORS as error:
                outcome.append(str(error) or RESET)
                return
            if not self._is_finishing:
                self._credit_bytes -= len(data)
                self._post(near.arrive, data)

    async def _write_all(self, outcome: list[str]) -> None:
        try:
            while True:
                while self.queue:
                    await self._write(self._next_part())
                if self._is_finishing:
                    await self._stream.close()
                    self._scope.deadline = trio.current_time() + LINGER_S
                    return
                self._woken = trio.Event()
                if not self.queue and not self._is_finishing:
                    await self._woken.wait()
        except STREAM_ERRORS as error:
            outcome.append(str(error) or RESET)
            self._scope.cancel()

    def _next_part(self) -> Buffer:
        """The queue's first part, joined with those after it that fit into one frame."""
        part = self.queue.popleft()
        if len(part) >= WRITE_BYTES or not self.queue:
            return part
        joined = bytearray(part)
        while self.queue and len(joined) + len(self.queue[0]) <= WRITE_BYTES:
            joined += self.queue.popleft()
        return joined

    async def _write(self, part: Buffer) -> None:
        view, start = memoryview(part), 0
        while start < len(view):
            # Its own write would give up after five seconds.
            while self._muxed.send_window <= 0 and not self._muxed.closed:  # noqa: ASYNC110
                await trio.sleep(WINDOW_POLL_S)
            end = min(start + WRITE_BYTES, start + max(1, self._muxed.send_window), len(view))
            await self._muxed.write(bytes(view[start:end]))
            self.sent_bytes += end - start
            start = end
