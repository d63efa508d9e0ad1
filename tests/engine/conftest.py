"""Random Llama folders, and the library that their logits are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench._random_model import write_tokenizer

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"num_key_value_heads": 4},
    "grouped": {"num_key_value_heads": 1, "head_dim": 16},
    "tied-llama3": {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE},
    "biased": {"attention_bias": True, "mlp_bias": True},
}


def make_llama(folder: Path, seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """Save a small random Llama under `folder` and return it, in fp32, for comparison."""
    values: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "bos_token_id": 256,
        "eos_token_id": 257,
    } | settings
    torch.manual_seed(seed)
    model: LlamaForCausalLM = LlamaForCausalLM(LlamaConfig(**values))
    model.train(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


@pytest.fixture(scope="session")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, LlamaForCausalLM]]:
    """Each variant of the architecture, once."""
    made = {}
    for name, settings in VARIANTS.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = (folder, make_llama(folder, **settings))
    return made


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    """A small folder that a test may damage."""
    make_llama(tmp_path / "llama", num_hidden_layers=2)
    return tmp_path / "llama"
