"""Runs outlive the process, within a limit, and damage costs no more than what it hit."""

from __future__ import annotations

from pathlib import Path

import pytest

from gennode.engine.choice import runs as module
from gennode.engine.choice.runs import Layer, Run, RunFile, Step, hardware, threads
from gennode.errors import ResourceError
from gennode.wire.manifest import ModelShape
from tests.engine.choice.layers import HERE, LAYERS, runs


def run(hardware: str = HERE, layer_s: float = 1.0) -> Run:
    return Run(hardware, "fp32", LAYERS[0], Step(1, 1, 0), layer_s)


def test_runs_come_back_in_order_and_by_hardware(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "cache" / "runs.jsonl")
    assert file.read(HERE) == []
    file.add(runs()[:5])
    file.add([run("other"), run(layer_s=2.0)])
    assert file.read(HERE) == [*runs()[:5], run(layer_s=2.0)]
    assert file.read("other") == [run("other")]


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    file = RunFile(path)
    file.add([run(layer_s=1.0)])
    bad = (b"{", b"\xff\xfe", b"[" * 10_000, b'{"hardware": 1}', b"")
    wrong = path.read_bytes().replace(b'"layer_s":1.0', b'"layer_s":-1.0').rstrip()
    path.write_bytes(path.read_bytes() + b"\n".join((*bad, wrong)) + b"\n")
    file.add([run(layer_s=3.0)])
    assert file.read(HERE) == [run(layer_s=1.0), run(layer_s=3.0)]


def test_the_file_keeps_the_latest_within_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 4096)
    monkeypatch.setattr(module, "MAX_RUNS", 10)
    path = tmp_path / "runs.jsonl"
    file = RunFile(path)
    for count in range(1, 101):
        file.add([run(layer_s=float(count))])
        assert path.stat().st_size <= 4096
    found = [each.layer_s for each in file.read(HERE)]
    assert found == [float(count) for count in range(101 - len(found), 101)]
    assert len(found) == 10


def test_a_place_that_can_not_be_written_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError) as caught:
        RunFile(tmp_path / "file" / "runs.jsonl").add([run()])
    assert caught.value.hint


def test_a_layer_counts_its_matrices_and_hardware_names_what_matters() -> None:
    shape = ModelShape("LlamaForCausalLM", 4, 512, 8, 2, 64, 1536, 300, 128)
    layer = Layer.of(shape)
    assert layer.weights == 2 * 512 * 512 + 2 * 512 * 128 + 3 * 512 * 1536
    assert hardware("cpu", 2) != hardware("cpu", 4)
    assert hardware("cpu", 2) != hardware("cuda", 2)
    assert len(hardware("x" * 1000, 2)) <= module.MAX_HARDWARE_CHARACTERS


def test_threads_are_counted_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads() == 3
    for nothing in ("", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert threads() >= 1
