"""The status of a running node, over a unix socket that only its user can open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from gennode.errors import NetworkError
from gennode.mesh.links.limits import Use
from gennode.node.live import LiveNode
from gennode.wire.announcement import Hosting
from gennode.wire.fields import Reach
from gennode.wire.ids import ModelId, PeerId, Span

MAX_STATUS_BYTES = 64 * 1024 * 1024  # 4,096 workers, each with 8 models of 64 spans
ANSWER_TIMEOUT_S = 5.0


class HostingView(msgspec.Struct, frozen=True):
    """What a worker hosts of one model."""

    model: ModelId
    spans: tuple[Span, ...]
    spare_layers: int
    layer_time_s: float
    compute_class: str

    @classmethod
    def of(cls, hosting: Hosting) -> HostingView:
        """The fields that people ask for, with their names."""
        return cls(**{name: getattr(hosting, name) for name in cls.__struct_fields__})


class WorkerView(msgspec.Struct, frozen=True):
    """One worker, as the directory knows it."""

    peer: PeerId
    hosting: tuple[HostingView, ...]
    sessions: int
    relay: bool
    reach: Reach


class NodeStatus(msgspec.Struct, frozen=True):
    """A node and all it knows of the swarm."""

    peer: PeerId
    addresses: tuple[str, ...]
    sessions: int
    steps: int
    compute_s: float
    codec_s: float
    step_bytes: int
    workers: tuple[WorkerView, ...]
    rival: tuple[str, ...] | None = None
    """Addresses of another node that runs with this one's key."""
    limits: tuple[Use, ...] = ()


def status_of(node: LiveNode) -> NodeStatus:
    """What `gennode status` shows."""
    workers = tuple(
        WorkerView(
            peer=seen.peer,
            hosting=tuple(HostingView.of(hosting) for hosting in seen.hosting),
            sessions=seen.sessions,
            relay=seen.relay,
            reach=seen.reach,
        )
        for seen in node.live()
    )
    work, rival = node.work, node.machine.rival
    return NodeStatus(
        peer=node.machine.peer,
        addresses=node.transport.addresses(),
        sessions=node.machine.hosted_sessions,
        steps=work.steps,
        compute_s=work.compute_s,
        codec_s=work.codec_s,
        step_bytes=node.step_bytes,
        workers=workers,
        rival=None if rival is None else rival.addresses,
        limits=node.uses(),
    )


@asynccontextmanager
async def answering(node: LiveNode, path: Path) -> AsyncIterator[None]:
    """Answer each connection to the socket at `path` with the node's status."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(msgspec.json.encode(status_of(node)))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(answer, path)
    path.chmod(0o600)
    async with server:
        yield


async def ask_status(path: str) -> NodeStatus:
    """The status of the node whose card names this socket; NetworkError if it won't tell."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path, limit=MAX_STATUS_BYTES)
            data = await reader.read(-1)
            writer.close()
        return msgspec.json.decode(data, type=NodeStatus)
    except (OSError, TimeoutError, msgspec.DecodeError) as error:
        raise NetworkError(
            f"the node does not answer at {path}", hint="is it stopped? start it again"
        ) from error
