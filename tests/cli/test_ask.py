"""`gennode ask`: what it says where nobody answers, and that nothing else reaches its output."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from gennode.cli.ask import Asked, Screen
from gennode.node.ask import Failover
from gennode.node.sessions.journal import Journals, Watch
from gennode.wire.ids import Hop, Span
from gennode.wire.signing import Key
from tests.cli.conftest import NOBODY, Command, finish, process
from tests.node.sessions.journals import HEADER, TOKENS, begin, interrupt

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


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ((), "no prompt"),
        (("hello", "--resume", "x"), "takes no prompt"),
        (("--no-journal", "--resume"), "journal"),
        (("--resume", "20261121-000000-beef"), "20261121-000000-beef"),
        (("--resume", "../../etc/passwd"), "no interrupted answer"),
        (("--temperature", "0.5", "--resume"), "--temperature"),
        (("--max-tokens", "5", "--resume"), "--max-tokens"),
    ],
    ids=str,
)
def test_what_can_not_be_resumed_ends_with_2(
    wrong: tuple[str, ...], words: str, gennode: Command, tmp_path: Path
) -> None:
    ended = gennode("ask", "--state", tmp_path, "--json", *wrong)
    assert ended.code == 2
    assert words in json.loads(ended.out)["error"]["message"]


def test_interrupted_answers_are_listed_if_there_is_not_just_one(
    gennode: Command, tmp_path: Path
) -> None:
    resume = ("ask", "--state", tmp_path, "--resume")
    ended = gennode(*resume)
    assert (ended.code, ended.out, ended.err) == (0, "", "no answer was interrupted\n")
    journals = Journals(tmp_path / "sessions", Watch(print))
    interrupt(begin(journals))
    interrupt(begin(journals, words="[/b] is a prompt", began_s=HEADER.began_s + 1))
    ended = gennode(*resume)
    assert ended.code == 0
    assert "count from 1 to 9" in ended.out
    assert "[/b] is a prompt" in ended.out  # a prompt is never markup
    assert f"--state {tmp_path} --resume NAME" in ended.err
    listed = json.loads(gennode(*resume, "--json").out)["interrupted"]
    assert [one["tokens"] for one in listed] == [len(TOKENS)] * 2
    assert listed[0]["prompt"] == HEADER.words


def test_a_journal_stays_where_it_is_if_nobody_can_be_asked(
    gennode: Command, tmp_path: Path
) -> None:
    journals = Journals(tmp_path / "sessions", Watch(print))
    interrupt(begin(journals))
    ended = gennode("ask", "--state", tmp_path, "--resume", "--model", "/no/such/model")
    assert ended.code == 3
    [found] = journals.interrupted()
    assert f"--resume {found.name}" in ended.err
    assert f"{len(TOKENS)} tokens are kept" in ended.err


@pytest.mark.parametrize(
    ("reason", "is_planned", "words"),
    [
        ("is leaving", True, "[worker-2 is leaving; now owner → worker-3 [0:3] → owner]"),
        (
            f"can't reach {NOBODY_THERE}: failed to dial: all dials failed", False,
            "[lost worker-2: can't reach it; now owner → worker-3 [0:3] → owner]",
        ),
    ],
    ids=["planned", "failure"],
)  # fmt: skip
def test_a_planned_change_looks_other_than_a_failure(
    reason: str, is_planned: bool, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left, taker = (Key(bytes([number]) * 32).peer for number in (2, 3))
    screen = Screen({left: "worker-2", taker: "worker-3"}, Asked("", None))
    before, after = ((Hop(peer, Span(0, 3)),) for peer in (left, taker))
    screen.change(Failover((left,), reason, before, after, 5, is_planned))
    assert capsys.readouterr().err == f"\n{words}\n"


@pytest.mark.slow  # it starts a node
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "Ctrl-C"])
def test_an_answer_that_was_interrupted_is_resumed_with_the_same_text(
    number: signal.Signals, gennode: Command, tmp_path: Path
) -> None:
    state = ("--model", MODEL, "--state", tmp_path)
    prompt = ("count from 10 to 99 =", "--max-tokens", "200", "--temperature", "0.9", "--seed", "4")
    slow = ("--memory", "64M", "--share", "0.05", "--json")  # interrupted before it is whole
    with process("join", *state, *slow) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline()
        whole = json.loads(gennode("ask", *prompt, *state, "--json").out)
        with process("ask", *prompt, *state) as asker:
            assert asker.stdout is not None
            begun = asker.stdout.read(4)
            asker.send_signal(number)
            ended = finish(asker)
        given = begun + ended.out.rstrip("\n")
        assert whole["text"].startswith(given)
        assert len(given) < len(whole["text"])
        if number is signal.SIGINT:
            assert "tokens are kept; go on with: gennode ask" in ended.err
            assert ended.code == 130
        again = json.loads(gennode("ask", "--resume", *state[2:], "--json").out)
        assert (again["text"], again["tokens"]) == (whole["text"], whole["tokens"])
        assert 0 < again["resumed_tokens"] < len(whole["tokens"])
        assert gennode("ask", "--resume", *state[2:]).err == "no answer was interrupted\n"
