"""The whole command tree: help, JSON, exit codes, and how little `--help` loads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from gennode import errors
from gennode.cli import EXIT_CODES, INTERRUPTED, group
from tests.cli.conftest import Command

HEAVY = ("aiohttp", "asyncio", "numpy", "rich", "tokenizers", "torch")
_LOADED = """
import sys, time
from gennode.cli import run
assert run(["--help"]) == 0
print(sorted(set(sys.modules) & set(sys.argv[1:])), time.process_time(), file=sys.stderr)
"""


def _leaves(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _leaves(below, (*path, name))
    else:
        yield path


PATHS = list(_leaves(group, ()))


def _command(path: tuple[str, ...]) -> click.Command:
    command: click.Command = group
    for name in path:
        assert isinstance(command, click.Group)
        below = command.get_command(click.Context(command), name)
        assert below is not None
        command = below
    return command


def test_the_tree_has_what_is_documented() -> None:
    assert {path[0] for path in PATHS} == {
        "ask", "demo", "doctor", "join", "leave", "plan", "publish", "relay", "simulate",
        "status", "testnet",
    }  # fmt: skip
    below = {path[1] for path in PATHS if path[0] == "testnet"}
    assert below == {"add", "ask", "down", "kill", "leave", "status", "up"}


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_each_command_has_help_and_json(path: tuple[str, ...], gennode: Command) -> None:
    ended = gennode(*path, "--help")
    assert ended.code == 0
    assert "--json" in ended.out
    assert "Usage: gennode " + " ".join(path) in ended.out
    assert _command(path).help, "a command says what it does"


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_each_command_tells_a_wrong_option_as_json(path: tuple[str, ...], gennode: Command) -> None:
    ended = gennode(*path, "--no-such-option", "--json")
    assert ended.code == 2
    told = json.loads(ended.out)["error"]
    assert told["type"] == "UsageError"
    assert "--no-such-option" in told["message"]
    assert told["exit_code"] == 2
    assert ended.err == ""


def test_help_loads_nothing_heavy() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _LOADED, *HEAVY], capture_output=True, text=True, check=True
    )
    loaded, seconds = ended.stderr.strip().rsplit(" ", 1)
    print(f"gennode --help takes {float(seconds) * 1e3:.0f} ms of CPU")
    assert loaded == "[]"
    for name in ("join", "ask", "testnet"):
        assert name in ended.stdout


def test_every_exit_code_is_documented(gennode: Command) -> None:
    told = gennode("--help").out
    codes = {0, INTERRUPTED}
    codes |= {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    for code in codes:
        assert f"\n    {code}  " in told
    assert len([line for line in EXIT_CODES.splitlines() if "  " in line.strip()]) == len(codes)


@pytest.mark.parametrize("arguments", [("nonsense",), ("testnet", "nonsense"), ("ask",), ()])
def test_what_makes_no_sense_ends_with_2(arguments: tuple[str, ...], gennode: Command) -> None:
    assert gennode(*arguments).code in ({2} if arguments else {0, 2})


def test_the_version_is_told(gennode: Command) -> None:
    ended = gennode("--version")
    assert ended.code == 0
    assert ended.out.strip().startswith("gennode")


def test_variables_stand_in_for_options(
    gennode: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GENNODE_JOIN_MODEL", "/from/the/environment")
    monkeypatch.setenv("GENNODE_JOIN_STATE", str(tmp_path))
    ended = gennode("join", "--json")
    assert ended.code == 3
    assert "/from/the/environment" in json.loads(ended.out)["error"]["message"]
    ended = gennode("join", "--model", "/from/the/flag", "--json")
    assert "/from/the/flag" in json.loads(ended.out)["error"]["message"]
