"""`gennode ask`: what it says where nobody answers, and that nothing else reaches its output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import NOBODY, Command, process

MODEL = "gennode-small"
NOBODY_THERE = NOBODY.format(port=1)  # a port for which even a server needs privileges


def test_without_a_node_or_an_address_it_says_where_to_get_one(
    gennode: Command, tmp_path: Path
) -> None:
    ended = gennode("ask", "hello", "--state", tmp_path)
    assert ended.code == 4
    assert ended.out == ""
    assert "try:" in ended.err
    assert "gennode join" in ended.err


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (("--bootstrap", "nonsense"), 2),
        (("--temperature", "9"), 2),
        (("--top-p", "0"), 2),
        (("--codec", "zip"), 2),
        (("--model", "/no/such/model"), 3),
        (("--bootstrap", NOBODY_THERE), 4),
    ],
    ids=str,
)
def test_what_can_not_be_asked_has_its_exit_code(
    wrong: tuple[str, str], code: int, gennode: Command
) -> None:
    bootstrap = () if "--bootstrap" in wrong else ("--bootstrap", NOBODY_THERE)
    ended = gennode("ask", "hello", "--model", MODEL, "--json", *bootstrap, *wrong)
    assert ended.code == code
    told = json.loads(ended.out)["error"]
    assert told["exit_code"] == code
    assert told["hint"]


@pytest.mark.slow  # it starts a node, and looks for others for FIND_TIMEOUT_S
def test_layers_that_nobody_has_end_with_5(gennode: Command, tmp_path: Path) -> None:
    arguments = ("--state", tmp_path, "--model", MODEL, "--memory", "1M", "--json")
    with process("join", "--layers", "0:1", *arguments) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["spans"] == [[0, 1]]
        ended = gennode("ask", "hello", "--model", MODEL, "--state", tmp_path, "--json")
    assert ended.code == 5
    told = json.loads(ended.out)["error"]
    assert told["type"] == "NoRouteError"
    assert "1:3" in told["message"]
    assert "gennode join" in told["hint"]
