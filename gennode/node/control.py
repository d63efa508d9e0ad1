"""Asking a running node for its status, and telling it to leave: a unix socket of its user's.

Who connects writes one line, a request in JSON. `Tell` is answered with the status; `Leave` with
a line each time that the number of sessions changes, until the node goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from gennode.errors import NetworkError
from gennode.mesh.links.limits import Use
from gennode.node.live import TICK_S, LiveNode
from gennode.node.stopping import DRAIN_LIMIT_S, Stop
from gennode.wire.announcement import Hosting
from gennode.wire.fields import Reach
from gennode.wire.ids import ModelId, PeerId, Span

MAX_STATUS_BYTES = 64 * 1024 * 1024  # 4,096 workers, each with 8 models of 64 spans
ANSWER_TIMEOUT_S = 5.0
LEAVE_TIMEOUT_S = DRAIN_LIMIT_S + ANSWER_TIMEOUT_S


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
    is_leaving: bool = False
    """Whether it only waits for its sessions to go over to others."""


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
        is_leaving=node.is_leaving,
    )


class Tell(msgspec.Struct, frozen=True, tag=True):
    """What is your status?"""


class Leave(msgspec.Struct, frozen=True, tag=True):
    """Hand your sessions over and leave; or leave `at_once`."""

    at_once: bool = False


class Leaving(msgspec.Struct, frozen=True):
    """How far a node is that leaves. `is_over`: it waits for these sessions no longer."""

    sessions: int
    is_over: bool


@asynccontextmanager
async def answering(node: LiveNode, path: Path, stop: Stop | None) -> AsyncIterator[None]:
    """Answer at the socket at `path` for as long as the context lasts.

    `stop`: how the node can be told to leave; without one it refuses to be told.
    """
    over = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, ValueError, msgspec.DecodeError):
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                request = msgspec.json.decode(await reader.readline(), type=Tell | Leave)
            if isinstance(request, Tell):
                writer.write(msgspec.json.encode(status_of(node)))
            elif stop is not None:
                stop.tell(at_once=request.at_once)
                await _follow(node, over, writer)
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    path.chmod(0o600)
    async with server:
        try:
            yield
        finally:
            over.set()


async def _follow(node: LiveNode, over: asyncio.Event, writer: asyncio.StreamWriter) -> None:
    """Tell of the sessions of a node that leaves."""
    told = -1
    while not over.is_set():
        if node.machine.hosted_sessions != told:
            told = node.machine.hosted_sessions
            writer.write(msgspec.json.encode(Leaving(told, is_over=False)) + b"\n")
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), TICK_S)
    writer.write(msgspec.json.encode(Leaving(node.machine.hosted_sessions, is_over=True)) + b"\n")


async def ask_status(path: str) -> NodeStatus:
    """The status of the node whose card names this socket; NetworkError if it won't tell."""
    async with _asked(path, Tell()) as reader, asyncio.timeout(ANSWER_TIMEOUT_S):
        return msgspec.json.decode(await reader.read(-1), type=NodeStatus)


async def tell_to_leave(path: str, *, at_once: bool, on_waiting: Callable[[int], None]) -> int:
    """Have the node leave whose card names this socket; how many sessions it left behind.

    `on_waiting` is told for how many it waits, whenever that changes. NetworkError if it does
    not answer.
    """
    async with _asked(path, Leave(at_once)) as reader, asyncio.timeout(LEAVE_TIMEOUT_S):
        while True:
            leaving = msgspec.json.decode(await reader.readline(), type=Leaving)
            if leaving.is_over:
                return leaving.sessions
            if leaving.sessions:
                on_waiting(leaving.sessions)


@asynccontextmanager
async def _asked(path: str, request: Tell | Leave) -> AsyncIterator[asyncio.StreamReader]:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path, limit=MAX_STATUS_BYTES)
        try:
            writer.write(msgspec.json.encode(request) + b"\n")
            yield reader
        finally:
            writer.close()
    except (OSError, TimeoutError, ValueError, msgspec.DecodeError) as error:
        raise NetworkError(
            f"the node does not answer at {path}",
            hint="if it is frozen, let it go on (kill -CONT), or end it (kill -KILL)",
        ) from error
