"""A release on real daemons: workers go over to it while prompts are answered."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gennode.engine.checkpoint.weights import find_model
from tests.cli.conftest import Command, Ended, process

MODEL, LAYERS, PROMPT = "gennode-small", ("0:2", "2:3"), "add 2 3 ="
ASKED = 40  # a roll takes some ten seconds, an answer about one


def changed_copy(folder: Path) -> Path:
    """The small model with one tensor of its last layer turned round."""
    shutil.copytree(find_model(MODEL), folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = max(name for name in tensors if name.endswith("mlp.down_proj.weight"))
    tensors[name] = -tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def first_line(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    told: dict[str, Any] = json.loads(child.stdout.readline())
    return told


@pytest.mark.slow  # four processes with torch
def test_a_release_rolls_through_workers_that_answer(
    gennode: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    newer = changed_copy(tmp_path / "newer")

    def ask(model: str | Path) -> Ended:
        return gennode("ask", PROMPT, "--model", model, "--bootstrap", address, "--json")

    with ExitStack() as stack:
        root = stack.enter_context(process("relay", "--state", tmp_path / "root", "--json"))
        address = first_line(root)["addresses"][0]

        def publish(folder: str | Path) -> dict[str, Any]:
            publisher = stack.enter_context(
                process("publish", folder, "--name", "demo", "--bootstrap", address,
                        "--state", tmp_path / "publisher", "--json")
            )  # fmt: skip
            told = first_line(publisher)
            publishers.append(publisher)
            return told

        publishers: list[subprocess.Popen[str]] = []
        first = publish(MODEL)
        assert (first["number"], first["previous"]) == (1, "")
        for index, layers in enumerate(LAYERS):
            worker = stack.enter_context(
                process("join", "--model", MODEL, "--layers", layers, "--follow", first["line"],
                        "--memory", "256M", "--bootstrap", address,
                        "--state", tmp_path / f"worker-{index}", "--json",
                        XDG_CACHE_HOME=str(tmp_path / f"cache-{index}"))
            )  # fmt: skip
            assert first_line(worker)["model"] == first["model"]
        before = json.loads(ask(MODEL).out)["tokens"]
        assert json.loads(ask(first["line"]).out)["tokens"] == before

        publishers[0].terminate()
        publishers[0].wait(30)
        second = publish(newer)
        assert (second["number"], second["previous"]) == (2, first["model"])
        assert second["told"] == len(LAYERS)
        for _ in range(ASKED):
            ended = ask(MODEL)
            if ended.code:
                break
            assert json.loads(ended.out)["tokens"] == before
        assert ended.code == 5  # nobody serves the old version any more
        after = ask(newer)
        assert after.code == 0, after.err
        assert json.loads(after.out)["tokens"] != before
        assert json.loads(ask(first["line"]).out)["tokens"] == json.loads(after.out)["tokens"]
        hosted = json.loads(gennode("status", "--state", tmp_path / "worker-0", "--json").out)
        models = [one["model"] for worker in hosted["workers"] for one in worker["hosting"]]
        assert models == [second["model"]] * len(LAYERS)
