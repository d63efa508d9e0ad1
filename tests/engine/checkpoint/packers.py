"""Writers of packed matrices, code by code, as AutoGPTQ, GPTQModel and AutoAWQ publish them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

Parts = dict[str, torch.Tensor]
Packer = Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]
"""A matrix [out, in] to its parts by their last names, and to what they stand for, fp32."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def quantise(
    weight: torch.Tensor, bits: int, group: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [in, out], zeros and fp16 scales [groups, out], and what they stand for [out, in].

    Zeros are at least 1, since the older GPTQ layout has no place for 0.
    """
    columns = weight.float().T
    groups = int(group.max()) + 1
    most = (1 << bits) - 1
    low = torch.stack([columns[group == each].min(0).values for each in range(groups)])
    high = torch.stack([columns[group == each].max(0).values for each in range(groups)])
    scales = ((high.clamp(min=0) - low.clamp(max=0)) / (most - 1)).half().clamp(min=1e-4)
    zeros = (-low / scales.float()).round().clamp(1, most)
    codes = (columns / scales.float()[group] + zeros[group]).round().clamp(0, most)
    exact = (codes - zeros[group]) * scales.float()[group]
    return codes.long(), zeros.long(), scales, exact.T.contiguous()


def gptq(
    *, bits: int = 4, group_size: int = 16, layout: str = "gptq", act_order: bool = False,
    with_index: bool = True, seed: int = 0,
) -> Packer:  # fmt: skip
    """Codes lie along inputs, zeros along outputs, the first in the lowest bits."""

    def packer(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        inputs = weight.shape[1]
        group = torch.arange(inputs) // (inputs if group_size == -1 else group_size)
        if act_order:
            chance = torch.Generator().manual_seed(seed)
            group = group[torch.randperm(inputs, generator=chance)]
        codes, zeros, scales, exact = quantise(weight, bits, group)
        stored = zeros - 1 if layout == "gptq" else zeros
        parts = {
            "qweight": _words(codes.T.numpy(), bits, range(32 // bits)).T.contiguous(),
            "qzeros": _words(stored.numpy(), bits, range(32 // bits)),
            "scales": scales,
        }
        if with_index:
            parts["g_idx"] = group.int()
        return parts, exact

    return packer


def awq(*, group_size: int = 16) -> Packer:
    """Codes and zeros lie along outputs, of each eight in an order of their own."""

    def packer(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        inputs = weight.shape[1]
        group = torch.arange(inputs) // (inputs if group_size == -1 else group_size)
        codes, zeros, scales, exact = quantise(weight, 4, group)
        parts = {
            "qweight": _words(codes.numpy(), 4, AWQ_ORDER),
            "qzeros": _words(zeros.numpy(), 4, AWQ_ORDER),
            "scales": scales,
        }
        return parts, exact

    return packer


def _words(codes: Any, bits: int, order: Any) -> torch.Tensor:
    """Rows of codes to rows of int32: the code at order[i] of each word's lies i from the right."""
    rows, columns = codes.shape
    pack = 32 // bits
    words = np.zeros((rows, columns // pack), dtype=np.uint32)
    for word in range(columns // pack):
        for place, source in enumerate(order):
            code = codes[:, word * pack + source].astype(np.uint32)
            words[:, word] |= code << np.uint32(place * bits)
    return torch.from_numpy(words.view(np.int32))


def pack_folder(source: Path, packer: Packer, config: Mapping[str, Any], folder: Path) -> Path:
    """A packed copy of a folder with one file; its twin beside it holds the same matrices whole.

    Returns the twin's path.
    """
    tensors = safetensors.torch.load_file(source / "model.safetensors")
    packed: Parts = {}
    whole: Parts = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix(".weight")
        if tensor.ndim == 2 and ".layers." in name:
            parts, exact = packer(tensor)
            packed |= {f"{stem}.{part}": value for part, value in parts.items()}
            whole[name] = exact
        else:
            packed[name] = whole[name] = tensor
    twin = folder.with_name(folder.name + "-whole")
    stated = json.loads((source / "config.json").read_text())
    for path, part, extra in (
        (folder, packed, {"quantization_config": dict(config)}),
        (twin, whole, {}),
    ):
        path.mkdir()
        safetensors.torch.save_file(part, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(stated | extra))
        (path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return twin
