"""Llama's relatives give what transformers gives for them, layer window by layer window."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench._random_model import write_tokenizer
from gennode.engine.checkpoint.weights import open_model
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.seam import StepInput
from gennode.errors import ModelError
from gennode.wire.ids import Span

TOKENS = 80
LAYERS = 4
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
KINDS = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {"sliding_window": 24, "head_dim": 16}),
    "mistral-wide": ("mistral", {"sliding_window": None, "head_dim": 8}),
    "qwen2": ("qwen2", {}),
    "qwen2-upper-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2},
    ),
    "qwen2-mixed": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 20, "layer_types": KINDS},
    ),
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-window-bias": (
        "qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 20,
         "max_window_layers": 1, "attention_bias": True},
    ),
}  # fmt: skip
NAMES = {
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def make_model(folder: Path, kind: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | settings)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.train(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


@pytest.mark.parametrize("name", FAMILY)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    kind, settings = FAMILY[name]
    reference = make_model(tmp_path, kind, settings)
    tokens = np.random.default_rng(5).integers(0, 300, TOKENS).tolist()
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    folder = open_model(tmp_path)
    assert folder.manifest.shape.architecture == NAMES[kind]
    owner = LlamaOwner(folder)
    states = owner.embed(tokens, 0)
    for span in (Span(0, 1), Span(1, LAYERS)):
        states = run_in_pieces(LlamaShard(folder), span, states)
    found = np.array([owner.logits(row) for row in states])
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 1e-4


def run_in_pieces(shard: LlamaShard, span: Span, states: Any) -> Any:
    """A prompt, a chunk, a chunk longer than any window, and single rows; beside a neighbour."""
    shard.load(span)
    shard.open("s", span, TOKENS)
    shard.open("t", span, TOKENS)
    found = []
    cuts = [0, 30, 40, 70, *range(71, TOKENS + 1)]
    for start, end in itertools.pairwise(cuts):
        one = StepInput("s", start, states[start:end])
        other = StepInput("t", shard.length("t"), states[start : start + 1])
        found.append(shard.step([other, one])[1])
    return np.concatenate(found)


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("qwen2", {"layer_types": KINDS[:3]}, "layer_types"),
        ("qwen2", {"layer_types": [*KINDS[:3], "chunked_attention"]}, "layer_types"),
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ],
)
def test_what_the_fast_engine_does_not_compute_is_refused(
    kind: str, change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    make_model(tmp_path, kind, {"num_hidden_layers": LAYERS})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=problem):
        open_model(tmp_path)
