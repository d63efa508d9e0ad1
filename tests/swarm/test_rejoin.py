"""Real nodes whose bootstrap dies: one that restarts without an address finds the swarm again."""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Ended, finish, process

MODEL, PROMPT = "gennode-small", "add 2 3 ="
LOOKS = 30  # each starts a process, and an exchange takes a second


def ready(child: subprocess.Popen[str]) -> dict[str, Any]:
    """What a node says of itself once it serves."""
    assert child.stdout is not None
    told: dict[str, Any] = json.loads(child.stdout.readline())
    return told


def join(stack: ExitStack, state: Path, layers: str, *more: str) -> subprocess.Popen[str]:
    return stack.enter_context(
        process("join", "--model", MODEL, "--memory", "64M", "--json", "--state", state,
                "--layers", layers, *more)
    )  # fmt: skip


def gennode(*arguments: str | Path) -> Ended:
    """A command that ends by itself."""
    with process(*arguments) as child:
        return finish(child)


def workers_known(state: Path) -> set[str]:
    """The live workers, as the node of a folder knows them."""
    status = json.loads(gennode("status", "--state", state, "--json").out)
    return {worker["peer"] for worker in status["workers"]}


@pytest.mark.slow  # four nodes
def test_a_node_and_an_owner_find_the_swarm_without_their_bootstrap(
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        first = join(stack, tmp_path / "first", "0:3")
        address = ready(first)["addresses"][0]
        other = join(stack, tmp_path / "other", "0:3", "--bootstrap", address)
        other_peer = ready(other)["peer"]
        back = join(stack, tmp_path / "back", "1:3", "--bootstrap", address)
        peer = ready(back)["peer"]
        asked = gennode("ask", PROMPT, "--model", MODEL, "--state", tmp_path / "back", "--json")
        assert asked.code == 0
        back.send_signal(signal.SIGINT)
        assert finish(back).code == 0
        first.kill()

        answer = gennode("ask", PROMPT, "--model", MODEL, "--state", tmp_path / "back", "--json")
        assert answer.code == 0
        assert json.loads(answer.out)["text"] == json.loads(asked.out)["text"]

        again = join(stack, tmp_path / "back", "1:3")
        assert ready(again)["peer"] == peer
        for _ in range(LOOKS):
            if peer in workers_known(tmp_path / "other"):
                break
        assert {peer, other_peer} <= workers_known(tmp_path / "other")
