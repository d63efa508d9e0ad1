"""`gennode join`: every documented way to end, and what is said then."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from gennode.engine.checkpoint.weights import find_model
from gennode.node.state import StateFolder
from tests.cli.conftest import NOBODY, Command, finish, process
from tests.engine.conftest import make_llama
from tools.tiny_models import make_tiny

MODEL = "gennode-small"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of a bundled model, to be damaged."""
    return Path(shutil.copytree(find_model(MODEL), tmp_path / "model"))


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def _told(command: Command, code: int, *arguments: str | Path) -> dict[str, Any]:
    """Run `join --json`; its error, which must come with this exit code and a hint."""
    ended = command("join", "--json", *arguments)
    assert ended.code == code, ended
    told: dict[str, Any] = json.loads(ended.out)["error"]
    assert told["exit_code"] == code
    assert told["hint"]
    return told


@pytest.mark.parametrize(
    "wrong",
    [
        ("--layers", "5:2"),
        ("--layers", "all"),
        ("--layers", "0:9"),
        ("--memory", "lots"),
        ("--memory", "-1G"),
        ("--port", "70000"),
        ("--threads", "0"),
        ("--cache", "fp8"),
        ("--bootstrap", "nonsense"),
        ("--bootstrap", "/ip4/127.0.0.1/tcp/4001"),
    ],
    ids=" ".join,
)
def test_wrong_arguments_end_with_2(wrong: tuple[str, str], gennode: Command, state: Path) -> None:
    told = _told(gennode, 2, "--model", MODEL, "--state", state, *wrong)
    assert told["type"] == "UsageError"


def test_a_model_that_is_not_there_ends_with_3(gennode: Command, state: Path) -> None:
    told = _told(gennode, 3, "--model", "/no/such/model", "--state", state)
    assert "gennode-small" in told["hint"]


def test_a_damaged_model_ends_with_3(gennode: Command, state: Path, model: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:1000], b"\xff" * 64 + whole[64:], b""):
        weights.write_bytes(damaged)
        assert _told(gennode, 3, "--model", model, "--state", state)["type"] == "ModelError"


def test_pickled_weights_end_with_3(gennode: Command, state: Path, model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    told = _told(gennode, 3, "--model", model, "--state", state)
    assert "safetensors" in told["message"] + told["hint"]


def test_a_bootstrap_peer_that_is_not_there_ends_with_4(
    gennode: Command, state: Path, taken_port: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    told = _told(gennode, 4, "--model", MODEL, "--state", state,
                 "--bootstrap", NOBODY.format(port=port))  # fmt: skip
    assert str(port) in told["message"]


def test_a_port_in_use_ends_with_4(gennode: Command, state: Path, taken_port: int) -> None:
    told = _told(gennode, 4, "--model", MODEL, "--state", state, "--port", str(taken_port))
    assert str(taken_port) in told["message"]


def test_a_precision_that_no_engine_has_is_refused_with_those_that_there_are(
    gennode: Command, state: Path
) -> None:
    told = _told(gennode, 2, "--model", MODEL, "--state", state, "--precision", "int4")
    assert all(each in told["message"] for each in ("auto", "fp32", "bf16", "fp16", "int8"))


def test_other_models_than_llamas_have_no_choice_of_precision(
    gennode: Command, state: Path, tmp_path: Path
) -> None:
    make_tiny("gemma2", tmp_path / "gemma")
    for option in ("--precision", "--cache"):
        told = _told(gennode, 2, "--model", tmp_path / "gemma", "--state", state, option, "int8")
        assert option in told["hint"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine may have fp16")
def test_a_precision_that_this_processor_lacks_ends_with_7(gennode: Command, state: Path) -> None:
    told = _told(gennode, 7, "--model", MODEL, "--state", state, "--precision", "fp16")
    assert "fp32" in told["hint"]


def test_too_little_memory_ends_with_6(gennode: Command, state: Path) -> None:
    told = _told(gennode, 6, "--model", "gennode-large", "--memory", "1M", "--state", state)
    assert "--memory" in told["hint"]


def test_a_state_folder_that_can_not_be_made_ends_with_6(gennode: Command) -> None:
    told = _told(gennode, 6, "--model", MODEL, "--state", "/proc/gennode")
    assert "--state" in told["hint"]


@pytest.mark.parametrize(
    ("device", "words"), [("abacus", "cuda:1"), ("cpu:1", "cuda:1"), ("cuda:99", "cpu")]
)
def test_a_device_that_is_not_there_ends_with_7_and_says_what_there_is(
    device: str, words: str, gennode: Command, state: Path
) -> None:
    told = _told(gennode, 7, "--device", device, "--model", "/no/such/model", "--state", state)
    assert (told["type"], words in told["hint"] or "cuda:0" in told["hint"]) == (
        "DeviceError", True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "chosen", [(), ("--cpu",), ("--device", "cpu"), ("--gpu", "--cpu"), ("--device", "x", "--cpu")]
)
def test_the_cpu_is_what_computes_unless_told_otherwise(
    chosen: tuple[str, ...], gennode: Command, state: Path
) -> None:
    """The last one counts; the model is only looked for once the device is there."""
    _told(gennode, 3, *chosen, "--model", "/no/such/model", "--state", state)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_ends_with_7_before_the_model_is_read(
    gennode: Command, state: Path
) -> None:
    assert _told(gennode, 7, "--gpu", "--model", "/no/such/model", "--state", state)["hint"]


def test_a_key_that_others_can_read_is_refused(gennode: Command, state: Path) -> None:
    folder = StateFolder(state)
    folder.prepare()
    folder.key()
    (state / "node.key").chmod(0o644)
    told = _told(gennode, 2, "--model", MODEL, "--state", state)
    assert "chmod 600" in told["hint"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("A FULL DISK IS NOT TESTED HERE: only root can mount a small one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("has_key", [False, True])
def test_a_full_disk_ends_with_6(has_key: bool, gennode: Command, tiny_disk: Path) -> None:
    if has_key:
        StateFolder(tiny_disk).key()
    with open(tiny_disk / "filler", "wb", buffering=0) as filler:
        while True:
            try:
                filler.write(bytes(4096))
            except OSError:
                break
    told = _told(gennode, 6, "--model", MODEL, "--state", tiny_disk)
    assert told["type"] == "ResourceError"
    assert "disk" in told["hint"]


def _interrupt_an_answer(state: Path) -> None:
    prompt = "count from 10 to 99 ="
    with process("ask", prompt, "--max-tokens", "400", "--model", MODEL, "--state", state) as child:
        assert child.stdout is not None
        assert child.stdout.read(1)
        child.send_signal(signal.SIGINT)
        ended = finish(child)
    assert ended.code == 130
    assert ended.err.endswith("interrupted\n")
    assert "Traceback" not in ended.err


@pytest.mark.slow  # it starts a node
def test_a_node_that_runs_holds_its_folder_until_it_is_interrupted(
    gennode: Command, state: Path
) -> None:
    variables = {"GENNODE_JOIN_MODEL": MODEL, "GENNODE_JOIN_MEMORY": "64M"}
    with process("join", "--state", state, "--json", **variables) as child:
        assert child.stdout is not None
        joined = json.loads(child.stdout.readline())
        assert joined["spans"] == [[0, 3]]
        assert "another node" in _told(gennode, 2, "--model", MODEL, "--state", state)["message"]

        status = json.loads(gennode("status", "--state", state, "--json").out)
        assert status["peer"] == joined["peer"]
        [worker] = status["workers"]
        assert [hosting["spans"] for hosting in worker["hosting"]] == [[[0, 3]]]
        assert joined["addresses"][0] in gennode("status", "--state", state).out

        ended = gennode("ask", "add 2 3 =", "--model", MODEL, "--state", state, "--json")
        assert ended.code == 0
        answer = json.loads(ended.out)
        assert answer["tokens"]
        assert [hop[0] for hop in answer["route"]] == [joined["peer"]]
        streamed = gennode("ask", "add 2 3 =", "--model", MODEL, "--state", state)
        assert streamed.out.removesuffix("\n") == answer["text"]

        _interrupt_an_answer(state)
        child.send_signal(signal.SIGINT)
        ended = finish(child)
    assert ended.code == 0
    assert "left." in ended.err
    assert "Traceback" not in ended.err
    assert gennode("status", "--state", state).code == 4


@pytest.mark.slow  # it starts three nodes
def test_a_worker_that_never_saw_the_model_serves_what_it_fetched(
    gennode: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = json.loads(_ask_all_layers_here(gennode, tmp_path / "alone"))
    with ExitStack() as stack:
        first = _worker(stack, tmp_path / "1", "--model", MODEL, "--layers", "0:1")
        known = ("--model", first["model"], "--bootstrap", first["addresses"][0])
        second = _worker(stack, tmp_path / "2", *known, "--layers", "1:3")
        assert second["spans"] == [[1, 3]]
        assert second["spare_layers"] == 0
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "owner"))
        ended = gennode("ask", "add 2 3 =", "--json", *known)
        assert ended.code == 0, ended
        answer = json.loads(ended.out)
        assert answer["tokens"] == expected["tokens"]
        assert [hop[0] for hop in answer["route"]] == [first["peer"], second["peer"]]
        kept = tmp_path / "owner" / "gennode" / "weights" / first["model"]
        assert (kept / "tokenizer.json").exists()
        assert not (
            tmp_path / "2" / "gennode" / "weights" / first["model"] / "tokenizer.json"
        ).exists()


def _ask_all_layers_here(gennode: Command, state: Path) -> str:
    """The answer of one worker with the whole model."""
    with ExitStack() as stack:
        worker = _worker(stack, state, "--model", MODEL, "--layers", "0:3")
        address = worker["addresses"][0]
        return gennode("ask", "add 2 3 =", "--json", "--model", MODEL, "--bootstrap", address).out


@pytest.mark.slow  # it starts a node
def test_eight_bits_for_weights_and_caches_hold_more_and_answer(
    gennode: Command, tmp_path: Path
) -> None:
    """16 MiB hold one layer of this model in fp32: 9 MiB of weights, and as much as 4 caches."""
    make_llama(
        tmp_path / "wide",
        num_hidden_layers=2,
        hidden_size=512,
        intermediate_size=1024,
        num_attention_heads=8,
        head_dim=64,
    )
    known = ("--model", str(tmp_path / "wide"))
    small = ("--memory", "16M", "--precision")
    with ExitStack() as stack:
        exact = _worker(stack, tmp_path / "1", *known, *small, "fp32")
        assert exact["compute_class"] == "fp32-cpu"
        [[start, end]] = exact["spans"]
        assert (end - start, exact["spare_layers"]) == (1, 0)
    with ExitStack() as stack:
        worker = _worker(stack, tmp_path / "2", *known, *small, "int8", "--cache", "int8")
        assert worker["compute_class"] in ("int8-kv8-cpu", "int7-kv8-cpu")
        assert worker["spans"] == [[0, 2]]
        assert worker["account"]["weights_bytes"] < exact["account"]["weights_bytes"]
        where = ("--bootstrap", worker["addresses"][0], "--max-tokens", "8")
        ended = gennode("ask", "hello", "--json", *known, *where)
        assert ended.code == 0, ended
        assert json.loads(ended.out)["tokens"]


def _worker(stack: ExitStack, folder: Path, *arguments: str) -> dict[str, Any]:
    """Start a worker with caches of its own; what it prints once it is ready."""
    options = ("--state", folder / "state", "--memory", "64M", "--json")  # the last one counts
    child = stack.enter_context(process("join", *options, *arguments, XDG_CACHE_HOME=str(folder)))
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line, child.communicate()
    joined: dict[str, Any] = json.loads(line)
    return joined


@pytest.mark.slow  # it listens for workers for HEAR_TIMEOUT_S
def test_a_model_that_no_peer_has_ends_with_4(gennode: Command, state: Path) -> None:
    told = _told(gennode, 4, "--model", "ab" * 32, "--state", state)
    assert "--bootstrap" in told["hint"]
