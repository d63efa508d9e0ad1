"""Running the command line: in this process where it ends by itself, else in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gennode.cli import run

LIMIT_S = 60.0
NOBODY = "/ip4/127.0.0.1/tcp/{port}/p2p/12D3KooWGRUVh6uPGQyb5FEpmYsfsDSq8tBJbGQCSKWqmBFiHUi4"


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def gennode(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process."""

    def call(*arguments: str | Path) -> Ended:
        code = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Ended(code, out, err)

    return call


@contextmanager
def process(*arguments: str | Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, which is gone when the context ends."""
    command = [sys.executable, "-m", "gennode", *map(str, arguments)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **variables},
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def finish(child: subprocess.Popen[str]) -> Ended:
    """Wait for a process to end by itself."""
    out, err = child.communicate(timeout=LIMIT_S)
    return Ended(child.returncode, out, err)
