"""Raw bytes over the streams of each transport, beside plain TCP, in turns.

An echo server and a client, each in a process of its own, for: the libp2p daemon (its encryption
runs in the daemon's process), py-libp2p (in ours), and asyncio's TCP without encryption.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to find its neighbours

if TYPE_CHECKING:
    from gennode.mesh.transport import Transport

Kind = Literal["p2pd", "pylibp2p", "tcp"]
KINDS: tuple[Kind, ...] = ("p2pd", "pylibp2p", "tcp")
ECHO, SINK = "/bench/echo", "/bench/sink"
SMALL_BYTES, LARGE_BYTES = 8 * 1024, 1024 * 1024
MIB = 1024 * 1024
START_TIMEOUT_S = 60.0
ANSWER = struct.Struct(">d")  # of the sink, when it has all: the CPU seconds that it spent


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    rounds: int
    small: int  # round trips of SMALL_BYTES per round
    large: int  # and of LARGE_BYTES
    sink_bytes: int  # one way


class Stream(Protocol):
    """What this bench needs of a `gennode.mesh.transport.Stream`."""

    def start(self, on_data: Callable[[bytes], None], on_close: Callable[[str], None]) -> None: ...
    def write(self, *parts: bytes) -> None: ...
    def close(self) -> None: ...


class PlainStream(asyncio.Protocol):
    """A TCP connection with the methods of a transport's stream."""

    def __init__(self, on_open: Callable[[Stream], None] = lambda _stream: None) -> None:
        self._on_open = on_open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._socket = cast(asyncio.Transport, transport)
        self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._on_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._on_close(str(exc))

    def start(self, on_data: Callable[[bytes], None], on_close: Callable[[str], None]) -> None:
        """As a transport's stream."""
        self._on_data, self._on_close = on_data, on_close

    def write(self, *parts: bytes) -> None:
        """As a transport's stream."""
        self._socket.write(b"".join(parts))

    def close(self) -> None:
        """As a transport's stream."""
        self._socket.close()


async def start(kind: Kind, seed: int) -> Transport:
    """A libp2p transport on loopback."""
    from gennode.mesh.p2pd.transport import P2pdTransport
    from gennode.mesh.pylibp2p.transport import PyLibp2pTransport
    from gennode.wire.signing import Key

    key = Key(bytes([seed]) * 32)
    return await (P2pdTransport if kind == "p2pd" else PyLibp2pTransport).start(key)


# The server's process.


def echo(stream: Stream) -> None:
    """Send back whatever comes."""
    stream.start(stream.write, lambda _reason: None)


def sink(stream: Stream) -> None:
    """Take as many bytes as the first eight say, answer, and begin again."""
    waiting = bytearray()
    left, start_s = 0, 0.0

    def take(data: bytes) -> None:
        nonlocal left, start_s
        if not left:
            waiting.extend(data)
            if len(waiting) < 8:
                return
            left, start_s = int.from_bytes(waiting[:8], "big"), time.process_time()
            data = bytes(waiting[8:])
            waiting.clear()
        left -= len(data)
        if not left:
            stream.write(ANSWER.pack(time.process_time() - start_s))

    stream.start(take, lambda _reason: None)


async def serve(kind: Kind) -> None:
    """Print where we listen, and serve until standard input ends."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(0, ended.set)  # nobody writes to it: it becomes readable when it ends
    if kind == "tcp":
        servers = [
            await loop.create_server(lambda: PlainStream(echo), "127.0.0.1", 0),
            await loop.create_server(lambda: PlainStream(sink), "127.0.0.1", 0),
        ]
        print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
        await ended.wait()
        return
    transport = await start(kind, 1)
    try:
        await transport.accept(ECHO, echo)
        await transport.accept(SINK, sink)
        print(transport.addresses()[0], flush=True)
        await ended.wait()
    finally:
        await transport.close()


# The client's.


class Caller:
    """A stream of which so many bytes are awaited."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.answer = bytearray()
        self._wanted_bytes = 0
        self._done: asyncio.Future[None] | None = None
        stream.start(self._take, self._lost)

    def _take(self, data: bytes) -> None:
        self.answer += data
        done = self._done
        if len(self.answer) >= self._wanted_bytes and done is not None and not done.done():
            done.set_result(None)

    def _lost(self, reason: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError(reason))

    async def call(self, *parts: bytes, answer_bytes: int) -> float:
        """Send, await the answer; seconds."""
        self.answer.clear()
        self._wanted_bytes = answer_bytes
        self._done = asyncio.get_running_loop().create_future()
        start_s = time.perf_counter()
        self.stream.write(*parts)
        await self._done
        return time.perf_counter() - start_s


@dataclass
class Case:
    """One transport's two streams, and what was measured."""

    echo: Caller
    sink: Caller
    small_s: list[float] = field(default_factory=list)
    large_s: list[float] = field(default_factory=list)
    rates_mb_s: list[float] = field(default_factory=list)
    send_cpu_ms: list[float] = field(default_factory=list)  # of Python, per MB
    take_cpu_ms: list[float] = field(default_factory=list)

    async def round(self, plan: Plan) -> None:
        """Measure everything once."""
        small, large, bulk = (
            os.urandom(size) for size in (SMALL_BYTES, LARGE_BYTES, plan.sink_bytes)
        )
        for _ in range(plan.small):
            self.small_s.append(await self.echo.call(small, answer_bytes=len(small)))
        for _ in range(plan.large):
            self.large_s.append(await self.echo.call(large, answer_bytes=len(large)))
        start_s, bulk_mb = time.process_time(), len(bulk) / 1e6
        size = len(bulk).to_bytes(8, "big")
        taken_s = await self.sink.call(size, bulk, answer_bytes=ANSWER.size)
        self.send_cpu_ms.append((time.process_time() - start_s) * 1e3 / bulk_mb)
        (server_s,) = ANSWER.unpack(self.sink.answer)
        self.take_cpu_ms.append(server_s * 1e3 / bulk_mb)
        self.rates_mb_s.append(bulk_mb / taken_s)


@asynccontextmanager
async def case(kind: Kind, seed: int) -> AsyncIterator[Case]:
    """A server in a process of its own, and both streams to it."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__)), "--serve", kind,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    if child.stdin is None or child.stdout is None:
        raise RuntimeError("a pipe is missing")
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            where = (await child.stdout.readline()).decode().split()
        async with _streams(kind, where, seed) as (first, second):
            yield Case(Caller(first), Caller(second))
    finally:
        child.stdin.close()
        await child.wait()


@asynccontextmanager
async def _streams(kind: Kind, where: list[str], seed: int) -> AsyncIterator[tuple[Stream, Stream]]:
    if kind == "tcp":
        loop = asyncio.get_running_loop()
        opened = [
            (await loop.create_connection(PlainStream, "127.0.0.1", int(port)))[1] for port in where
        ]
        try:
            yield opened[0], opened[1]
        finally:
            for stream in opened:
                stream.close()
        return
    transport = await start(kind, seed)
    try:
        peer = await transport.connect(where[0], timeout_s=START_TIMEOUT_S)
        yield (
            await transport.open(peer, ECHO, timeout_s=START_TIMEOUT_S),
            await transport.open(peer, SINK, timeout_s=START_TIMEOUT_S),
        )
    finally:
        await transport.close()


async def measure(plan: Plan) -> dict[Kind, Case]:
    """All cases in turns, so that a busy machine disturbs them alike."""
    async with AsyncExitStack() as stack:
        cases = {
            kind: await stack.enter_async_context(case(kind, seed))
            for seed, kind in enumerate(KINDS, start=2)
        }
        for each in cases.values():
            await each.round(Plan(1, 20, 2, MIB))  # everybody's first is slow
            for figures in (each.small_s, each.large_s, each.rates_mb_s):
                figures.clear()
            each.send_cpu_ms.clear()
            each.take_cpu_ms.clear()
        for number in range(plan.rounds):
            print(f"round {number + 1} of {plan.rounds} …", file=sys.stderr, flush=True)
            for each in cases.values():
                await each.round(plan)
        return cases


def main() -> None:
    """Measure, print, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="finish within 50 s")
    parser.add_argument("--serve", choices=KINDS, help="be the server (for the bench itself)")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve))
        return
    from bench._report import report

    plan = Plan(rounds=15, small=200, large=20, sink_bytes=64 * MIB)
    if options.quick:
        plan = Plan(rounds=4, small=100, large=5, sink_bytes=16 * MIB)
    cases = asyncio.run(measure(plan))
    middle = statistics.median
    small_ms = {kind: middle(each.small_s) * 1e3 for kind, each in cases.items()}
    large_ms = {kind: middle(each.large_s) * 1e3 for kind, each in cases.items()}
    times_tcp = {kind: small_ms[kind] / small_ms["tcp"] for kind in KINDS}
    rate_mb_s = {kind: middle(each.rates_mb_s) for kind, each in cases.items()}
    cpu_ms = {kind: (middle(c.send_cpu_ms), middle(c.take_cpu_ms)) for kind, c in cases.items()}
    figures: dict[str, float | int | str] = {}
    for kind in KINDS:
        figures[f"{kind}_8k_ms"] = round(small_ms[kind], 3)
        figures[f"{kind}_1m_ms"] = round(large_ms[kind], 2)
        figures[f"{kind}_mb_per_s"] = round(rate_mb_s[kind], 1)
        figures[f"{kind}_cpu_ms_per_mb"] = round(sum(cpu_ms[kind]), 2)
    report(
        "transport",
        figures,
        columns=("", *KINDS),
        rows=[
            ("8 KiB there and back, ms", *(f"{small_ms[kind]:.3f}" for kind in KINDS)),
            (
                "  beside plain TCP",
                *(f"{times_tcp[kind]:.1f} ×" for kind in KINDS),
            ),
            ("1 MiB there and back, ms", *(f"{large_ms[kind]:.2f}" for kind in KINDS)),
            ("one way, MB/s", *(f"{rate_mb_s[kind]:.0f}" for kind in KINDS)),
            ("Python's CPU to send, ms per MB", *(f"{cpu_ms[kind][0]:.2f}" for kind in KINDS)),
            ("Python's CPU to receive, ms per MB", *(f"{cpu_ms[kind][1]:.2f}" for kind in KINDS)),
        ],
    )


if __name__ == "__main__":
    main()
