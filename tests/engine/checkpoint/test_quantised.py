"""Packed checkpoints give, bit for bit, what their unpacked twins give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from gennode.engine.checkpoint.quantised import Quantisation, packed_shapes
from gennode.engine.checkpoint.unpacking import unpack
from gennode.engine.checkpoint.weights import ModelFolder, open_model
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.seam import StepInput
from gennode.errors import ModelError
from gennode.wire.ids import Span
from tests.engine.checkpoint.packers import Packer, awq, gptq, pack_folder
from tests.engine.conftest import make_llama

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}
KINDS: dict[str, tuple[Packer, dict[str, Any]]] = {
    "gptq": (gptq(), GPTQ),
    "gptq in 8 bits": (gptq(bits=8), GPTQ | {"bits": 8}),
    "gptq_v2": (gptq(layout="gptq_v2"), GPTQ | {"checkpoint_format": "gptq_v2"}),
    "gptq by activation": (gptq(act_order=True), GPTQ | {"desc_act": True}),
    "gptq without index": (gptq(with_index=False), GPTQ),
    "gptq in one group": (gptq(group_size=-1), GPTQ | {"group_size": -1}),
    "awq": (awq(), AWQ),
    "awq in one group": (awq(group_size=-1), AWQ | {"group_size": -1, "version": "GEMM"}),
}


def read(config: dict[str, Any]) -> Quantisation:
    return Quantisation(**{key: config[key] for key in config if key != "sym"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_comes_back_exactly(kind: str) -> None:
    packer, config = KINDS[kind]
    weight = torch.randn(24, 1056, generator=torch.Generator().manual_seed(1))
    parts, exact = packer(weight)
    named = {f"a.{part}": value for part, value in parts.items()}
    quantisation = read(config)
    shapes = packed_shapes(quantisation, {"a.weight": (24, 1056)}, named)
    assert {name: tuple(value.shape) for name, value in named.items()} == shapes
    found = unpack(quantisation, "a.weight", (24, 1056), named)
    torch.testing.assert_close(found, exact, rtol=0, atol=0)
    error = (found - weight).abs().max() / weight.abs().max()
    assert error < (0.01 if config["bits"] == 8 else 0.2)  # codes are where they belong


def test_a_zero_that_was_stored_less_one_wraps() -> None:
    quantisation = read(GPTQ | {"group_size": -1})
    parts = {
        "a.qweight": torch.full((1, 8), 0x22222222, dtype=torch.int32),
        "a.qzeros": torch.full((1, 1), -1, dtype=torch.int32),
        "a.scales": torch.full((1, 8), 0.5, dtype=torch.float16),
    }
    assert (unpack(quantisation, "a.weight", (8, 8), parts) == 1.0).all()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_llama(tmp_path / "source", num_hidden_layers=2, attention_bias=True)
    return tmp_path / "source"


def logits(folder: ModelFolder) -> np.ndarray[Any, Any]:
    owner, shard = LlamaOwner(folder), LlamaShard(folder)
    shard.load(Span(0, 2))
    shard.open("s", Span(0, 2), 16)
    states = shard.step([StepInput("s", 0, owner.embed([5, 7, 250, 31], 0))])[0]
    return owner.logits(states[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_llama_gives_its_twins_logits(kind: str, source: Path, tmp_path: Path) -> None:
    packer, config = KINDS[kind]
    twin = pack_folder(source, packer, config, tmp_path / "packed")
    packed = open_model(tmp_path / "packed")
    assert packed.whole_layers() == [0, 1]
    assert packed.manifest.shape == open_model(twin).manifest.shape
    np.testing.assert_array_equal(logits(packed), logits(open_model(twin)))


def test_a_matrix_may_be_left_whole(source: Path, tmp_path: Path) -> None:
    packer, config = KINDS["awq"]

    def but_wide(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return packer(weight) if weight.shape[0] < 48 else ({"weight": weight}, weight)

    twin = pack_folder(source, but_wide, config, tmp_path / "packed")
    np.testing.assert_array_equal(logits(open_model(tmp_path / "packed")), logits(open_model(twin)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' is not supported"),
        ({"quant_method": None}, "quant_method"),
        ({"bits": 3}, "gptq in 3 bits"),
        ({"bits": 0}, "gptq in 0 bits"),
        ({"group_size": 0}, "groups of 0"),
        ({"group_size": -2}, "group_size"),
        ({"checkpoint_format": "marlin"}, "layout 'marlin'"),
        ({"pack_dtype": "int16"}, "int16"),
        ({"dynamic": {"-:.*down.*": {}}}, "differs"),
        (AWQ | {"version": "gemv"}, "layout 'gemv'"),
        (AWQ | {"bits": 8}, "awq in 8 bits"),
        (AWQ | {"zero_point": False}, "zero points"),
    ],
)
def test_what_can_not_be_read_is_refused_by_name(
    change: dict[str, Any], words: str, source: Path
) -> None:
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = GPTQ | change
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words) as caught:
        open_model(source)
    assert caught.value.hint


def change_part(folder: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors.pop(name)
    if value is not None:
        tensors[name] = value
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("qzeros", None, "no file of the model has the tensor"),
        ("scales", torch.zeros(1, 32, dtype=torch.float16), "has shape"),
        ("qweight", torch.zeros(4, 32), "stored as F32"),
        ("scales", torch.zeros(2, 32, dtype=torch.int32), "stored as I32"),
        ("g_idx", None, "g_idx"),
        ("g_idx", torch.full((32,), 2, dtype=torch.int32), "group that is not there"),
        ("g_idx", torch.full((32,), -1, dtype=torch.int32), "group that is not there"),
    ],
)
def test_damaged_parts_are_model_errors(
    part: str, value: torch.Tensor | None, words: str, source: Path, tmp_path: Path
) -> None:
    packer, config = KINDS["gptq by activation"]
    pack_folder(source, packer, config, tmp_path / "packed")
    change_part(tmp_path / "packed", f"model.layers.1.self_attn.q_proj.{part}", value)
    with pytest.raises(ModelError, match=words) as caught:
        LlamaShard(open_model(tmp_path / "packed")).load(Span(0, 2))
    assert caught.value.hint


def test_sizes_that_do_not_fit_words_are_refused(tmp_path: Path) -> None:
    for shape in ((12, 16), (16, 12), (16,)):
        with pytest.raises(ModelError, match="can't be packed"):
            packed_shapes(read(GPTQ), {"a.weight": shape}, ["a.qweight"])
