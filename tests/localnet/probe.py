"""What the tests run on the lab's hosts: a server, and one-line questions to it."""

from __future__ import annotations

import asyncio
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import cast

PORT = 7000
DIAL_S, PUNCH_S, ANSWER_S = 2.0, 4.0, 1.0  # silence costs a test that long
LOST_IN_A_ROW = 50  # datagrams that say "end": one gets through
_SO_RCVBUFFORCE = 33


class _Datagrams(asyncio.DatagramProtocol):
    """Answers each datagram with its sender's address, and after the last how many came."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, int]] = Counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if data == b"count":
            self._counts[addr] += 1
            return
        answer = str(self._counts[addr]) if data == b"end" else f"{addr[0]} {addr[1]}"
        self._transport.sendto(answer.encode(), addr)


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    host, port = writer.get_extra_info("peername")
    writer.write(f"{host} {port}\n".encode())
    while data := await reader.read(1 << 16):
        if data.endswith(b"!"):  # all has come
            writer.write(b"!")
    writer.close()


async def serve() -> None:
    """Tell TCP and UDP callers their address as seen here."""
    await asyncio.start_server(_greet, "0.0.0.0", PORT)  # noqa: S104 - in a lab without uplink
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
    datagrams.bind(("0.0.0.0", PORT))  # noqa: S104
    await asyncio.get_running_loop().create_datagram_endpoint(_Datagrams, sock=datagrams)
    print("ready", flush=True)
    await asyncio.Event().wait()


def _dial(host: str, local_port: int = 0) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.settimeout(DIAL_S)
    connection.bind(("", local_port))
    connection.connect((host, PORT))
    return connection


def dial(host: str, local_port: str = "0") -> str:
    """The address that the server at `host` sees, by TCP."""
    with _dial(host, int(local_port)) as connection:
        return connection.makefile().readline().strip()


def ask(host: str) -> str:
    """The address that the server at `host` sees, by UDP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(ANSWER_S)
        datagrams.sendto(b"?", (host, PORT))
        return datagrams.recv(100).decode()


def ping(host: str) -> str:
    """The median time of ten round trips, in milliseconds."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(10 * ANSWER_S)
        times_ms = []
        for _ in range(10):
            start_s = time.monotonic()
            datagrams.sendto(b"?", (host, PORT))
            datagrams.recv(100)
            times_ms.append((time.monotonic() - start_s) * 1000)
    return str(statistics.median(times_ms))


def count(host: str, datagrams_sent: str) -> str:
    """How many of that many datagrams arrived."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(10 * ANSWER_S)
        for _ in range(int(datagrams_sent)):
            datagrams.sendto(b"count", (host, PORT))
        for _ in range(LOST_IN_A_ROW):
            datagrams.sendto(b"end", (host, PORT))
        return datagrams.recv(100).decode()


def send(host: str, size_bytes: str) -> str:
    """How many seconds it takes until that many bytes are there."""
    with _dial(host) as connection:
        connection.settimeout(None)
        lines = connection.makefile("rb")
        lines.readline()
        start_s = time.monotonic()
        connection.sendall(bytes(int(size_bytes) - 1) + b"!")
        assert lines.read(1) == b"!"
        return str(time.monotonic() - start_s)


def punch(host: str, port: str) -> str:
    """Open a TCP connection to someone who dials us at the same time, both from `port`."""
    with socket.socket() as connection:
        connection.settimeout(PUNCH_S)
        connection.bind(("", int(port)))
        connection.connect((host, int(port)))
        connection.sendall(b"through\n")
        return connection.makefile().readline().strip()


def main() -> None:
    """Print the answer, or the name of what went wrong."""
    what, *words = sys.argv[1:]
    if what == "serve":
        asyncio.run(serve())
        return
    questions: dict[str, Callable[..., str]] = {
        question.__name__: question for question in (dial, ask, ping, count, send, punch)
    }
    try:
        print(questions[what](*words))
    except OSError as error:
        print(type(error).__name__, error.errno or "")


if __name__ == "__main__":
    main()
