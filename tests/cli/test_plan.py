"""`gennode plan` shows who hosts what, and who should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, process


@pytest.mark.slow  # it starts a node
def test_a_worker_and_what_is_missing_are_shown(gennode: Command, tmp_path: Path) -> None:
    state = tmp_path / "state"
    options = ("--model", "gennode-small", "--memory", "64M", "--layers", "0:1", "--json")
    with process("join", "--state", state, *options) as worker:
        assert worker.stdout is not None
        joined = json.loads(worker.stdout.readline())
        shown = gennode("plan", "--state", state, "--model", "gennode-small", "--json")
        read = gennode("plan", "--state", state, "--model", "gennode-small")
    assert shown.code == read.code == 0, (shown, read)
    told = json.loads(shown.out)
    [one] = told["peers"]
    assert one["peer"] == joined["peer"]
    assert one["hosts"] == [0, 1]
    assert told["rate_now_token_s"] == 0
    assert told["step_now_s"] is None
    assert told["rate_planned_token_s"] > 0
    assert not told["is_due"]  # the layers were chosen by a person
    assert "0:1" in read.out
    assert "nothing" in read.err


def test_without_a_node_or_an_address_it_says_so(gennode: Command, tmp_path: Path) -> None:
    ended = gennode("plan", "--state", tmp_path, "--json")
    assert ended.code == 4
    assert "gennode join" in json.loads(ended.out)["error"]["hint"]
