"""`gennode doctor`: what people and programs read, its exit codes, and faults of a process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gennode.cli.doctor import show
from gennode.errors import ModelError
from gennode.node.doctor.finding import fail, ok, skip, warn
from tests.cli.conftest import Command

MODEL = "gennode-small"

_FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
from gennode.cli import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def found(out: str) -> dict[str, Any]:
    """What `--json` said, by check."""
    told = json.loads(out)
    assert told["facts"]["wanted"]["model"]
    return {finding["check"]: finding for finding in told["findings"]}


def test_a_healthy_machine_ends_with_0(gennode: Command, state: Path) -> None:
    ended = gennode("doctor", "--model", MODEL, "--state", state)
    assert ended.code == 0, ended
    assert "✓ ok" in ended.out
    assert "! warn" in ended.out  # it listens on loopback
    assert "✗" not in ended.out
    assert "→ --host 0.0.0.0" in ended.out
    assert not state.exists()


def test_programs_get_findings_and_facts(gennode: Command, state: Path) -> None:
    ended = gennode("doctor", "--model", MODEL, "--state", state, "--json")
    assert ended.code == 0
    checks = found(ended.out)
    assert checks["model"]["level"] == "ok"
    assert checks["bootstrap"]["level"] == "skip"
    assert json.loads(ended.out)["facts"]["model"]["layers"] == 3


def test_the_compute_process_and_its_device_are_told_of(gennode: Command, state: Path) -> None:
    common = ("doctor", "--model", MODEL, "--state", state, "--json")
    ended = gennode(*common)
    checks, facts = found(ended.out), json.loads(ended.out)["facts"]
    assert checks["compute process"]["level"] in ("ok", "warn")
    assert facts["compute"]["jail"]["words"] in checks["compute process"]["words"]
    assert {checks[name]["level"] for name in ("device", "speed", "layer")} == {"ok"}
    assert list(facts["compute"]["report"]["layer_times_s"]) == ["1", "8", "32", "128"]

    ended = gennode(*common, "--device", "cuda:99")
    assert ended.code == 7
    assert found(ended.out)["device"]["fix"]
    assert json.loads(ended.out)["facts"]["jail"]


def test_the_first_failure_gives_the_exit_code(gennode: Command, state: Path) -> None:
    """The model comes before the port, so that it is 3 and not 4."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        common = ("doctor", "--state", state, "--port", port, "--json", "--model")
        ended = gennode(*common, "/no/such/model")
        assert ended.code == 3
        checks = found(ended.out)
        assert checks["port"]["exit_code"] == gennode(*common, MODEL).code == 4
        assert checks["model"]["fix"]


def test_a_low_limit_of_open_files_is_found(state: Path) -> None:
    command = [sys.executable, "-c", _FEW_FILES, "doctor", "--json", "--model", MODEL]
    ended = subprocess.run(
        [*command, "--state", str(state)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 6, ended
    finding = found(ended.stdout)["open files"]
    assert finding["level"] == "fail"
    assert "100" in finding["words"]
    assert "hard limit" in finding["fix"]


def test_words_from_outside_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        (
            ok("key", "[bold]12D3Koo"),
            warn("clock", "[/foo] behind", "set [it]"),
            fail("model", "gone", "look", ModelError),
            skip("nat", "unknown"),
        )
    )
    out = capsys.readouterr().out
    for word in ("✓ ok", "[bold]12D3Koo", "! warn", "[/foo]", "→ set [it]", "✗ fail", "– skip"):
        assert word in out
    assert "1 ok, 1 warn, 1 fail, 1 skip" in out


def test_a_narrow_terminal_loses_no_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "48")
    address = "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
    show((ok("bootstrap", address),))
    out = capsys.readouterr().out
    lines = out.splitlines()[:-1]
    assert max(map(len, lines)) <= 48
    assert address in "".join(line.rsplit(maxsplit=1)[-1] for line in lines)
