"""Small random Llamas as GGUF: in F16 by our own writer, in other kinds by llama.cpp."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import LlamaForCausalLM

from gennode.engine.gguf.format import Setting, Tensor, padding, write_header
from gennode.engine.gguf.native import library
from tests.engine.conftest import make_llama

LAYERS = 6
FTYPES = {"q8_0": 7, "q4_0": 2, "q4_k": 14}  # llama.cpp's numbers of whole files' kinds
Array = npt.NDArray[np.float16] | npt.NDArray[np.float32]

_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def make(folder: Path, **settings: Any) -> LlamaForCausalLM:
    """A Llama in Hugging Face format in `folder`, and as folder/gguf/f16/model.gguf."""
    values = {
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.08,
    }  # fmt: skip
    model = make_llama(folder, **(values | settings))
    target = folder / "gguf" / "f16"
    target.mkdir(parents=True)
    (target / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    write(target / "model.gguf", settings_of(model), tensors_of(model))
    return model


def settings_of(model: LlamaForCausalLM) -> dict[str, Setting]:
    """What a file says of that model."""
    config: Any = model.config
    return {
        "general.architecture": "llama",
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "no_vocab",
        "tokenizer.ggml.eos_token_id": 257,
    }


def tensors_of(model: LlamaForCausalLM) -> dict[str, Array]:
    """Its weights by GGUF's names: matrices in F16, norms in F32, heads' halves interleaved."""
    config: Any = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    result: dict[str, Array] = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if name.startswith("model.layers."):
            short = _NAMES[".".join(parts[3:-1])]
            target = f"blk.{parts[2]}.{short}.weight"
        else:
            short = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[
                parts[-2]
            ]
            target = f"{short}.weight"
        array: Array = tensor.float().numpy() if tensor.ndim == 1 else tensor.half().numpy()
        if short in heads:
            # llama.cpp turns pairs of neighbours where transformers turns halves of a head.
            halves = array.reshape(heads[short], 2, config.head_dim // 2, config.hidden_size)
            result[target] = halves.swapaxes(1, 2).reshape(-1, config.hidden_size).copy()
        else:
            result[target] = array
    return result


def write(file: Path, settings: dict[str, Setting], arrays: dict[str, Array]) -> None:
    """A GGUF file of these."""
    tensors = [
        Tensor(name, array.shape, 0 if array.dtype == np.float32 else 1, 0, array.nbytes)
        for name, array in arrays.items()
    ]
    with file.open("wb") as stream:
        stream.write(write_header(settings, tensors))
        for array in arrays.values():
            stream.write(array.tobytes() + padding(array.nbytes))


def quantise(folder: Path, kind: str) -> Path:
    """The folder beside `f16` with the same model in another kind, by llama.cpp's own code."""
    source = folder / "gguf" / "f16"
    target = folder / "gguf" / kind
    target.mkdir()
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    llama: Any = library()
    options = llama.llama_model_quantize_default_params()
    options.ftype, options.pure, options.nthread = FTYPES[kind], True, 1
    files = [str(each / "model.gguf").encode() for each in (source, target)]
    assert llama.llama_model_quantize(*files, ctypes.byref(options)) == 0
    return target
