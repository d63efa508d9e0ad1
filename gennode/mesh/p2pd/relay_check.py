"""Whether a relay carries what sessions need, tried with two peers made for the purpose."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from gennode.errors import NetworkError
from gennode.mesh.p2pd.roles import Role
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.mesh.reach.reach import CIRCUIT
from gennode.mesh.transport import Stream
from gennode.wire.ids import PeerId
from gennode.wire.signing import SEED_BYTES, Key

PROTOCOL = "/gennode/relay-check/1"

# By default circuit relays cut a connection off after 128 KiB in either direction, some tens of
# tokens: such a relay passes every smaller test, and fails the first long prompt.
CHECK_BYTES = 256 * 1024
CHECK_TIMEOUT_S = 20.0
RETRY_S = 0.1


@dataclass(frozen=True)
class RelayCheck:
    """What a relay did for us."""

    slot_s: float
    """Until a peer could be reached through it."""
    round_trip_s: float
    """For one byte there and back."""
    carry_s: float
    """For CHECK_BYTES there and back."""


async def check_relay(address: str, *, binary: Path | None = None) -> RelayCheck:
    """Send more than 128 KiB through the relay at `address`, there and back.

    `binary`: another libp2p daemon than the installed one. NetworkError if it gives no slot,
    cuts off, changes a byte or takes too long.
    """
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S), AsyncExitStack() as stack:
            inner = await P2pdTransport.start(
                _key(), role=Role.PRIVATE, relays=(address,), binary=binary
            )
            stack.push_async_callback(inner.close)
            outer = await P2pdTransport.start(_key(), role=Role.LOCAL, binary=binary)
            stack.push_async_callback(outer.close)
            await inner.accept(PROTOCOL, _echo)
            start_s = time.monotonic()
            await outer.connect(address, timeout_s=CHECK_TIMEOUT_S)
            await _connect_through(address, outer, inner)
            slot_s = time.monotonic() - start_s
            round_trip_s = await _carry(outer, inner.peer, 1)
            return RelayCheck(slot_s, round_trip_s, await _carry(outer, inner.peer, CHECK_BYTES))
    except TimeoutError as error:
        raise NetworkError(
            f"{address} carried nothing in {CHECK_TIMEOUT_S:g} s",
            hint="is it a relay (gennode relay, or gennode join --relay), and not overloaded?",
        ) from error


def _key() -> Key:
    return Key(os.urandom(SEED_BYTES))


def _echo(stream: Stream) -> None:
    stream.start(stream.write, lambda _reason: None)


async def _connect_through(address: str, outer: P2pdTransport, inner: P2pdTransport) -> None:
    """Until the relay knows the inner peer; ended by the caller's time limit."""
    while True:
        with suppress(NetworkError):  # it has no slot yet
            way = f"{address}{CIRCUIT}/p2p/{inner.peer}"
            await outer.connect(way, timeout_s=CHECK_TIMEOUT_S)
            return
        await asyncio.sleep(RETRY_S)


async def _carry(outer: P2pdTransport, inner: PeerId, count: int) -> float:
    """Send `count` bytes there and back on a stream that is open; the seconds that it took."""
    stream = await outer.open(inner, PROTOCOL, timeout_s=CHECK_TIMEOUT_S)
    if CIRCUIT not in stream.remote:
        stream.abort()
        raise NetworkError("the check went past the relay", hint="report this bug")
    sent, back = os.urandom(count), bytearray()
    ended = asyncio.Event()

    def take(data: bytes) -> None:
        back.extend(data)
        if len(back) >= count:
            ended.set()

    stream.start(take, lambda _reason: ended.set())
    start_s = time.monotonic()
    stream.write(sent)
    await ended.wait()
    took_s = time.monotonic() - start_s
    stream.abort()
    if bytes(back) != sent:
        raise NetworkError(
            f"the relay cut off after {len(back)} of {count} bytes",
            hint="its limits are too low for sessions: use a relay of gennode's",
        )
    return took_s
