"""Worker processes that a bench starts, hurts, and starts again from the same folder."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from gennode.errors import ResourceError
from gennode.node.state import NodeCard, StateFolder
from gennode.node.testnet import WorkerOptions
from gennode.sharding.capacity import account
from gennode.sharding.snapshots import formats
from gennode.wire.ids import PeerId, Span
from gennode.wire.manifest import ModelShape

START_LIMIT_S = 120.0  # many at once, on two cores
STOP_LIMIT_S = 15.0  # a worker that leaves hands its sessions over first
LOG, LOG_TAIL_BYTES = "node.log", 2000


@dataclass(frozen=True)
class Running:
    """A worker that is ready, and its process."""

    name: str
    span: Span
    card: NodeCard
    process: asyncio.subprocess.Process
    born_ms: int
    """No later than its process began; its announcements tell of a later instance."""

    @property
    def is_alive(self) -> bool:
        """Whether its process has not ended."""
        return self.process.returncode is None


def room_for(layers: int, shape: ModelShape, compute_class: str = "int8-cpu") -> int:
    """Bytes in which so many layers fit, and not one more: a worker with more room may take on
    those of a neighbour that seems lost, and with other hops between codecs come other tokens."""
    sizes = formats(compute_class)
    assert sizes is not None
    each = account(shape, 0, weight_bytes=sizes[0], number_bytes=sizes[1]).layer_bytes
    return (layers + 1) * each - 1


class WorkerProcesses:
    """`gennode join` once per name; all are gone when the context ends, however it ends."""

    def __init__(self, folder: Path, options: WorkerOptions) -> None:
        self._folder = folder
        self._options = options
        self._processes: list[asyncio.subprocess.Process] = []
        self.running: dict[str, Running] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            _send(process, signal.SIGCONT)  # a stopped process can't hear the next one
            _send(process, signal.SIGTERM)
        waits = [asyncio.create_task(process.wait()) for process in self._processes]
        if waits:
            await asyncio.wait(waits, timeout=STOP_LIMIT_S)
        for process in self._processes:
            _send(process, signal.SIGKILL)
        await asyncio.gather(*waits)

    async def start_all(self, spans: Mapping[str, Span]) -> None:
        """Start workers: the first is the others' bootstrap, and those start side by side."""
        (first, span), *others = spans.items()
        await self.start(first, span)
        async with asyncio.TaskGroup() as group:
            for name, span in others:
                group.create_task(self.start(name, span))

    async def start(self, name: str, span: Span) -> Running:
        """Start a worker and wait until it serves; ResourceError with the end of its log."""
        state, options = StateFolder(self._folder / name), self._options
        state.prepare()
        words = ["--state", str(state.path), "--model", options.model, "--layers", str(span)]
        words += ["--precision", options.precision, "--json", "--leash"]
        if options.memory is not None:
            words += ["--memory", options.memory]
        if options.threads is not None:
            words += ["--threads", str(options.threads)]
        for address in self.addresses():
            words += ["--bootstrap", address]
        born_ms = time.time_ns() // 1_000_000
        process = await self._spawn(words, state.path / LOG)
        assert process.stdout is not None
        async with asyncio.timeout(START_LIMIT_S):
            await process.stdout.readline()  # it is ready, or has ended
        card = state.card()
        if card is None:
            told = (state.path / LOG).read_bytes()[-LOG_TAIL_BYTES:]
            raise ResourceError(f"{name} did not get ready:\n{told.decode(errors='replace')}")
        self.running[name] = running = Running(name, span, card, process, born_ms)
        return running

    async def _spawn(self, words: Sequence[str], log: Path) -> asyncio.subprocess.Process:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gennode", "join", *words,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=file,
                start_new_session=True,  # a Ctrl-C is for the bench, which then ends this
            )  # fmt: skip
        finally:
            os.close(file)
        self._processes.append(process)
        return process

    def addresses(self) -> tuple[str, ...]:
        """One address of each worker that lives."""
        return tuple(one.card.addresses[0] for one in self.running.values() if one.is_alive)

    def of(self, peer: PeerId) -> Running:
        """The worker with this key."""
        return next(one for one in self.running.values() if one.card.peer == peer)

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a worker's process."""
        _send(self.running[name].process, number)

    async def ended(self, name: str) -> None:
        """Wait until a worker's process is gone; TimeoutError if it stays."""
        async with asyncio.timeout(STOP_LIMIT_S):
            await self.running[name].process.wait()

    async def again(self, name: str) -> Running:
        """Start a worker that has ended, with the layers and the key that it had."""
        return await self.start(name, self.running[name].span)


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)
