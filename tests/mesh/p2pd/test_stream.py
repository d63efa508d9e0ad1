"""A stream that is given up before it has come to be is given up all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gennode.mesh.p2pd.stream import DaemonStream


async def test_a_stream_that_is_being_accepted_can_be_aborted(tmp_path: Path) -> None:
    streams: list[DaemonStream] = []
    lost = asyncio.Event()

    def accept() -> DaemonStream:
        stream = DaemonStream(lambda _stream, _buffer: False, lambda _stream, _reason: lost.set())
        stream.abort()  # nothing is connected yet
        streams.append(stream)
        return stream

    path = str(tmp_path / "in")
    server = await asyncio.get_running_loop().create_unix_server(accept, path)
    async with server:
        reader, writer = await asyncio.open_unix_connection(path)
        assert await reader.read() == b""
        await lost.wait()
        writer.close()
        await writer.wait_closed()
    assert len(streams) == 1
