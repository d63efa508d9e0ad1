"""Tiny random checkpoints of the transformers library's causal language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from bench._random_model import write_tokenizer

LAYERS = 6
VOCABULARY = 300

# Small values for the names that configs use; each model takes those that it knows.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
    "init_std": 0.2,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "attention_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "rotary_dim", "v_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("swa_head_dim", "kv_channels", "index_head_dim"), 8),
    "qk_rope_head_dim": 4,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 128),
    "sliding_window": 8,
    "first_k_dense_replace": 1,
    "index_topk": 8,
    "index_n_heads": 2,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": None,
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    "mamba_n_groups": 1,
    "n_groups": 1,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
}
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"head_dim": 4, "linear_head_dim": 8, "linear_num_heads": 4,
                       "num_expert_group": 1, "topk_group": 1, "num_experts_per_token": 2,
                       "layer_group_size": 3},
    "bamba": {"attn_layer_indices": [1, 4]},
    "cohere_compass_text": {"rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
             "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2,
                            "hidden_size": 32}},
    "dots3_note_text": {"num_key_value_heads": 4, "per_layer_config": {}, "head_dim": 12},
    "gemma4_text": {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]], "window_size": 8},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 3},
    "kimi_linear": {"num_experts_per_token": 2, "linear_head_dim": 8, "linear_num_heads": 4,
                    "layer_types": ["linear_attention", "full_attention"] * 3},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 3},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "modernbert-decoder": {"pad_token_id": 299, "cls_token_id": 256, "sep_token_id": 257},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp",
                                         "linear_attention", "full_attention"],
                   "mamba_num_heads": 8, "mamba_head_dim": 8, "head_dim": 8,
                   "moe_shared_expert_intermediate_size": 16},
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid_sliding"] * 3},
    "falcon_h1": {"mamba_d_ssm": 64},
}  # fmt: skip
"""What single models need besides, or instead."""

_ENCODER = "an encoder: it looks at what follows, so it can't answer token by token"
_HALF = "half of an encoder and a decoder"
_PART = "text is one part of its config.json; take the text model alone, where there is one"
_LLAMA = "its architecture is named as a Llama's, and read as one by the fast engine"
NOT_TRIED: dict[str, str] = {
    **dict.fromkeys(("internlm3", "iquestcoder"), _LLAMA),
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie",
         "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
         "xlm-roberta", "xlm-roberta-xl", "xmod", "xlm", "xlnet", "reformer"), _ENCODER),
    **dict.fromkeys(
        ("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp",
         "pegasus", "plbart", "prophetnet", "trocr", "whisper"), _HALF),
    **dict.fromkeys(
        ("dots3_note", "emu3", "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "git",
         "got_ocr2", "llama4", "mllama", "moshi", "moss_transcribe_diarize", "musicgen",
         "musicgen_melody", "phi4_multimodal", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "blt"),
        _PART),
}  # fmt: skip


def tiny_config(model_type: str, **settings: Any) -> Any:
    """The library's config of a tiny model of this type, with `settings` instead of some."""
    config_class = CONFIG_MAPPING[model_type]
    known = config_class().to_dict()
    sizes = {key: value for key, value in SIZES.items() if key in known}
    if "qk_rope_head_dim" in known:  # latent attention: as many keys as queries, made anew
        sizes |= {"num_key_value_heads": 4, "head_dim": 4}
    return config_class(**sizes | SPECIAL.get(model_type, {}) | settings)


def make_tiny(model_type: str, folder: Path, seed: int = 0, **settings: Any) -> Any:
    """Save a tiny random model with a tokenizer under `folder`; the library's model of it."""
    torch.manual_seed(seed)
    config = tiny_config(model_type, **settings)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.train(False)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model
