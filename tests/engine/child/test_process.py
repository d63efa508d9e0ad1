"""A compute process inherits nothing, is ended when it lies, and leaves with its node."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gennode.engine.child import process as compute_process
from gennode.engine.child import protocol as say
from gennode.engine.child.process import ComputeProcess, ProcessEndedError
from gennode.engine.choice.runs import Layer, Run, Step
from gennode.errors import DeviceError, ModelError, ResourceError
from gennode.wire.ids import Span
from gennode.wire.manifest import ModelShape

LONG_S = 100.0  # for what a busy machine does in its own time

Start = Callable[[str], ComputeProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start liars, and end them."""
    with ExitStack() as stack:

        def one(lie: str) -> ComputeProcess:
            process = ComputeProcess(Path(lie), "m:8", module="tests.engine.child.liar")
            stack.callback(process.end)
            return process

        yield one


SHAPE = ModelShape("LlamaForCausalLM", 4, 64, 2, 2, 32, 128, 300, 512)
WIDE = ModelShape("LlamaForCausalLM", 4, 640, 10, 10, 64, 1792, 300, 512)
STEP = say.Compute((say.Part(1, 0, 2),))


@pytest.mark.parametrize("lie", ["huge", "garbage", "other", "again", "long"])
def test_what_answers_wrongly_is_ended(start: Start, lie: str) -> None:
    process = start(lie)
    with pytest.raises(ProcessEndedError) as caught:
        process.ask(STEP, say.Done, body=[bytes(64)], max_body_bytes=64)
    assert not caught.value.was_killed
    assert process.wait(LONG_S)
    with pytest.raises(ProcessEndedError):
        process.ask(STEP, say.Done)


def test_it_gets_no_secrets_and_no_files(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with open(tmp_path / "open", "w") as file:
        os.set_inheritable(file.fileno(), True)
        with pytest.raises(ModelError) as caught:
            start("tells").ask(STEP, say.Done)
    names, _, opened = str(caught.value).partition("|")
    assert {"OMP_NUM_THREADS", "PYTHONPATH"} <= set(names.split())
    assert not {"HF_TOKEN", "HOME", "USER"} & set(names.split())
    assert len(opened.split()) == 5  # stdin, stdout, stderr, the channel, and the listing itself
    assert caught.value.hint == "?"


def test_figures_of_nothing_that_there_is_are_not_taken(start: Start) -> None:
    with pytest.raises(ResourceError, match="what can't be"):
        start("report").examine("cpu")
    with pytest.raises(ResourceError, match="malformed"):
        start("machine").measure("cpu", 1 << 20)


def test_runs_of_something_else_are_not_recorded(start: Start) -> None:
    with pytest.raises(ResourceError, match="what can't be"):
        start("runs").settle("auto", SHAPE, "cpu", 1 << 20, lambda _hardware: [])


def test_the_precision_is_chosen_in_the_jail_by_runs_that_were_passed_in(tmp_path: Path) -> None:
    process = ComputeProcess(tmp_path, "cpu")
    asked: list[str] = []

    def recorded(here: str) -> list[Run]:
        asked.append(here)
        return [Run(here, "fp32", Layer.of(SHAPE), Step(1, 1, 0), 1.0)]

    try:
        assert process.settle("auto", SHAPE, "cpu", 1 << 28, recorded) == ("fp32", ())
        with pytest.raises(DeviceError) as caught:
            process.settle("int4", SHAPE, "cpu", 1 << 28, recorded)
        assert "fp32" in caught.value.hint
        precision, fresh = process.settle("auto", WIDE, "cpu", 1 << 28, recorded)
    finally:
        process.end()
    assert precision in {run.precision for run in fresh}
    assert {(run.hardware, run.layer) for run in fresh} == {(asked[0], Layer.of(WIDE))}


def test_how_it_ended_is_told_in_its_own_words(start: Start) -> None:
    process = start("dies")
    with pytest.raises(ProcessEndedError, match=r"ended by itself \(1\): no \?\[31mlibrary"):
        process.jail()


def test_a_kill_from_outside_is_told_from_our_own(start: Start) -> None:
    process, ended = start("hangs"), threading.Event()
    process.on_end = ended.set
    process.jail()
    os.kill(process.pid, 9)
    with pytest.raises(ProcessEndedError) as caught:
        process.ask(STEP, say.Done)
    assert caught.value.was_killed
    assert ended.wait(LONG_S)


def test_what_it_writes_neither_blocks_it_nor_fills_memory(start: Start) -> None:
    process = start("chatters")
    assert process.ask(STEP, say.Done, body=[bytes(64)], max_body_bytes=64)[1] == bytes(32)


def test_what_uses_no_processor_while_it_is_asked_for_work_is_frozen(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute_process, "SILENCE_S", 0.2)
    with pytest.raises(ProcessEndedError, match="frozen") as caught:
        start("hangs").ask(STEP, say.Done)
    assert not caught.value.was_killed
    waits = start("hangs")
    assert waits.ask(say.Load(Span(0, 1)), say.Done)  # whoever loads may wait for a disk


def test_ending_wakes_whoever_waits_for_a_process_that_hangs(start: Start) -> None:
    process, caught = start("hangs"), []

    def ask() -> None:
        try:
            process.ask(STEP, say.Done)
        except ProcessEndedError as error:
            caught.append(error)

    process.jail()
    asking = threading.Thread(target=ask)
    asking.start()
    process.end()
    asking.join(LONG_S)
    assert len(caught) == 1
    assert process.wait(LONG_S)


_LEAVES = """
import os, sys
from pathlib import Path
from gennode.engine.child.process import ComputeProcess
process = ComputeProcess(Path(sys.argv[1]), "cpu")
process.jail()
print(process.pid, flush=True)
os._exit(0)
"""


def test_it_leaves_with_its_node(tmp_path: Path) -> None:
    """Its stderr, a pipe, is inherited by no other process; it closes when the last one ends."""
    ran = subprocess.run(
        [sys.executable, "-c", _LEAVES, str(tmp_path)],
        stdout=subprocess.PIPE, timeout=LONG_S, check=True,
    )  # fmt: skip
    left = Path(f"/proc/{int(ran.stdout)}")
    waited = threading.Event()
    for _ in range(1000):
        if not left.exists() or "Z (zombie)" in (left / "status").read_text():
            return
        waited.wait(0.01)
    pytest.fail("it is still there")


def test_no_process_is_a_resource_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(ResourceError, match="no process can be started"):
        ComputeProcess(Path("x"), "cpu")
