"""Asking a peer how it sees us and whether it can dial us back; and answering others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from gennode.errors import GennodeError, NetworkError, RemoteError
from gennode.mesh.reach.reach import (
    MAX_ANSWER_BYTES,
    REQUEST_BYTES,
    Answer,
    Dialled,
    Sighting,
    endpoint,
    pack_answer,
    pack_request,
    unpack_answer,
    unpack_request,
)
from gennode.mesh.transport import Stream, Transport
from gennode.wire.ids import PeerId

PROTOCOL = "/gennode/reach/1"
DIAL_TIMEOUT_S = 2.0  # a SYN that a NAT drops is never answered; across the world takes 0.4 s
ASK_TIMEOUT_S = DIAL_TIMEOUT_S + 4.0
MAX_DIALS = 8  # at a time: each is a socket
MAX_REQUESTS = 64  # streams that are being answered
DIAL_PAUSE_S = 5.0  # between two dials for one peer, so that nobody scans ports through us
MAX_REMEMBERED = 1024

# A libp2p listener answers this greeting with the same:
# https://github.com/multiformats/multistream-select
_GREETING = b"\x13/multistream/1.0.0\n"

Dial = Callable[[str, int], Awaitable[bool]]
"""Whether a libp2p node answers at (IP address, port)."""


async def dial(host: str, port: int) -> bool:
    """Open a TCP connection of its own and see whether a libp2p node greets us there."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(_GREETING)
            return await reader.readexactly(len(_GREETING)) == _GREETING
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
    finally:
        if writer is not None:
            writer.transport.abort()


class Observer:
    """Tells peers how we see them. `tasks` holds what it dials; `clock_s`: since the epoch."""

    def __init__(
        self,
        transport: Transport,
        tasks: asyncio.TaskGroup,
        dial: Dial = dial,
        clock_s: Callable[[], float] = time.time,
        is_banned: Callable[[PeerId], bool] = lambda _peer: False,
    ) -> None:
        self._transport = transport
        self._tasks = tasks
        self._dial = dial
        self._clock_s = clock_s
        self._is_banned = is_banned
        self._dialled_s: dict[PeerId, float] = {}  # when last for each peer, oldest first
        self._dials = self._requests = 0

    async def start(self) -> None:
        """Answer from now on."""
        await self._transport.accept(PROTOCOL, self._accept)

    def _accept(self, stream: Stream) -> None:
        request = bytearray()
        timer = asyncio.get_running_loop().call_later(ASK_TIMEOUT_S, stream.abort)
        self._requests += 1

        def take(data: bytes) -> None:
            request.extend(data[: REQUEST_BYTES + 1])
            if len(request) > REQUEST_BYTES:
                stream.abort()
            elif len(request) == REQUEST_BYTES:
                self._answer(stream, bytes(request))

        def end(_reason: str) -> None:
            timer.cancel()
            self._requests -= 1

        stream.start(take, end)
        if self._requests > MAX_REQUESTS or self._is_banned(stream.peer):
            stream.abort()

    def _answer(self, stream: Stream, request: bytes) -> None:
        seen = endpoint(stream.remote)
        try:
            port = unpack_request(request)
        except RemoteError:
            stream.abort()
            return
        if port and seen is not None and self._may_dial(stream.peer):
            self._tasks.create_task(self._dial_and_say(stream, seen[0], port))
        else:
            self._say(stream, Dialled.NOT_TRIED)

    def _may_dial(self, peer: PeerId) -> bool:
        now_s = time.monotonic()
        if self._dials >= MAX_DIALS or now_s - self._dialled_s.get(peer, -60.0) < DIAL_PAUSE_S:
            return False
        self._dialled_s.pop(peer, None)
        while len(self._dialled_s) >= MAX_REMEMBERED:
            del self._dialled_s[next(iter(self._dialled_s))]
        self._dialled_s[peer] = now_s
        return True

    async def _dial_and_say(self, stream: Stream, host: str, port: int) -> None:
        self._dials += 1
        try:
            reached = await self._dial(host, port)
        finally:
            self._dials -= 1
        self._say(stream, Dialled.REACHED if reached else Dialled.NOT_REACHED)

    def _say(self, stream: Stream, dialled: Dialled) -> None:
        answer = Answer(dialled, int(self._clock_s() * 1000), stream.remote)
        stream.write(pack_answer(answer))
        stream.close()


async def ask_observer(transport: Transport, peer: PeerId, port: int) -> Sighting:
    """How a peer that we are connected to sees us; it dials `port` back unless that is 0.

    NetworkError if it can't be asked or sees us only through a relay; RemoteError if its answer
    makes no sense.
    """
    start_s, start_clock_s = time.monotonic(), time.time()
    answer, remote = await _ask(transport, peer, 0)
    round_trip_s = time.monotonic() - start_s
    observer, seen = endpoint(remote), endpoint(answer.address)
    if observer is None or seen is None:
        raise NetworkError(f"{peer} sees us through a relay only")
    skew_s = answer.clock_ms / 1000 - (start_clock_s + round_trip_s / 2)
    dialled = (await _ask(transport, peer, port))[0].dialled if port else Dialled.NOT_TRIED
    return Sighting(observer, seen, dialled, round_trip_s, skew_s)


async def _ask(transport: Transport, peer: PeerId, port: int) -> tuple[Answer, str]:
    """One request: the answer, and the address that it came from."""
    stream = await transport.open(peer, PROTOCOL, timeout_s=ASK_TIMEOUT_S)
    data = bytearray()
    ended = asyncio.Event()

    def take(piece: bytes) -> None:
        data.extend(piece[: MAX_ANSWER_BYTES + 1 - len(data)])
        if len(data) > MAX_ANSWER_BYTES:
            stream.abort()

    stream.start(take, lambda _reason: ended.set())
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            stream.write(pack_request(port))
            await ended.wait()
    except TimeoutError as error:
        raise NetworkError(f"{peer} did not say how it sees us") from error
    finally:
        stream.abort()
    return unpack_answer(bytes(data)), stream.remote


async def ask_observers(
    transport: Transport, peers: list[PeerId], port: int
) -> tuple[Sighting, ...]:
    """Ask several at once; whoever can't be asked is left out."""

    async def ask(peer: PeerId) -> Sighting | None:
        try:
            return await ask_observer(transport, peer, port)
        except GennodeError:
            return None

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(ask(peer)) for peer in peers]
    return tuple(sighting for task in asked if (sighting := task.result()) is not None)
