"""Real processes that tests hurt: workers, somebody who asks them, and where they all run.

With root and namespaces every process has a host of its own in a lab, so that links can be cut;
without, all share the machine's loopback, and tests that need links of their own skip.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from gennode.node.control import NodeStatus, ask_status
from gennode.node.state import NodeCard, StateFolder
from gennode.wire.ids import PeerId, Span
from localnet import namespaces
from localnet.natlab import Lab, Link

ROOT = Path(__file__).resolve().parents[2]
MODEL = "gennode-small"
SPANS = (Span(0, 1), Span(1, 3), Span(0, 1), Span(1, 3))  # two workers, and a replica of each
ASKER = "asker"
PORT = 4001  # the same after a restart, so that a worker is found where it was
PROMPT = "count from 12 to 40 ="
TOKENS = 60
WAIT_S = 60.0  # a limit for tests that hang, of no other meaning

LOOK_EVERY_S = 0.03
_NEVER = threading.Event()

Prefix = Sequence[str]


def without(*trial: str) -> str:
    """Why a program that tests need can't be run as in `trial`; empty if it can."""
    if shutil.which(trial[0]) is None:
        return f"to install first: {trial[0]}"
    tried = subprocess.run(trial, capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


def eventually(holds: Callable[[], bool], what: str, limit_s: float = WAIT_S) -> float:
    """Look again and again until something holds; how long that took."""
    start_s = time.monotonic()
    while not holds():
        assert time.monotonic() - start_s < limit_s, f"in {limit_s:g} s it never was: {what}"
        _NEVER.wait(LOOK_EVERY_S)  # so that looking takes no processor from what is looked at
    return time.monotonic() - start_s


def measured(fault: str, promised: str, seen: str) -> None:
    """Tell what a fault did: for people, never for a verdict."""
    print(f"\n| {fault} | {promised} | {seen} |")


@dataclass
class Worker:
    """One worker, over all of its processes' lives. `prefix`: what its command is put behind."""

    folder: Path
    span: Span
    bootstrap: Callable[[], Iterable[str]] = lambda: ()
    prefix: Prefix = ()
    options: tuple[str, ...] = ()
    model: str = MODEL
    process: subprocess.Popen[bytes] | None = None
    started_ms: int = 0

    def start(self, prefix: Prefix = ()) -> None:
        """Begin a process, or a new one after the last has ended."""
        self.stop()
        StateFolder(self.folder).prepare()
        command = [*self.prefix, *prefix, sys.executable, "-m", "gennode", "join"]
        command += ["--state", str(self.folder), "--model", self.model, "--layers", str(self.span)]
        command += ["--memory", f"{self.span.layers}M"]  # for these layers, and no others
        command += ["--threads", "1", "--precision", "fp32", "--leash", *self.options]
        for address in self.bootstrap():
            command += ["--bootstrap", address]
        self.started_ms = time.time_ns() // 1_000_000
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,  # a leash: whatever ends the tests, it does not outlive them
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ready(self) -> NodeCard:
        """Wait until it serves."""
        cards: list[NodeCard] = []

        def is_ready() -> bool:
            assert self.runs, f"it ended with {self.ended()}:\n{self.log()}"
            cards.extend(filter(None, [self.card]))
            return bool(cards)

        eventually(is_ready, "the worker is ready")
        return cards[0]

    def ended(self) -> int:
        """Wait until its process has ended; the exit code."""
        assert self.process is not None
        code = self.process.wait(WAIT_S)
        if self.process.stdin is not None:
            self.process.stdin.close()
        return code

    @property
    def runs(self) -> bool:
        """Whether it has a process."""
        return self.process is not None and self.process.poll() is None

    @property
    def card(self) -> NodeCard | None:
        """What it leaves for others on the machine, once it is ready."""
        return StateFolder(self.folder).card()

    @property
    def pid(self) -> int:
        """The node's own process, which may be a child of what was started."""
        card = self.card
        assert card is not None
        return card.pid

    @property
    def compute_pid(self) -> int | None:
        """The process in which its layers are computed; None while there is none."""
        for child in psutil.Process(self.pid).children():
            with suppress(psutil.NoSuchProcess):
                if "gennode.engine.child" in child.cmdline():
                    return int(child.pid)
        return None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the node."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.ended()

    def status(self) -> NodeStatus:
        """What it says of itself."""
        card = self.ready()
        return asyncio.run(ask_status(card.control))

    def log(self) -> str:
        """All that its processes wrote."""
        return (self.folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        """Let it go, kindly at first."""
        if self.process is None:
            return
        if self.process.stdin is not None:
            self.process.stdin.close()
        card = self.card
        if card is not None:
            with suppress(ProcessLookupError):
                os.kill(card.pid, signal.SIGCONT)
                os.kill(card.pid, signal.SIGTERM)
        else:
            self.process.kill()
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Asker:
    """The owner's process."""

    def __init__(self, prefix: Prefix, addresses: Iterable[str], log: Path) -> None:
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "tests.faults.asker", *addresses],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._log = log
        self._take("ready")

    def ask(
        self, *, pause_at: Sequence[int] = (), prompt: str = PROMPT, tokens: int = TOKENS
    ) -> None:
        """Begin an answer."""
        self._say(ask=prompt, max_tokens=tokens, pause_at=list(pause_at))

    def paused(self) -> list[tuple[PeerId, Span]]:
        """Wait for a pause; the path of that moment."""
        return [(PeerId(peer), Span(*span)) for peer, span in self._take("paused")["path"]]

    def go(self) -> None:
        """End a pause."""
        self._say(go=True)

    def answer(self) -> dict[str, Any]:
        """Wait for the answer."""
        return self._take("answer")

    def error(self) -> dict[str, Any]:
        """Wait for the error that there is instead of an answer."""
        return self._take("error")

    def known(self) -> dict[PeerId, int]:
        """The workers that it knows of, each with when it began, in ms since the epoch."""
        self._say(known=True)
        begun = self._take("known")["begun_ms"].items()
        return {PeerId(peer): int(begun_ms) for peer, begun_ms in begun}

    def waiting_s(self) -> float:
        """For how long it has waited for a token by now."""
        self._say(waiting=True)
        return float(self._take("waiting")["seconds"])

    def _say(self, **request: Any) -> None:
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)

    def _take(self, kind: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the asker ended:\n{self._log.read_text(errors='replace')}"
        told: dict[str, Any] = json.loads(line)
        assert told["kind"] == kind, told
        return told

    def kill(self) -> None:
        """SIGKILL: it vanishes without a word."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


class Stage:
    """Four workers, an asker, and what they answer when nobody hurts them."""

    def __init__(self, folder: Path, exits: ExitStack) -> None:
        self.folder = folder
        names = [f"worker{number}" for number in range(1, len(SPANS) + 1)]
        self.lab: Lab | None = None
        if not namespaces.available():
            hosts = dict.fromkeys((*names, ASKER), Link())
            self.lab = exits.enter_context(Lab({}, hosts))
        self.workers = [
            Worker(
                folder / name,
                span,
                self._addresses,
                self._prefix(name),
                ("--host", self.lab.address(name), "--port", str(PORT)) if self.lab else (),
            )
            for name, span in zip(names, SPANS, strict=True)
        ]
        for worker in self.workers:
            exits.callback(worker.stop)
        self.workers[0].start()
        self.workers[0].ready()
        for worker in self.workers[1:]:
            worker.start()
        for worker in self.workers:
            worker.ready()
        self.asker = self.new_asker()
        exits.callback(self.asker.kill)
        self.heal()
        self.asker.ask()
        self.truth = self.asker.answer()["tokens"]
        assert len(self.truth) > TOKENS // 2

    def new_asker(self) -> Asker:
        """Another process that asks."""
        return Asker(self._prefix(ASKER), self._addresses(), self.folder / ASKER)

    def _prefix(self, name: str) -> Prefix:
        return self.lab.prefix(name) if self.lab else ()

    def _addresses(self) -> list[str]:
        cards = [worker.card for worker in self.workers if worker.runs]
        return [card.addresses[0] for card in cards if card is not None]

    def heal(self) -> None:
        """Bring back whoever is gone, and wait until the asker knows them all."""
        gone = [worker for worker in self.workers if not worker.runs]
        for worker in gone:
            worker.start()
        started_ms = {worker.ready().peer: worker.started_ms for worker in self.workers}

        def all_are_known() -> bool:
            known = self.asker.known()
            return all(known.get(peer, 0) >= at_ms for peer, at_ms in started_ms.items())

        eventually(all_are_known, "the asker knows all workers")

    def on(self, path: list[tuple[PeerId, Span]]) -> list[Worker]:
        """The workers of a path, in its order."""
        by_peer = {card.peer: worker for worker in self.workers if (card := worker.card)}
        return [by_peer[peer] for peer, _ in path]

    def others(self, path: list[tuple[PeerId, Span]]) -> list[Worker]:
        """Those that are not on it."""
        used = self.on(path)
        return [worker for worker in self.workers if worker not in used]
