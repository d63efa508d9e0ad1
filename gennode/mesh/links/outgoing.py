"""The opener's end of a link: dials, reopens what breaks, gives up on a peer that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from gennode.errors import NetworkError, RemoteError, UsageError
from gennode.mesh.links.protocol import Sender
from gennode.mesh.reach.reach import is_relayed
from gennode.mesh.transport import Stream, Transport
from gennode.wire.frames import Buffer
from gennode.wire.ids import PeerId
from gennode.wire.messages import Message

PROTOCOL = "/gennode/link/1"
DIAL_TIMEOUT_S = 10.0  # a first contact may have to look the peer up in the DHT
RESUME_TIMEOUT_S = 5.0  # a session stalls meanwhile: longer, and a new worker is found sooner
RESTART_PATIENCE_S = 1.5  # a daemon that died is back in 0.7 s; an owner waits as long for pongs
RETRY_S = 0.1  # between two dials meanwhile
WELCOME_TIMEOUT_S = 5.0
STALL_TIMEOUT_S = 65.0  # no acknowledgement: more than a peer may take for the largest frame
STEADY_S = 1.0  # a stream that lived this long, or carried something, was worth reopening
MAX_RESETS = 5  # in a row, of streams that were not
RESET_DELAY_S = 0.02  # doubled each time: 0.3 s in all for the transport to see a dead connection


class Outgoing:
    """One link to one peer.

    Calls `on_over(self, reason, breach)` once if it is given up, or `on_done(self)` once its
    end is confirmed; `on_trouble(peer, reason)` when the peer refuses us after a stream broke,
    once for each; `on_alive(peer)` when the peer confirms something, but not all.
    """

    def __init__(
        self,
        peer: PeerId,
        link: bytes,
        transport: Transport,
        addresses: Callable[[], tuple[str, ...]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        on_trouble: Callable[[PeerId, str], None],
        on_alive: Callable[[PeerId], None],
        on_over: Callable[[Outgoing, str, bool], None],
        on_done: Callable[[Outgoing], None],
    ) -> None:
        self.peer = peer
        self._sender = Sender(link)
        self._transport = transport
        self._addresses = addresses
        self._spawn = spawn
        self._on_trouble = on_trouble
        self._on_alive = on_alive
        self._on_over = on_over
        self._on_done = on_done
        self._loop = asyncio.get_running_loop()
        self._stream: Stream | None = None
        self._opened_s = 0.0  # when the present stream was opened
        self._settled = 0  # frames acknowledged when the present stream was opened
        self._moved = (0, 0.0)  # how many were acknowledged at the last sweep that saw progress
        self._lost_s = float("-inf")  # when the last stream broke
        self._patience_s = RESTART_PATIENCE_S
        self._resets = 0
        self._is_over = False
        self._dialling = spawn(self._dial(DIAL_TIMEOUT_S))
        self._moving: asyncio.Task[None] | None = None

    def send(self, message: Message, payload: Buffer) -> int:
        """Write a message to the stream, or queue it until there is one; its bytes there."""
        if self._is_over:
            return 0
        before = self._sender.pushed_bytes
        try:
            self._write(self._sender.push(message, payload))
        except NetworkError as error:
            self._give_up(str(error), breach=False)
        return self._sender.pushed_bytes - before

    def end(self) -> None:
        """Send what is queued, have it confirmed, close."""
        if not self._is_over:
            self._write(self._sender.end())

    def hurry(self) -> None:
        """Our node leaves: whoever can't be reached any more is not waited for."""
        self._patience_s = 0.0

    def abort(self) -> None:
        """Drop the link without a word to anyone. Idempotent."""
        self._is_over = True
        self._dialling.cancel()
        if self._moving is not None:
            self._moving.cancel()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.abort()

    @property
    def held_bytes(self) -> int:
        """What is kept in memory for the peer."""
        return self._sender.held_bytes

    @property
    def address(self) -> str:
        """Where the peer is reached at present; empty if it is not."""
        return "" if self._stream is None else self._stream.remote

    def refuse(self, reason: str) -> None:
        """Give the peer up for a reason of the node's."""
        self._give_up(reason, breach=False)

    @property
    def is_relayed(self) -> bool:
        """Whether the link works, but through a relay."""
        return self._sender.is_open and self._stream is not None and is_relayed(self._stream.remote)

    def move(self) -> None:
        """A direct connection is there now: carry on over it."""
        if self.is_relayed and (self._moving is None or self._moving.done()):
            self._moving = self._spawn(self._move())

    async def _move(self) -> None:
        """Open a stream on the best connection; nothing is lost, for frames are numbered."""
        relayed = self._stream
        try:
            stream = await self._transport.open(self.peer, PROTOCOL, timeout_s=RESUME_TIMEOUT_S)
        except (NetworkError, RemoteError):
            return  # the relay still serves
        is_current = relayed is not None and self._stream is relayed and not self._is_over
        if relayed is None or not is_current or is_relayed(stream.remote):
            stream.abort()
            return
        self._sender.reset()
        self._begin(stream)
        relayed.abort()

    def sweep(self, now_s: float) -> None:
        """Give the peer up if it took our stream and then said nothing, or nothing more."""
        if self._stream is None:
            return
        if not self._sender.is_open:
            if now_s - self._opened_s > WELCOME_TIMEOUT_S:
                self._give_up(f"no welcome in {WELCOME_TIMEOUT_S:g} s", breach=False)
            return
        acknowledged, since_s = self._moved
        if self._sender.acknowledged != acknowledged or not self._sender.unacknowledged_bytes:
            self._moved = (self._sender.acknowledged, now_s)
        elif now_s - max(since_s, self._opened_s) > STALL_TIMEOUT_S:
            self._give_up(f"it took nothing for {STALL_TIMEOUT_S:g} s", breach=False)

    def _write(self, parts: list[Buffer]) -> None:
        if parts and self._stream is not None:
            self._stream.write(*parts)

    def _give_up(self, reason: str, *, breach: bool) -> None:
        if not self._is_over:
            self.abort()
            self._on_over(self, reason, breach)

    async def _dial(self, timeout_s: float, delay_s: float = 0.0) -> None:
        await asyncio.sleep(delay_s)
        try:
            async with asyncio.timeout(timeout_s):
                stream = await self._reach_again(timeout_s)
        except (NetworkError, RemoteError, UsageError) as error:
            self._give_up(str(error), breach=False)
            return
        except TimeoutError:
            self._give_up(f"not reached in {timeout_s:g} s", breach=False)
            return
        self._begin(stream)

    def _begin(self, stream: Stream) -> None:
        """Greet on a new stream, and go on over it once it is welcomed."""
        self._stream = stream
        self._opened_s = self._loop.time()
        self._settled = self._sender.acknowledged
        stream.start(partial(self._take, stream), partial(self._lost, stream))
        stream.write(self._sender.hello())

    async def _reach(self, timeout_s: float) -> Stream:
        if addresses := self._addresses():
            try:
                await self._transport.connect(*addresses, timeout_s=timeout_s)
            except (NetworkError, UsageError):
                # Where an old connection broke and every address refuses, the peer is dead: to
                # ask the DHT for more would only hold up whoever waits to replace it.
                if self._opened_s:
                    raise
        return await self._transport.open(self.peer, PROTOCOL, timeout_s=timeout_s)

    async def _reach_again(self, timeout_s: float) -> Stream:
        """A stream; where one broke just now, try until the peer's daemon, or ours, may be back."""
        is_told = False
        while True:
            try:
                return await self._reach(timeout_s)
            except NetworkError as error:
                if self._loop.time() - self._lost_s > self._patience_s:
                    raise
                if not is_told:
                    is_told = True
                    self._on_trouble(self.peer, str(error))
            await asyncio.sleep(RETRY_S)

    def _take(self, stream: Stream, data: bytes) -> None:
        if stream is not self._stream:
            return
        before = self._sender.acknowledged
        try:
            self._write(self._sender.receive(data))
        except RemoteError as error:
            self._give_up(str(error), breach=True)
        except NetworkError as error:
            self._give_up(str(error), breach=False)
        if self._sender.acknowledged > before and self._sender.unacknowledged_bytes:
            self._on_alive(self.peer)
        if self._sender.is_done and not self._is_over:
            self._is_over = True
            self._stream = None
            stream.close()
            self._on_done(self)

    def _lost(self, stream: Stream, reason: str) -> None:
        if stream is not self._stream or self._is_over:
            return
        self._stream = None
        self._sender.reset()
        self._lost_s = self._loop.time()
        lived_s = self._loop.time() - self._opened_s
        worth = lived_s > STEADY_S or self._sender.acknowledged > self._settled
        self._resets = 0 if worth else self._resets + 1
        if self._resets > MAX_RESETS:
            self._give_up(f"its streams keep breaking: {reason}", breach=False)
        else:
            delay_s = RESET_DELAY_S * 2 ** (self._resets - 2) if self._resets > 1 else 0.0
            self._dialling = self._spawn(self._dial(RESUME_TIMEOUT_S, delay_s))
