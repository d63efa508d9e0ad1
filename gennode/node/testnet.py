"""A swarm of worker processes on this machine: raised, watched, hurt and taken down."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gennode.errors import LocalError, ResourceError, UsageError
from gennode.node.state import NodeCard, StateFolder
from gennode.wire.ids import Span

START_LIMIT_S = 120.0  # loading a few layers of a large model from a cold disk
HAND_OVER_S = 2.0  # without sessions a worker is gone by then
STOP_LIMIT_S = 10.0
POLL_S = 0.05
LOG_TAIL_BYTES = 2000
MAX_WORKERS = 64
_MODEL = "model"  # the file that tells which


@dataclass(frozen=True)
class WorkerOptions:
    """How each worker process is started; None leaves a choice to `gennode join`."""

    model: str
    memory: str | None = None
    threads: int | None = None
    leash: bool = False
    """Whether the workers leave when this process ends, however it ends."""
    shares: tuple[float, ...] = ()
    """How much of the time each worker computes at most; the last counts for all that follow."""
    precision: str = "auto"


class Testnet:
    """Worker processes `worker-1` … `worker-N`, each with a state folder below one folder."""

    __test__ = False  # pytest: this is no test class

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[subprocess.Popen[bytes]] = []  # ours to wait for, once they end

    def up(
        self,
        spans: Sequence[Span | None],
        options: WorkerOptions,
        *,
        on_ready: Callable[[str, NodeCard], None] = lambda _name, _card: None,
    ) -> dict[str, NodeCard]:
        """Start one worker per span; the first is the others' bootstrap. Returns them in order.
        A worker whose span is None finds its place itself, and moves when others come or go.

        ResourceError with the end of its log if one does not get ready.
        """
        if not 1 <= len(spans) <= MAX_WORKERS:
            raise UsageError(f"a testnet has 1 to {MAX_WORKERS} workers")
        if self.cards():
            raise UsageError(f"a testnet runs in {self.folder}", hint="gennode testnet down")
        if len(options.shares) > len(spans):
            raise UsageError(f"{len(options.shares)} shares are too many for {len(spans)} workers")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _MODEL).write_text(options.model, encoding="utf-8")
        cards: dict[str, NodeCard] = {}
        started: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for index, span in enumerate(spans, start=1):
                bootstrap = cards["worker-1"].addresses if cards else ()
                started[f"worker-{index}"] = self._start(index, span, options, bootstrap)
                if index == 1:  # the others need its address; then they start side by side
                    cards |= self._wait_ready(started, on_ready)
            cards |= self._wait_ready(started, on_ready)
        except BaseException:
            for process in started.values():
                process.kill()
            self.down()
            raise
        return {name: cards[name] for name in sorted(cards, key=lambda name: (len(name), name))}

    def add(
        self,
        options: WorkerOptions,
        *,
        on_ready: Callable[[str, NodeCard], None] = lambda _name, _card: None,
    ) -> dict[str, NodeCard]:
        """Start one more worker, which finds its place itself; UsageError if none runs."""
        cards = self.cards()
        if not cards:
            raise UsageError("no testnet runs", hint="start one: gennode testnet up")
        numbers = [int(path.name.removeprefix("worker-")) for path in self.folder.glob("worker-*")]
        index = max(numbers) + 1
        if index > MAX_WORKERS:
            raise UsageError(f"a testnet has 1 to {MAX_WORKERS} workers in its life")
        bootstrap = next(iter(cards.values())).addresses
        started = {f"worker-{index}": self._start(index, None, options, bootstrap)}
        return self._wait_ready(started, on_ready)

    @property
    def model(self) -> str | None:
        """The model that it was started with; None if none ever was."""
        path = self.folder / _MODEL
        return path.read_text(encoding="utf-8") if path.exists() else None

    def cards(self) -> dict[str, NodeCard]:
        """The workers that run, by name."""
        found = {}
        for path in sorted(self.folder.glob("worker-*"), key=lambda path: (len(path.name), path)):
            card = StateFolder(path).card()
            if card is not None:
                found[path.name] = card
        return found

    def card(self, name: str) -> NodeCard:
        """One worker that runs; UsageError if it does not."""
        card = self.cards().get(name)
        if card is None:
            running = ", ".join(self.cards()) or "none"
            raise UsageError(f"{name!r} does not run here", hint=f"name one that runs: {running}")
        return card

    def send_signal(self, name: str, number: signal.Signals) -> NodeCard:
        """Send a signal to one worker's process; UsageError if it does not run."""
        card = self.card(name)
        os.kill(card.pid, number)
        return card

    def down(self) -> list[str]:
        """Stop every worker, kindly at first; returns their names."""
        stopping = self.cards()
        for card in stopping.values():
            _signal(card.pid, signal.SIGCONT)  # a stopped process can't hear the next one
        # The second time they leave at once: sessions have nobody left to go over to.
        for limit_s in (HAND_OVER_S, STOP_LIMIT_S):
            for name, card in stopping.items():
                if self._runs(name):
                    _signal(card.pid, signal.SIGTERM)
            self._await_end(stopping, limit_s)
        for name, card in stopping.items():
            if self._runs(name):
                _signal(card.pid, signal.SIGKILL)
        while self._children:
            child = self._children.pop()
            child.kill()
            child.wait()
            if child.stdin is not None:
                child.stdin.close()
        return list(stopping)

    def _await_end(self, names: Iterable[str], limit_s: float) -> None:
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s and (
            any(self._runs(name) for name in names)
            or any(child.poll() is None for child in self._children)
        ):
            time.sleep(POLL_S)

    def _runs(self, name: str) -> bool:
        return StateFolder(self.folder / name).is_running()

    def log_tail(self, name: str) -> str:
        """The end of a worker's log."""
        try:
            data = (self.folder / name / "node.log").read_bytes()
        except FileNotFoundError:
            return ""
        return data[-LOG_TAIL_BYTES:].decode(errors="replace").strip()

    def _start(
        self, index: int, span: Span | None, options: WorkerOptions, bootstrap: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        folder = self.folder / f"worker-{index}"
        StateFolder(folder).prepare()
        command = [sys.executable, "-m", "gennode", "join", "--state", str(folder)]
        command += ["--model", options.model, "--layers", str(span) if span else "auto"]
        for address in bootstrap:
            command += ["--bootstrap", address]
        command += ["--precision", options.precision]
        if options.memory is not None:
            command += ["--memory", options.memory]
        if options.threads is not None:
            command += ["--threads", str(options.threads)]
        if options.shares:
            share = options.shares[min(index, len(options.shares)) - 1]
            command += ["--share", str(share)]
        if options.leash:
            command.append("--leash")
        with open(folder / "node.log", "wb") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if options.leash else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C meant for the caller is not meant for it
            )
        self._children.append(child)
        return child

    def _wait_ready(
        self,
        started: dict[str, subprocess.Popen[bytes]],
        on_ready: Callable[[str, NodeCard], None],
    ) -> dict[str, NodeCard]:
        """Take out of `started` the workers that have got ready: all of them, or an error."""
        ready: dict[str, NodeCard] = {}
        deadline_s = time.monotonic() + START_LIMIT_S
        while started:
            for name, process in list(started.items()):
                card = StateFolder(self.folder / name).card()
                if card is not None:
                    ready[name] = card
                    on_ready(name, card)
                    del started[name]
                elif process.poll() is not None or time.monotonic() > deadline_s:
                    raise self._failed(name, process)
            time.sleep(POLL_S)
        return ready

    def _failed(self, name: str, process: subprocess.Popen[bytes]) -> ResourceError:
        process.kill()
        return ResourceError(
            f"{name} did not get ready (exit code {process.wait()}):\n{self.log_tail(name)}",
            hint=f"its whole log is {self.folder / name / 'node.log'}",
        )

    def remove(self) -> None:
        """Delete what is kept of a testnet that is down, but for answers that were interrupted."""
        if self.cards():
            raise LocalError("a running testnet's folder can't be removed")
        for path in self.folder.glob("worker-*"):
            shutil.rmtree(path, ignore_errors=True)
        (self.folder / _MODEL).unlink(missing_ok=True)
        for path in (StateFolder(self.folder).sessions, self.folder):
            with suppress(OSError):  # something is left in it, or it was never there
                path.rmdir()


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
