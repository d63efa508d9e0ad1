"""Any other decoder's config.json: bounded, cleaned of what would run or fetch code, and read."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from gennode.engine.checkpoint.architectures import SUPPORTED
from gennode.errors import ModelError
from gennode.wire.ids import MAX_LAYERS, Span
from gennode.wire.manifest import ModelShape

MAX_DEPTH = 6  # a published config's rope settings per kind of layer lie at 3
MAX_VALUES = 20_000  # lists per layer, of experts or sizes: published ones have below 1,000
MAX_CHARACTERS = 4096
MAX_INTEGER = 1 << 31
MAX_NESTED_INTEGER = 1 << 16  # in lists: widths or repetitions per layer, which multiply lists
MAX_WIDTH = 1 << 18  # twice what any published decoder has, or more
MAX_POSITIONS = 1 << 24
MAX_VOCABULARY = 1 << 22
MAX_EXPERTS = 1 << 17  # in all layers together; 61 layers of 384 have been published

# What a config may say and the library must not hear: where code lies, and which kernels to
# fetch; how to compute is for us to choose.
_DROPPED = frozenset(
    {"auto_map", "custom_pipelines", "_commit_hash", "_name_or_path", "transformers_weights"}
    | {"attn_implementation", "_attn_implementation", "_attn_implementation_internal"}
    | {"experts_implementation", "_experts_implementation", "use_kernels", "use_mamba_kernels"}
    | {"torch_dtype", "dtype", "torchscript", "gradient_checkpointing", "use_cache"}
    | {"output_attentions", "output_hidden_states", "return_dict", "tie_encoder_decoder"}
    | {"output_router_logits", "base_model_tp_plan", "base_model_pp_plan", "adapters"}
)
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_LAYER_LISTS = ("layers_block_type", "hybrid_override_pattern", "layer_types")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "attention_heads", "num_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads")
_FFN = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "block_ff_dim")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_top_k")
_EXPERT_DIM = ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size", "ffn_dim")
_SHARED_DIM = ("shared_expert_intermediate_size", "shared_intermediate_size")
_SHARED_BY_LAYERS: dict[str, Callable[[Any], bool]] = {
    "num_kv_shared_layers": lambda layers: layers == 0,
    "kv_sharing_modes": lambda modes: isinstance(modes, list) and not any(modes),
    "hidden_size_per_layer_input": lambda width: width == 0,
    "indexer_types": lambda types: isinstance(types, list) and "shared" not in types,
}
"""Settings by which a span of layers can't be computed apart, and whether they do so."""

_HINT = "docs/models.md lists what can be used; take such a model in Hugging Face format"

EndTokens = int | list[int] | None


@dataclass(frozen=True)
class AnyConfig:
    """A decoder that the generic engine runs. `settings`: what the library is told of it."""

    model_type: str
    architecture: str
    settings: Mapping[str, Any]

    @property
    def num_hidden_layers(self) -> int:
        """How many layers lie between embedding and final norm."""
        return self.shape.layers

    @property
    def hidden_size(self) -> int:
        """Width of the states between layers."""
        return self.shape.dim

    @property
    def vocab_size(self) -> int:
        """Tokens that the model knows."""
        return self.shape.vocab

    @property
    def max_position_embeddings(self) -> int:
        """The longest sequence that the model was made for."""
        return self.shape.max_positions

    @property
    def eos_token_id(self) -> EndTokens:
        """Tokens that end an answer, as config.json has them."""
        found: EndTokens = self.settings.get("eos_token_id")
        return found

    @cached_property
    def shape(self) -> ModelShape:
        """The sizes as far as the file states them; the usual defaults elsewhere.

        They serve placement and memory accounts. The library has its own defaults, which may
        change; a model's id must not.
        """
        return _shape(self.architecture, self.settings)

    def tensors(self, names: Collection[str], span: Span | None, *, owner: bool) -> list[str]:
        """Which of all the model's tensors belong to a span of layers, and to an owner."""
        container = _container(names, self.num_hidden_layers)
        return [
            name for name in sorted(names)
            if _wanted(layer_of(name, container), span, self.num_hidden_layers, owner=owner)
        ]  # fmt: skip


def layer_of(name: str, container: str) -> int | None:
    """The layer that a tensor belongs to, None if it lies around the layers."""
    if not name.startswith(container + "."):
        return None
    number = name[len(container) + 1 :].partition(".")[0]
    return int(number) if number.isdecimal() and len(number) <= 4 else None


def _wanted(layer: int | None, span: Span | None, layers: int, *, owner: bool) -> bool:
    if layer is None:
        return owner
    # Beyond the last layer some models keep what they were trained with to draft tokens.
    return span is not None and span.start <= layer < min(span.end, layers)


def _container(names: Collection[str], layers: int) -> str:
    """What precedes the layers' numbers in names: `model.layers`, `transformer.h`, ...

    It is the first list in which all numbers from 0 to `layers` appear: heads that draft
    tokens, and experts, are lists as well. ModelError if there is none.
    """
    found: dict[str, set[int]] = {}
    for name in names:
        parts = name.split(".")
        numbers = (index for index, part in enumerate(parts) if part.isdecimal())
        if place := next(numbers, 0):
            found.setdefault(".".join(parts[:place]), set()).add(int(parts[place][:9]))
    whole = [each for each, numbers in found.items() if numbers.issuperset(range(layers))]
    if not whole:
        raise ModelError(f"no list of {layers} layers is among the tensors' names",
                         hint="take config.json and the weights from the same model")  # fmt: skip
    return min(whole, key=lambda each: (each.count("."), each))


def parse_any(data: bytes, file: str) -> AnyConfig:
    """A checked config from the bytes of `file`; ModelError names what is wrong."""
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{file} is malformed: {error}", hint="download it again") from error
    _check_values(found, file)
    model_type = found.get("model_type")
    architecture = SUPPORTED.get(model_type) if isinstance(model_type, str) else None
    stated = found.get("architectures")
    if architecture is None or stated != [architecture]:
        named = ", ".join(str(each) for each in stated) if isinstance(stated, list) else ""
        raise ModelError(
            f"{file} describes {(named or str(model_type or 'no architecture'))[:128]}, which "
            "is not supported",
            hint=_HINT,
        )
    for key in ("quantization_config", "text_config"):
        if found.get(key):
            raise ModelError(f"{file} has a {key}, which is not supported", hint=_HINT)
    for key, is_harmless in _SHARED_BY_LAYERS.items():
        if found.get(key) and not is_harmless(found[key]):
            raise ModelError(f"{file}: by {key}, layers need what only others have", hint=_HINT)
    settings = {key: value for key, value in found.items() if key not in _DROPPED}
    config = AnyConfig(str(model_type), architecture, settings)
    _check_sizes(config, file)
    return config


def _values(value: object, depth: int, key: str = "") -> Iterator[tuple[object, int, str]]:
    """Everything in a JSON value with its depth and its own key, itself included."""
    yield value, depth, key
    if depth > MAX_DEPTH:
        return
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _values(each, depth + 1, name)
    elif isinstance(value, list):
        for each in value:
            yield from _values(each, depth + 1)


def _check_values(found: dict[str, Any], file: str) -> None:
    """Bounds on every value, before anything else looks at them."""
    for count, (value, depth, key) in enumerate(_values(found, 0)):
        limit = MAX_INTEGER if depth < 2 or key else MAX_NESTED_INTEGER
        problem = ""
        if count > MAX_VALUES:
            problem = f"more than {MAX_VALUES} values"
        elif depth > MAX_DEPTH:
            problem = f"values {depth} levels deep"
        elif isinstance(value, str) and len(value) > MAX_CHARACTERS:
            problem = f"a text of {len(value)} characters"
        elif isinstance(value, int) and abs(value) > limit and not key.endswith("theta"):
            problem = f"a number over {limit}"
        elif isinstance(value, float) and not math.isfinite(value):
            problem = "a number that is none"
        if problem:
            raise ModelError(f"{file} has {problem}", hint="don't use this model")


def _check_sizes(config: AnyConfig, file: str) -> None:
    """ModelError if a size is missing or larger than any published model's."""
    try:
        shape = config.shape
        msgspec.msgpack.decode(msgspec.msgpack.encode(shape), type=ModelShape)
    except (ValueError, TypeError, msgspec.ValidationError) as error:
        raise ModelError(f"{file}: {error}", hint=_HINT) from error
    for size, limit, what in (
        (shape.layers, MAX_LAYERS, "layers"),
        (shape.dim, MAX_WIDTH, "hidden size"),
        (shape.heads * shape.head_dim, 4 * MAX_WIDTH, "width of attention"),
        (shape.ffn_dim, 4 * MAX_WIDTH, "intermediate size"),
        (shape.vocab, MAX_VOCABULARY, "vocabulary"),
        (shape.max_positions, MAX_POSITIONS, "positions"),
        (shape.experts * shape.layers, MAX_EXPERTS, "experts in all layers"),
    ):
        if not 0 < size + (what == "experts in all layers") <= limit:
            raise ModelError(f"{file}: {size} is no possible {what}", hint=_HINT)


def _shape(architecture: str, found: Mapping[str, Any]) -> ModelShape:
    """The manifest's sizes; ValueError names what is missing."""
    listed = next((found[key] for key in _LAYER_LISTS if found.get(key)), None)
    dim = _number(found, _WIDTHS)
    heads = _number(found, _HEADS, 1)
    width = _number(found, ("qk_nope_head_dim",), 0) + _number(found, ("qk_rope_head_dim",), 0)
    experts = _number(found, _EXPERTS, 0)
    expert_dim = _number(found, _EXPERT_DIM, 4 * dim) if experts else 0
    shared_dim = _number(found, _SHARED_DIM, 0) if experts else 0
    if experts and not shared_dim:
        shared_dim = _number(found, ("n_shared_experts", "num_shared_experts"), 0) * expert_dim
    return ModelShape(
        architecture=architecture,
        layers=_number(found, _LAYERS, len(listed) if isinstance(listed, list | str) else None),
        dim=dim,
        heads=heads,
        kv_heads=1 if found.get("multi_query") is True else _number(found, _KV_HEADS, heads),
        head_dim=width or _number(found, ("head_dim",), max(1, dim // heads)),
        ffn_dim=_number(found, _FFN, 4 * dim),
        vocab=_number(found, ("vocab_size",)),
        max_positions=_number(found, _POSITIONS, 2048),
        experts=experts,
        experts_used=min(experts, _number(found, _EXPERTS_USED, 1)) if experts else 0,
        expert_dim=expert_dim,
        shared_dim=shared_dim,
        tied=found.get("tie_word_embeddings") is True,
    )


def _number(found: Mapping[str, Any], keys: Collection[str], default: int | None = None) -> int:
    """The first of these keys that holds a whole number (of a list, the largest in it)."""
    for key in keys:
        value = found.get(key)
        if isinstance(value, list) and value and all(type(each) is int for each in value):
            value = max(value)
        if type(value) is int and value >= 0:
            return value
        if value is not None and not isinstance(value, list):
            raise ValueError(f"{key} is {str(value)[:64]}, not a size")
    if default is None:
        raise ValueError(f"there is no {' or '.join(keys)}")
    return default
