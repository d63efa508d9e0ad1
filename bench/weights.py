"""Weights from 1, 2 and 4 peers beside one plain TCP copy of the same bytes, and their packing.

Every sender is a process of its own, with a libp2p daemon of its own on loopback. Both sides
check SHA-256 and write a file, in memory where the system has a folder there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to find its neighbours

import msgspec

from bench._report import median_of, report
from gennode.engine.checkpoint.layout import SINGLE, Position
from gennode.engine.checkpoint.shelf import FolderShelf, PartialFolder
from gennode.mesh.blobs.fetch import fetch_chunks
from gennode.mesh.blobs.fetching import PROTOCOL
from gennode.mesh.blobs.server import BlobServer
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.wire import planes
from gennode.wire.ids import PeerId
from gennode.wire.manifest import CHUNK_BYTES, Manifest
from gennode.wire.signing import SEED_BYTES, Key

PEERS = (1, 2, 4)
FIGURE_PEERS = 2
LAYERS = 1  # of the 1.1 B shape, with its embedding and head: 350 MB
_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder made in it is private
SCRATCH = _MEMORY if _MEMORY.is_dir() else None  # a disk would hide the rest
CACHE = Path(__file__).resolve().parent.parent / ".bench"
TIMEOUT_S = 60.0


def main() -> None:
    """Measure, print, report. `rate_ratio` is that of FIGURE_PEERS peers to the TCP copy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="finish within 50 s")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--send", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tcp", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        asyncio.run(_send_tcp(options.send) if options.tcp else _send_blobs(options.send))
        return
    folder = _weights()
    rounds = options.rounds or (2 if options.quick else 9)
    tcp, fetched = asyncio.run(_measure(folder, rounds))
    ratios = {
        count: median_of(rate / plain for rate, plain in zip(rates, tcp, strict=True))
        for count, rates in fetched.items()
    }
    small, pack_mb_s, unpack_mb_s = _pack(folder)
    report(
        "weights",
        {
            "rate_ratio": round(ratios[FIGURE_PEERS], 3),
            "compression_ratio": round(small, 3),
        },
        columns=("", "MB/s, median", "of the TCP copy"),
        rows=[
            ("plain TCP copy", f"{median_of(tcp):.0f}", "1"),
            *(
                (f"from {count} peers", f"{median_of(rates):.0f}", f"{ratios[count]:.2f}")
                for count, rates in fetched.items()
            ),
            ("packing, one core", f"{pack_mb_s:.0f}", ""),
            ("unpacking, one core", f"{unpack_mb_s:.0f}", ""),
            ("bf16 weights are packed to", f"1/{small:.3f}", ""),
        ],
    )


def _weights() -> Path:
    from bench._random_model import LLAMA_1B, random_llama

    folder = CACHE / f"random-llama-1.1b-{LAYERS}-layers"
    if not (folder / SINGLE).exists():
        print("writing random weights …", file=sys.stderr, flush=True)
        random_llama(folder, msgspec.structs.replace(LLAMA_1B, layers=LAYERS), seed=1)
    return folder


async def _measure(folder: Path, rounds: int) -> tuple[list[float], dict[int, list[float]]]:
    """MB/s of each round, in turns, so that a busy machine disturbs both alike."""
    manifest = _manifest(folder)
    tcp: list[float] = []
    fetched: dict[int, list[float]] = {count: [] for count in PEERS}
    async with contextlib.AsyncExitStack() as stack:
        [port] = await stack.enter_async_context(_senders(1, folder, "--tcp"))
        addresses = await stack.enter_async_context(_senders(max(PEERS), folder))
        transport = await P2pdTransport.start(Key(os.urandom(SEED_BYTES)))
        stack.push_async_callback(transport.close)
        peers = [await transport.connect(each, timeout_s=TIMEOUT_S) for each in addresses]
        for number in range(rounds + 1):  # the first warms caches and connections
            plain = await _copy_tcp(int(port), manifest)
            rates = {n: await _fetch(transport, peers[:n], manifest) for n in PEERS}
            print(f"round {number} of {rounds} …", file=sys.stderr, flush=True)
            if number:
                tcp.append(plain)
                for count, rate in rates.items():
                    fetched[count].append(rate)
    return tcp, fetched


async def _fetch(transport: P2pdTransport, peers: Sequence[PeerId], manifest: Manifest) -> float:
    [file] = [file for file in manifest.files if file.name == SINGLE]
    path = Path(tempfile.mkdtemp(prefix="weights-", dir=SCRATCH))
    try:
        start_s = time.perf_counter()
        partial = PartialFolder.create(path, manifest)
        missing = partial.want(Position(SINGLE, number) for number in range(len(file.chunks)))
        await fetch_chunks(
            lambda peer: transport.open(peer, PROTOCOL, timeout_s=TIMEOUT_S),
            peers,
            manifest.model,
            missing,
            partial.keep,
        )
        await asyncio.to_thread(partial.flush)
        return file.size_bytes / 1e6 / (time.perf_counter() - start_s)
    finally:
        shutil.rmtree(path)


async def _copy_tcp(port: int, manifest: Manifest) -> float:
    """Read, hash and write chunk by chunk; the thread works while the next chunk comes in."""
    [file] = [file for file in manifest.files if file.name == SINGLE]
    with tempfile.NamedTemporaryFile(dir=SCRATCH) as copy:

        def store(chunk: bytes, expected: str) -> None:
            if hashlib.sha256(chunk).hexdigest() != expected:
                raise ValueError("the copy is wrong")
            copy.write(chunk)

        start_s = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=CHUNK_BYTES)
        left_bytes = file.size_bytes
        async with asyncio.TaskGroup() as group:
            storing: asyncio.Task[None] | None = None
            for expected in file.chunks:
                chunk = await reader.readexactly(min(CHUNK_BYTES, left_bytes))
                left_bytes -= len(chunk)
                if storing is not None:
                    await storing
                storing = group.create_task(asyncio.to_thread(store, chunk, expected))
        await asyncio.to_thread(copy.flush)
        await asyncio.to_thread(os.fsync, copy.fileno())
        taken_s = time.perf_counter() - start_s
        writer.close()
        return file.size_bytes / 1e6 / taken_s


@contextlib.asynccontextmanager
async def _senders(count: int, folder: Path, *arguments: str) -> AsyncIterator[list[str]]:
    """Processes that send the folder's weights, and the line by which each says where."""
    command = (sys.executable, str(Path(__file__).resolve()), "--send", str(folder), *arguments)
    async with contextlib.AsyncExitStack() as stack:
        lines = []
        for _ in range(count):
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
            stack.push_async_callback(process.wait)
            stack.callback(process.kill)
            lines.append(process)
        yield [(await _line(process)) for process in lines]


async def _line(process: asyncio.subprocess.Process) -> str:
    if process.stdout is None:
        raise RuntimeError("a sender without an output")
    async with asyncio.timeout(TIMEOUT_S):
        return (await process.stdout.readline()).decode().strip()


async def _send_blobs(folder: Path) -> None:
    transport = await P2pdTransport.start(Key(os.urandom(SEED_BYTES)))
    async with BlobServer(transport) as server:
        server.add(FolderShelf(folder, _manifest(folder)))
        print(transport.addresses()[0], flush=True)
        await asyncio.Event().wait()


async def _send_tcp(folder: Path) -> None:
    async def send(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with (
            await asyncio.to_thread(open, folder / SINGLE, "rb") as file,
            contextlib.suppress(OSError),
        ):
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                writer.write(chunk)
                await writer.drain()  # fails once the reader has enough
        writer.close()

    server = await asyncio.start_server(send, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def _manifest(folder: Path) -> Manifest:
    from gennode.engine.checkpoint.weights import open_model

    return open_model(folder, cache=CACHE / "hashes").manifest


def _pack(folder: Path) -> tuple[float, float, float]:
    """How much smaller packed weights are, and MB/s to pack and to unpack them."""
    whole_bytes = packed_bytes = 0
    pack_s = unpack_s = 0.0
    with open(folder / SINGLE, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            start_s = time.perf_counter()
            packed = planes.pack(chunk)
            packed_s = time.perf_counter()
            if packed is not None and planes.unpack(packed, len(chunk)) != chunk:
                raise ValueError("a chunk does not survive its packing")
            unpack_s += time.perf_counter() - packed_s
            pack_s += packed_s - start_s
            whole_bytes += len(chunk)
            packed_bytes += len(packed or chunk)
    whole_mb = whole_bytes / 1e6
    return whole_bytes / packed_bytes, whole_mb / pack_s, whole_mb / unpack_s


if __name__ == "__main__":
    main()
