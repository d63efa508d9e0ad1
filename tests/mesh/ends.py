"""Two ends of the mesh that write down what happens to them."""

from __future__ import annotations

import asyncio

from gennode.mesh.links.links import Links
from gennode.mesh.transport import Stream, Transport
from gennode.wire.ids import PeerId, SessionId
from gennode.wire.messages import Message, Ping

WAIT_S = 10.0


def ping(nonce: int) -> Ping:
    """A message that is told apart by its number."""
    return Ping(session=SessionId(bytes(16)), nonce=nonce)


class Diary:
    """A node's links, and all that they report."""

    def __init__(self, transport: Transport, *, echo: bool = False) -> None:
        self.transport = transport
        self.echo = echo
        self.got: list[tuple[PeerId, int, bytes]] = []
        self.downs: list[tuple[PeerId, str, bool]] = []
        self.troubles: list[PeerId] = []
        self._changed = asyncio.Event()
        self.links = Links(transport, self._message, self._down, on_trouble=self._trouble)

    def _message(self, peer: PeerId, message: Message, payload: bytes) -> None:
        assert isinstance(message, Ping)
        self.got.append((peer, message.nonce, payload))
        self._changed.set()
        if self.echo:
            self.links.send(peer, message, payload)

    def _trouble(self, peer: PeerId, _reason: str) -> None:
        assert not self.downs, "in trouble after it was given up"
        self.troubles.append(peer)

    def _down(self, peer: PeerId, reason: str, breach: bool) -> None:
        self.downs.append((peer, reason, breach))
        self._changed.set()

    async def wait_for(self, messages: int = 0, downs: int = 0) -> None:
        """Until that many have come in all."""
        async with asyncio.timeout(WAIT_S):
            while len(self.got) < messages or len(self.downs) < downs:
                self._changed.clear()
                await self._changed.wait()


def take(stream: Stream) -> None:
    """Accept a stream and say nothing."""
    Raw(stream)


class Raw:
    """A stream without manners: what it received, and why it closed."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.data = bytearray()
        self.reason = ""
        self._changed = asyncio.Event()
        stream.start(self._data, self._close)

    def _data(self, data: bytes) -> None:
        self.data += data
        self._changed.set()

    def _close(self, reason: str) -> None:
        assert not self.reason, "closed twice"
        self.reason = reason or "?"
        self._changed.set()

    async def wait_for(self, size: int = 0, *, closed: bool = False) -> None:
        """Until that many bytes are here, or it is closed."""
        async with asyncio.timeout(WAIT_S):
            while len(self.data) < size or (closed and not self.reason):
                self._changed.clear()
                await self._changed.wait()


async def steady(stream: Stream) -> None:
    """Until no more bytes leave for half a second."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(WAIT_S):
        before, since_s = -1, loop.time()
        while loop.time() - since_s < 0.5:
            if stream.unsent_bytes() != before:
                before, since_s = stream.unsent_bytes(), loop.time()
            await asyncio.sleep(0)
