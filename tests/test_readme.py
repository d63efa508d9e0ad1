"""What the README tells people to type is what the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from gennode.cli import EXIT_CODES, group

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _typed() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    inline = re.findall(r"`(gennode [^`]+)`", README)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return sorted({line for line in [*lines, *inline] if line.startswith("gennode ")})


def _parse(command: click.Command, name: str, arguments: list[str]) -> None:
    """Everything that click does before it calls the command."""
    context = command.make_context(name, arguments)
    left = [*context._protected_args, *context.args]
    if isinstance(command, click.Group) and (left or not command.invoke_without_command):
        found, inner, rest = command.resolve_command(context, left)
        assert inner is not None
        _parse(inner, str(found), rest)


def test_there_is_something_to_type() -> None:
    assert len(_typed()) >= 10


@pytest.mark.parametrize("line", _typed())
def test_it_is_understood(line: str) -> None:
    _parse(group, "gennode", shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("path", re.findall(r"`python (bench/\w+\.py)`", README))
def test_every_bench_named_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


def test_exit_codes_are_the_same_in_readme_and_help() -> None:
    in_readme = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    in_help = {int(code) for code in re.findall(r"^  (\d+)  ", EXIT_CODES, re.MULTILINE)}
    assert in_readme == in_help


def test_what_is_wrong_is_not_understood() -> None:
    with pytest.raises(click.UsageError):
        _parse(group, "gennode", ["testnet", "ask", "--tokens", "3", "add 1 2 ="])
