"""The layers of a random Llama folder as GGUF, for llama.cpp: F16, or quantised by llama.cpp."""

from __future__ import annotations

import ctypes
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from bench._engine_llamacpp import be_silent, llama
from gennode.wire.manifest import ModelShape

gguf: Any = importlib.import_module("gguf")  # not everybody has it

STUB_VOCABULARY = 32  # llama.cpp wants an embedding and a head; of 32 rows they cost nothing

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_f16(folder: Path, shape: ModelShape, file: Path) -> None:
    """`shape.layers` layers of the folder in F16 (norms in F32), one tensor in memory at a time."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(shape.max_positions)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn_dim)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(STUB_VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    stub = np.zeros((STUB_VOCABULARY, shape.dim), np.float16)
    stubs: dict[str, npt.NDArray[np.float16] | npt.NDArray[np.float32]] = {
        "token_embd.weight": stub,
        "output.weight": stub,
        "output_norm.weight": np.ones(shape.dim, np.float32),
    }
    names = {
        f"blk.{layer}.{short}.weight": f"model.layers.{layer}.{long}.weight"
        for layer in range(shape.layers)
        for long, short in _NAMES.items()
    }
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        for name, long in names.items():
            size = tensors.get_slice(long).get_shape()
            dtype = np.dtype(np.float32 if len(size) == 1 else np.float16)
            writer.add_tensor_info(name, size, dtype, int(np.prod(size)) * dtype.itemsize)
        for name, array in stubs.items():
            writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, long in names.items():
            writer.write_tensor_data(_converted(tensors.get_tensor(long), name, shape))
        for array in stubs.values():
            writer.write_tensor_data(array)
    writer.close()


def _converted(tensor: torch.Tensor, name: str, shape: ModelShape) -> npt.NDArray[np.generic]:
    """llama.cpp turns pairs of neighbours where the folder's format turns halves of a head."""
    if tensor.ndim == 1:
        return tensor.float().numpy()
    array: npt.NDArray[np.float16] = tensor.half().numpy()
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(name.split(".")[2])
    if heads is None:
        return array
    halves = array.reshape(heads, 2, shape.head_dim // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def quantise(source: Path, file: Path, threads: int) -> None:
    """All matrices of `source` to Q8_0, by llama.cpp's own code."""
    be_silent()
    options = llama.llama_model_quantize_default_params()
    options.nthread = threads
    options.ftype = llama.LLAMA_FTYPE_MOSTLY_Q8_0
    options.pure = True
    result = llama.llama_model_quantize(
        str(source).encode(), str(file).encode(), ctypes.byref(options)
    )
    if result != 0:
        raise RuntimeError(f"llama.cpp could not quantise {source}: {result}")
