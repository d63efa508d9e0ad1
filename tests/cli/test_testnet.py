"""`gennode testnet`: up, ask, kill, status and down, as the README tells people to type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gennode.cli.testnet import even_spans
from gennode.errors import UsageError
from gennode.wire.ids import Span
from tests.cli.conftest import Command, finish, process

MODEL = "gennode-small"


def test_layers_are_shared_evenly() -> None:
    assert even_spans(MODEL, 3) == [Span(0, 1), Span(1, 2), Span(2, 3)]
    assert even_spans("gennode-large", 3)[-1].end == 8
    with pytest.raises(UsageError, match="3 layers"):
        even_spans(MODEL, 4)


@pytest.mark.parametrize("what", [("ask", "hello"), ("kill", "worker-1"), ("status",)], ids=str)
def test_without_a_testnet_each_command_says_how_to_start_one(
    what: tuple[str, ...], gennode: Command, tmp_path: Path
) -> None:
    ended = gennode("testnet", *what, "--state", tmp_path)
    assert ended.code == 4
    assert "gennode testnet up" in ended.err
    assert json.loads(gennode("testnet", "down", "--state", tmp_path, "--json").out) == {
        "stopped": []
    }


@pytest.mark.slow  # it starts three nodes
@pytest.mark.timeout(180)
def test_a_testnet_lives_until_it_is_taken_down(gennode: Command, tmp_path: Path) -> None:
    state = ("--state", tmp_path)
    up = ("testnet", "up", "--workers", "3", "--model", MODEL, "--memory", "64M", "--threads", "1")
    try:
        with process(*up, *state, "--json") as child:  # it is no parent to them that stays
            told = json.loads(finish(child).out)
        assert told["spans"] == {"worker-1": [0, 1], "worker-2": [1, 2], "worker-3": [2, 3]}
        again = gennode(*up, *state)
        assert again.code == 2
        assert "gennode testnet down" in again.err

        ended = gennode("testnet", "ask", "add 2 3 =", "--model", MODEL, *state)
        assert ended.code == 0
        assert "worker-1 [0:1] → worker-2 [1:2] → worker-3 [2:3]" in ended.err
        assert ended.out.strip()
        # Its template takes away the blanks around a message.
        told_so = gennode("testnet", "ask", "  add 2 3 = ", "--chat", "--model", MODEL, *state)
        assert told_so.out == ended.out

        wrong = gennode("testnet", "kill", "worker-9", *state, "--json")
        assert wrong.code == 2
        assert "worker-1, worker-2, worker-3" in json.loads(wrong.out)["error"]["hint"]
        killed = json.loads(gennode("testnet", "kill", "worker-2", *state, "--json").out)
        assert killed["pid"] == told["workers"]["worker-2"]["pid"]
        seen = told
        while len(seen["workers"]) > 2:  # it takes the kernel a moment
            seen = json.loads(gennode("testnet", "status", *state, "--json").out)
        assert sorted(seen["workers"]) == ["worker-1", "worker-3"]
    finally:
        ended = gennode("testnet", "down", *state)
    assert "worker-1, worker-3" in ended.err
    assert not (tmp_path / "testnet").exists()
