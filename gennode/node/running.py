"""A live node on its transport: both start together, and end together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gennode.errors import NetworkError
from gennode.mesh import handles
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.mesh.reach.observer import Observer
from gennode.node.actions import Opened, Rerouted
from gennode.node.control import answering
from gennode.node.hops.spill import DiskStore
from gennode.node.live import LiveNode
from gennode.node.peers import PeerBook
from gennode.node.reaching import Reaching
from gennode.node.stopping import Stop
from gennode.node.transports import Listening, start_transport
from gennode.wire.fields import CodecName
from gennode.wire.signing import Key


@dataclass(frozen=True)
class Running:
    """A node that runs. `status_socket`: the unix socket that answers with its status.

    `reaching`: how others reach it; None on a transport that knows no NATs.
    """

    node: LiveNode
    status_socket: Path
    reaching: Reaching | None

    async def settle(self) -> None:
        """Find out how others reach us; a relay proves that it carries what sessions need.

        NetworkError if it doesn't.
        """
        if self.reaching is not None:
            await self.reaching.settle()


@asynccontextmanager
async def running(
    key: Key,
    listening: Listening = Listening(),  # noqa: B008 - frozen
    *,
    codec_name: CodecName = "int8-outlier",
    on_event: Callable[[Opened | Rerouted], None] = lambda _event: None,
    peers: Path | None = None,
    spill: Path | None = None,
    stop: Stop | None = None,
) -> AsyncIterator[Running]:
    """A node that listens, and answers for its status.

    `peers`: the file by which it finds old acquaintances again; without one it keeps none.
    `spill`: the folder on whose disk frames go that take too much memory; without one they are
    given up. `stop`: how other programs of the same user can tell it to leave.

    If the transport dies, so does the node, with a NetworkError that has its last words.
    """
    handles.raise_limit()
    nodes: list[LiveNode] = []

    def on_exit(reason: str) -> None:
        for node in nodes:
            node.fail(NetworkError(reason, hint="start the node again"))

    transport = await start_transport(key, listening, on_exit=on_exit)
    path = transport.folder / "status"
    store = DiskStore(spill) if spill is not None else None
    try:
        async with LiveNode(
            transport,
            key,
            codec_name=codec_name,
            on_event=on_event,
            book=PeerBook(peers),
            store=store,
        ) as node:
            nodes.append(node)
            await Observer(transport, node.tasks, is_banned=node.links.is_banned).start()
            reaching = None
            if isinstance(transport, P2pdTransport):
                reaching = Reaching(node, transport)
                node.keep(reaching.keep())
            async with answering(node, path, stop):
                yield Running(node, path, reaching)
    finally:
        if store is not None:
            store.close()
        await transport.close()
