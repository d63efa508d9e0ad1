"""One home of bench/nat.py: a node behind its NAT that is told whom to reach, and how fast it is.

    python -m bench._nat_home HOST PORT BOOTSTRAP…

prints one JSON object per line: first what it is, then an answer to each line of input, which
names other peers and their addresses.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from typing import Any

from gennode.errors import GennodeError
from gennode.mesh.p2pd.roles import Role, is_reached_by_relay
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.mesh.transport import Stream
from gennode.node.running import running
from gennode.node.transports import Listening
from gennode.wire.ids import PeerId
from gennode.wire.signing import SEED_BYTES, Key

ECHO = "/gennode/bench/echo/1"
SETTLE_S = 15.0  # for an address that others can dial
POLL_S = 0.02
PUNCH_S = 4.0  # for a hole to be punched, if one can be
FRAME_BYTES = 8192
ROUND_TRIPS = 11
TIMEOUT_S = 20.0


def accept_echo(stream: Stream) -> None:
    """Send everything back."""
    stream.start(stream.write, lambda _reason: None)


class Echo:
    """A stream that gives back what it gets."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._left_bytes = 0
        self._done = asyncio.Event()
        stream.start(self._take, lambda _reason: None)

    def _take(self, data: bytes) -> None:
        self._left_bytes -= len(data)
        if not self._left_bytes:
            self._done.set()

    async def round_trip(self, data: bytes) -> float:
        """Seconds until all is back."""
        self._left_bytes = len(data)
        self._done.clear()
        start_s = time.perf_counter()
        self.stream.write(data)
        async with asyncio.timeout(TIMEOUT_S):
            await self._done.wait()
        return time.perf_counter() - start_s


async def reach(transport: P2pdTransport, peer: PeerId, addresses: list[str]) -> dict[str, Any]:
    """Connect to a peer, and wait for a direct connection if there can be one."""
    start_s = time.perf_counter()
    try:
        await transport.connect(*addresses, timeout_s=TIMEOUT_S)
    except GennodeError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    connected_s = time.perf_counter() - start_s
    while peer not in await transport.direct_peers():
        if time.perf_counter() - start_s > PUNCH_S:
            return {"connected_s": connected_s, "direct_s": None}
        await asyncio.sleep(POLL_S)
    return {"connected_s": connected_s, "direct_s": time.perf_counter() - start_s}


async def measure(transport: P2pdTransport, peer: PeerId) -> dict[str, Any]:
    """Time 8 KB there and back on the best connection of the moment."""
    try:
        echo = Echo(await transport.open(peer, ECHO, timeout_s=TIMEOUT_S))
        data = os.urandom(FRAME_BYTES)
        await echo.round_trip(data)
        times = [await echo.round_trip(data) for _ in range(ROUND_TRIPS)]
    except (GennodeError, TimeoutError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    echo.stream.close()
    return {"path": echo.stream.remote, "round_trip_s": statistics.median(times)}


async def meet(transport: P2pdTransport, others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reach all at once, then measure one after another."""
    reached = await asyncio.gather(
        *(reach(transport, PeerId(other["peer"]), other["addresses"]) for other in others)
    )
    return [
        seen if "error" in seen else seen | await measure(transport, PeerId(other["peer"]))
        for other, seen in zip(others, reached, strict=True)
    ]


async def first_relay_address(transport: P2pdTransport) -> float:
    """When it is there, on the clock of `perf_counter`."""
    async with asyncio.timeout(SETTLE_S):
        while not is_reached_by_relay(transport.addresses()):
            await asyncio.sleep(POLL_S)
            await transport.refresh()
    return time.perf_counter()


async def main() -> None:
    host, port, *bootstrap = sys.argv[1:]
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    key = Key(os.urandom(SEED_BYTES))
    listening = Listening(tuple(bootstrap), host, int(port))
    start_s = time.perf_counter()
    async with running(key, listening) as started:
        transport = started.node.transport
        assert isinstance(transport, P2pdTransport)
        await transport.accept(ECHO, accept_echo)
        relayed_s = await first_relay_address(transport) if transport.role is Role.PRIVATE else None
        relay_address_s = relayed_s and relayed_s - start_s
        await started.node.bootstrap(bootstrap)
        await started.settle()
        say(
            peer=transport.peer,
            addresses=transport.addresses(),
            role=transport.role,
            relay_address_s=relay_address_s,
            settled_s=time.perf_counter() - start_s,
        )
        while line := await lines.readline():
            say(met=await meet(transport, json.loads(line)["others"]))


def say(**words: Any) -> None:
    """One line of JSON."""
    print(json.dumps(words), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
