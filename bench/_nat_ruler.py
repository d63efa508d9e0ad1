"""What a path of the lab takes at best: 8 KB there and back over plain TCP.

python -m bench._nat_ruler serve              prints a line when it listens
python -m bench._nat_ruler measure ADDRESS    prints the median, in seconds
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

from bench._nat_home import FRAME_BYTES, ROUND_TRIPS

PORT = 5000


async def serve() -> None:
    """Send everything back, until killed."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    everywhere = "0.0.0.0"  # noqa: S104 - within the lab
    async with await asyncio.start_server(echo, everywhere, PORT) as server:
        print("ready", flush=True)
        await server.serve_forever()


async def measure(address: str) -> float:
    """The median of some round trips on one connection."""
    reader, writer = await asyncio.open_connection(address, PORT)
    times = []
    for _ in range(1 + ROUND_TRIPS):
        start_s = time.perf_counter()
        writer.write(bytes(FRAME_BYTES))
        await reader.readexactly(FRAME_BYTES)
        times.append(time.perf_counter() - start_s)
    writer.close()
    return statistics.median(times[1:])


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve())
    else:
        print(asyncio.run(measure(sys.argv[2])))
