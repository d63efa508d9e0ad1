"""A live node on its transport: both start together, and end together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gennode.errors import NetworkError
from gennode.node.actions import Opened, Rerouted
from gennode.node.control import answering
from gennode.node.live import LiveNode
from gennode.node.transports import TransportName, start_transport
from gennode.wire.messages import CodecName
from gennode.wire.signing import Key


@dataclass(frozen=True)
class Running:
    """A node that runs. `status_socket`: the unix socket that answers with its status."""

    node: LiveNode
    status_socket: Path


@asynccontextmanager
async def running(
    key: Key,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    transport_name: TransportName = "p2pd",
    codec_name: CodecName = "int8-outlier",
    on_event: Callable[[Opened | Rerouted], None] = lambda _event: None,
) -> AsyncIterator[Running]:
    """A node that listens on `host` and `port` (0: any free one).

    If the transport dies, so does the node, with a NetworkError that has its last words.
    """
    nodes: list[LiveNode] = []

    def on_exit(reason: str) -> None:
        for node in nodes:
            node.fail(NetworkError(reason, hint="start the node again"))

    transport = await start_transport(transport_name, key, host=host, port=port, on_exit=on_exit)
    path = transport.folder / "status"
    try:
        async with LiveNode(transport, key, codec_name=codec_name, on_event=on_event) as node:
            nodes.append(node)
            async with answering(node, path):
                yield Running(node, path)
    finally:
        await transport.close()
