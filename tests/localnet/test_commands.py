"""The lab from a shell: up, exec, down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from localnet import namespaces
from localnet.natlab import available

ROOT = Path(__file__).resolve().parents[2]
NATLAB = [sys.executable, "-m", "localnet.commands"]

needs_lab = pytest.mark.skipif(bool(available()), reason=f"NO NAT LAB HERE: {available()}")


@contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process from the checkout; a test that fails doesn't wait for it."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def natlab(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*NATLAB, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@needs_lab
def test_a_lab_is_up_until_it_is_told() -> None:
    place = f"casa{os.getpid()}"  # so that no other run of these tests is meant
    arguments = ["up", "--home", f"{place}=symmetric:1", "--public", "plaza"]
    with running([*NATLAB, *arguments]) as lab:
        assert lab.stdout is not None
        plaza, casa, *_ = (lab.stdout.readline().split() for _ in range(3))
        assert plaza == ["plaza", "11.1.0.1"]
        assert casa == [place, "11.101.0.1", "192.168.101.10"]
        own = natlab("exec", place, "ip", "-o", "-4", "addr", "show", "eth0")
        assert "192.168.101.10/24" in own.stdout
        assert "--random-fully" in natlab("exec", f"{place}.router", "iptables-save").stdout
        assert "0 labs have a 'hut'" in natlab("exec", "hut", "true").stderr
        assert natlab("down", place).returncode == 0
        assert lab.wait() == -signal.SIGTERM
    assert namespaces.names(f"natlab-{lab.pid}.") == []


@needs_lab
def test_down_leaves_the_labs_of_others_alone() -> None:
    place = f"casa{os.getpid()}"
    script = (
        "import time\nfrom localnet.natlab import Lab, Link\n"
        f"with Lab({{}}, {{'{place}': Link()}}) as lab:\n"
        "    print(lab.family, flush=True)\n    while True: time.sleep(0.01)"
    )
    with running([sys.executable, "-c", script]) as other:
        assert other.stdout is not None
        family = other.stdout.readline().strip()
        assert natlab("down", place).returncode == 0
        assert namespaces.names(family) == [f"{family}{place}"]
    assert namespaces.names(family) == []


@pytest.mark.parametrize("words", [("--home", "a=attic"), ("--public", "A B"), ("--home", "a:-1")])
def test_what_makes_no_sense_is_said(words: tuple[str, str]) -> None:
    done = natlab("up", *words)
    assert done.returncode in {1, 2}
    assert "Error" in done.stderr
    assert "Traceback" not in done.stderr
