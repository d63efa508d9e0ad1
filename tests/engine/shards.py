"""A random Llama whose layers take chunks of their own, in one file or several."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch

from bench._random_model import random_llama
from gennode.engine.checkpoint.layout import INDEX, SINGLE
from gennode.wire.manifest import ModelShape

LAYERS = 4
SHAPE = ModelShape("LlamaForCausalLM", LAYERS, 512, 8, 8, 64, 1536, 300, 128)
"""6.8 MB of bf16 per layer: at least one chunk that no other layer touches."""


def write_single(folder: Path, seed: int = 1) -> Path:
    """All weights in model.safetensors."""
    random_llama(folder, SHAPE, seed)
    return folder


def write_sharded(folder: Path, seed: int = 1) -> Path:
    """The same weights in one file per layer, and one for the rest."""
    random_llama(folder, SHAPE, seed)
    tensors = safetensors.torch.load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    placed = {
        name: f"layer-{name.split('.')[2]}.safetensors" if ".layers." in name
        else "rest.safetensors"
        for name in tensors
    }  # fmt: skip
    for file in set(placed.values()):
        part = {name: tensors[name] for name in tensors if placed[name] == file}
        safetensors.torch.save_file(part, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder
