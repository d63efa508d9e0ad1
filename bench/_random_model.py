"""Llama folders with random weights, of any size, for measurements and tests."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from gennode.wire.manifest import ModelShape

BEGIN, END = "<s>", "</s>"
MIN_VOCABULARY = 258  # every byte, a begin and an end

LLAMA_1B = ModelShape(
    architecture="LlamaForCausalLM",
    layers=22,
    dim=2048,
    heads=32,
    kv_heads=4,
    head_dim=64,
    ffn_dim=5632,
    vocab=32000,
    max_positions=2048,
)
"""The sizes of a well-known 1.1 B model."""


def random_llama(path: Path, shape: ModelShape, seed: int) -> None:
    """Write a model folder with bf16 weights, holding no more than one tensor in memory.

    `shape.vocab` must be at least 258.
    """
    path.mkdir(parents=True, exist_ok=True)
    write_tokenizer(path)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.dim,
        "intermediate_size": shape.ffn_dim,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    (path / "config.json").write_text(json.dumps(config, indent=1))
    _write_weights(path / "model.safetensors", _sizes(shape), seed)


def write_tokenizer(path: Path) -> None:
    """A tokenizer.json with one token per byte, a begin (256) before each text, an end (257)."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BEGIN, END])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    tokenizer.save(str(path / "tokenizer.json"))


def _sizes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, shape.dim)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        sizes |= {
            f"{prefix}input_layernorm.weight": (shape.dim,),
            f"{prefix}self_attn.q_proj.weight": (queries, shape.dim),
            f"{prefix}self_attn.k_proj.weight": (keys, shape.dim),
            f"{prefix}self_attn.v_proj.weight": (keys, shape.dim),
            f"{prefix}self_attn.o_proj.weight": (shape.dim, queries),
            f"{prefix}post_attention_layernorm.weight": (shape.dim,),
            f"{prefix}mlp.gate_proj.weight": (shape.ffn_dim, shape.dim),
            f"{prefix}mlp.up_proj.weight": (shape.ffn_dim, shape.dim),
            f"{prefix}mlp.down_proj.weight": (shape.dim, shape.ffn_dim),
        }
    sizes["model.norm.weight"] = (shape.dim,)
    sizes["lm_head.weight"] = (shape.vocab, shape.dim)
    return sizes


def _write_weights(file: Path, sizes: dict[str, tuple[int, ...]], seed: int) -> None:
    """The safetensors format by hand, for its library wants all tensors at once."""
    header = {}
    offset = 0
    for name, size in sizes.items():
        end = offset + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    chance = torch.Generator().manual_seed(seed)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for size in sizes.values():
            if len(size) == 1:
                tensor = 1 + 0.1 * torch.randn(size, generator=chance)
            else:
                tensor = torch.randn(size, generator=chance) * size[1] ** -0.5
            stream.write(tensor.bfloat16().view(torch.int16).numpy().tobytes())
