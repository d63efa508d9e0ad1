"""The real command line on both transports: the same swarm, the same protocol, the same answer."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from gennode.cli import run
from tests.cli.conftest import NOBODY, finish, process

MODEL = "gennode-small"
PROMPT, ANSWER = "sort 5 2 9 1 =", " 1 2 5 9"


@pytest.mark.slow  # it starts four nodes
@pytest.mark.parametrize("second", ["p2pd", "pylibp2p"])
def test_owners_on_either_transport_get_the_right_answer(second: str, tmp_path: Path) -> None:
    """With a second worker on py-libp2p the daemon of the first one dials it, and is dialled."""
    with ExitStack() as stack:
        addresses: list[str] = []
        for number, (kind, layers) in enumerate((("p2pd", "0:2"), (second, "2:3"))):
            child = stack.enter_context(
                process(
                    "join", "--model", MODEL, "--layers", layers, "--transport", kind, "--json",
                    "--state", tmp_path / str(number), "--memory", "64M", "--threads", "1",
                    *(word for address in addresses for word in ("--bootstrap", address)),
                )
            )  # fmt: skip
            assert child.stdout is not None
            addresses += json.loads(child.stdout.readline())["addresses"][:1]
        for owner in ("pylibp2p", "p2pd"):
            ask = ("ask", PROMPT, "--model", MODEL, "--transport", owner, "--json")
            ended = finish(stack.enter_context(process(*ask, "--bootstrap", addresses[0])))
            assert ended.code == 0, ended
            told = json.loads(ended.out)
            assert told["text"] == ANSWER
            assert len(told["route"]) == 2
            assert not told["failovers"]


def test_what_is_not_installed_is_said_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gennode.mesh.pylibp2p.transport", None)
    arguments = ["--model", MODEL, "--bootstrap", NOBODY.format(port=1)]
    assert run(["ask", "hello", "--transport", "pylibp2p", *arguments]) == 2
    told = capfd.readouterr().err
    assert "not installed" in told
    assert "gennode[pylibp2p]" in told
