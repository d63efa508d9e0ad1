"""Configs of decoders other than Llamas: their sizes, whose tensors are whose, and hostile ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gennode.engine.any.shard import AnyShard
from gennode.engine.checkpoint.any_config import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_VALUES,
    AnyConfig,
    parse_any,
)
from gennode.engine.checkpoint.architectures import SUPPORTED
from gennode.engine.checkpoint.config import parse_config
from gennode.engine.checkpoint.layout import CONFIG, SINGLE, Position, needed
from gennode.engine.checkpoint.weights import open_model
from gennode.errors import ModelError
from gennode.wire.ids import Span
from tests.engine.checkpoint.test_layout import blank, reader
from tools.tiny_models import make_tiny

GEMMA: dict[str, Any] = {
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 300,
    "max_position_embeddings": 128,
}


def parsed(**changes: Any) -> AnyConfig:
    return parse_any(json.dumps(GEMMA | changes).encode(), CONFIG)


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth else 1


def test_sizes_come_from_the_usual_keys() -> None:
    shape = parsed().shape
    assert (shape.layers, shape.dim, shape.heads, shape.kv_heads) == (4, 64, 4, 2)
    assert (shape.head_dim, shape.ffn_dim, shape.max_positions) == (32, 128, 128)
    gpt2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 3, "n_embd": 48,
            "n_head": 6, "n_inner": None, "n_positions": 99, "vocab_size": 300}  # fmt: skip
    shape = parse_any(json.dumps(gpt2).encode(), CONFIG).shape
    assert (shape.layers, shape.dim, shape.heads, shape.kv_heads) == (3, 48, 6, 6)
    assert (shape.head_dim, shape.ffn_dim, shape.max_positions) == (8, 192, 99)
    mixtral = {**GEMMA, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"],
               "num_local_experts": 8, "num_experts_per_tok": 2}  # fmt: skip
    shape = parse_any(json.dumps(mixtral).encode(), CONFIG).shape
    assert (shape.experts, shape.experts_used, shape.expert_dim) == (8, 2, 128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertLMHeadModel"], "model_type": "bert"}, "describes BertLMHeadModel"),
        ({"architectures": ["GPT2LMHeadModel"]}, "describes GPT2LMHeadModel"),
        ({"architectures": []}, "describes gemma2"),
        ({"architectures": "Gemma2ForCausalLM"}, "not supported"),
        ({"model_type": ["gemma2"]}, "not supported"),
        ({"model_type": None}, "not supported"),
        ({"quantization_config": {"quant_method": "bnb"}}, "quantization_config"),
        ({"text_config": {"hidden_size": 8}}, "text_config"),
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers"),
        ({"indexer_types": ["full", "shared"]}, "indexer_types"),
        ({"num_hidden_layers": 0}, "layers"),
        ({"num_hidden_layers": 1 << 20}, "layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"num_hidden_layers": None}, "there is no num_hidden_layers"),
        ({"hidden_size": 1 << 19}, "hidden size"),
        ({"hidden_size": 1 << 30}, "dim"),
        ({"hidden_size": 1 << 40}, "a number over"),
        ({"head_dim": 1 << 28}, "head_dim|attention"),
        ({"vocab_size": 1 << 24}, "vocabulary"),
        ({"vocab_size": True}, "vocab_size"),
        ({"max_position_embeddings": 1 << 30}, "max_positions|positions"),
        ({"num_local_experts": 1 << 16, "num_hidden_layers": 100}, "experts"),
        ({"attention_types": [[["global"], 1 << 30]]}, "a number over"),
        ({"anything": "x" * (MAX_CHARACTERS + 1)}, "a text of"),
        ({"anything": list(range(MAX_VALUES))}, f"more than {MAX_VALUES} values"),
        ({"anything": nested(MAX_DEPTH + 1)}, "levels deep"),
        ({"anything": nested(900)}, "levels deep"),
    ],
)
def test_a_hostile_or_unknown_config_is_refused_by_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        parsed(**changes)
    assert caught.value.hint


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"model_type": NaN}'])
def test_what_is_no_config_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        parse_config(data, CONFIG)


def test_code_and_ways_to_compute_are_not_passed_on() -> None:
    hostile = {
        "auto_map": {"AutoModelForCausalLM": "evil.Model"},
        "attn_implementation": "someone/kernel",
        "_attn_implementation_internal": "someone/kernel",
        "use_mamba_kernels": True,
        "torch_dtype": "bfloat16",
    }
    assert parsed(**hostile).settings == GEMMA


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"] * 3}, "layer_types|layer types"),
        ({"hidden_activation": "no such thing"}, "no such thing"),
        ({"num_attention_heads": "four"}, "num_attention_heads"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1.0}},
            "dynamic",
        ),
        ({"rope_parameters": {"rope_type": "no such rope"}}, "no such rope"),
    ],
)
def test_what_the_library_makes_no_model_of_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    make_tiny("gemma2", tmp_path)
    written = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(written | changes))
    with pytest.raises(ModelError, match=message) as caught:
        AnyShard(open_model(tmp_path))
    assert caught.value.hint


def test_tables_that_would_take_all_memory_are_refused(tmp_path: Path) -> None:
    make_tiny("gpt_neo", tmp_path)
    written = json.loads((tmp_path / CONFIG).read_text())
    written["max_position_embeddings"] = 1 << 22  # its masks would take 16 TiB
    (tmp_path / CONFIG).write_text(json.dumps(written))
    with pytest.raises(ModelError, match="tables would take"):
        AnyShard(open_model(tmp_path))


@pytest.mark.parametrize(
    ("names", "layer"),
    [
        (("model.layers.1.mlp.w", "model.layers.0.mlp.w"), "model.layers.1.mlp.w"),
        (("h.0.w", "h.1.w", "wte.w"), "h.1.w"),
        (("transformer.blocks.0.w", "transformer.blocks.1.experts.0.w"),
         "transformer.blocks.1.experts.0.w"),
        (("m.layers.0.experts.0.w", "m.layers.1.experts.1.w", "mtp.layers.0.w"),
         "m.layers.1.experts.1.w"),
        (("m.layers.0.w", "m.layers.1.w", "m.layers.2.extra"), "m.layers.1.w"),
    ],
)  # fmt: skip
def test_the_first_number_after_the_layers_list_is_the_layer(
    names: tuple[str, ...], layer: str
) -> None:
    config = parsed(num_hidden_layers=2)
    assert config.tensors(names, Span(1, 2), owner=False) == [layer]
    everything = config.tensors(names, Span(0, 2), owner=True)
    assert "m.layers.2.extra" not in everything  # a drafting head: nobody's
    assert config.tensors(names, None, owner=True) == [
        name for name in names if name in ("wte.w", "mtp.layers.0.w")
    ]


def test_weights_without_the_layers_that_the_config_names_are_refused() -> None:
    with pytest.raises(ModelError, match="no list of 4 layers"):
        parsed().tensors(("model.layers.0.w", "model.layers.1.w"), Span(0, 1), owner=False)


def test_a_span_needs_its_own_chunks_and_an_owner_the_rest(tmp_path: Path) -> None:
    make_tiny("gemma2", tmp_path, hidden_size=256, intermediate_size=4096)
    manifest = open_model(tmp_path).manifest
    assert manifest.shape.architecture == "Gemma2ForCausalLM"
    assert needed(manifest, blank, Span(0, 1), owner=False) == {Position(CONFIG, 0)}
    only_config = {CONFIG: (tmp_path / CONFIG).read_bytes()}
    assert needed(
        manifest, lambda file, start, end: only_config.get(file, b"")[start:end] or None,
        Span(0, 1), owner=False,
    ) == {Position(CONFIG, 0), Position(SINGLE, 0)}  # fmt: skip
    spans = [needed(manifest, reader(tmp_path), Span(n, n + 1), owner=False) for n in range(6)]
    owner = needed(manifest, reader(tmp_path), None, owner=True)
    weights = next(file for file in manifest.files if file.name == SINGLE)
    found = {place.number for place in owner.union(*spans) if place.file == SINGLE}
    assert found == set(range(len(weights.chunks)))
    assert len(spans[0] & spans[5]) == 2  # config and header


def test_only_types_with_one_architecture_are_supported() -> None:
    assert len(SUPPORTED) > 100
    assert all(name.isidentifier() for name in SUPPORTED.values())
