"""The config.json of a model of the Llama family, checked, and the tensors that it promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import msgspec

from gennode.engine.checkpoint.quantised import Quantisation
from gennode.errors import ModelError
from gennode.wire.ids import MAX_LAYERS
from gennode.wire.manifest import ModelShape

ARCHITECTURE = "LlamaForCausalLM"

# Twice the largest figure of any published decoder or more; a larger one is a damaged or
# malicious file, and would have us allocate terabytes.
_Width = Annotated[int, msgspec.Meta(ge=1, le=1 << 18)]
_Heads = Annotated[int, msgspec.Meta(ge=1, le=1024)]
_Layers = Annotated[int, msgspec.Meta(ge=1, le=MAX_LAYERS)]
_Vocabulary = Annotated[int, msgspec.Meta(ge=1, le=1 << 22)]
_Positions = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
_Token = Annotated[int, msgspec.Meta(ge=0, le=1 << 22)]
_Factor = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
_Theta = Annotated[float, msgspec.Meta(ge=1, le=1e12)]
_EndTokens = _Token | Annotated[list[_Token], msgspec.Meta(max_length=256)] | None

_Window = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
_LayerType = Literal["full_attention", "sliding_attention"]

_REFUSED_HINT = "use a Llama, Mistral or Qwen model in Hugging Face format"


class Rope(msgspec.Struct, frozen=True):
    """How rotary frequencies are stretched: `rope_scaling`, or `rope_parameters` since 2026."""

    rope_type: str | None = None
    type: str | None = None  # the older name of rope_type
    rope_theta: _Theta | None = None
    partial_rotary_factor: float = 1.0
    factor: _Factor = 1.0
    low_freq_factor: _Factor = 1.0
    high_freq_factor: _Factor = 4.0
    original_max_position_embeddings: _Positions = 8192

    @property
    def kind(self) -> str:
        """`default` or `llama3`, once the config has been checked."""
        return self.rope_type or self.type or "default"


class LlamaConfig(msgspec.Struct, frozen=True):
    """The keys of config.json that decide what a Llama computes; others are ignored.

    The other architectures differ in a few of them, and in what is meant where one is missing:
    there each class says what transformers takes.
    """

    architecture: ClassVar[str] = ARCHITECTURE
    has_head_norms: ClassVar[bool] = False

    hidden_size: _Width
    intermediate_size: _Width
    num_hidden_layers: _Layers
    num_attention_heads: _Heads
    vocab_size: _Vocabulary
    architectures: tuple[str, ...] = ()
    num_key_value_heads: _Heads | None = None
    head_dim: Annotated[int, msgspec.Meta(ge=2, le=4096)] | None = None
    max_position_embeddings: _Positions = 2048
    rms_norm_eps: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-6
    rope_theta: _Theta | None = None
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    eos_token_id: _EndTokens = None
    quantization_config: Quantisation | None = None

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; each serves heads / kv_heads query heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope(self) -> Rope:
        """Rotary settings, wherever the file keeps them."""
        return self.rope_parameters or self.rope_scaling or Rope()

    @property
    def theta(self) -> float:
        """Base of the rotary frequencies; Llama's own default is 10,000."""
        return self.rope.rope_theta or self.rope_theta or 10000.0

    @property
    def shape(self) -> ModelShape:
        """The sizes as a manifest states them: not that the head is tied, or ids would change."""
        return ModelShape(
            architecture=self.architecture,
            layers=self.num_hidden_layers,
            dim=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_width,
            ffn_dim=self.intermediate_size,
            vocab=self.vocab_size,
            max_positions=self.max_position_embeddings,
        )

    @property
    def query_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.attention_bias

    @property
    def out_bias(self) -> bool:
        """Whether what attention gives out has a bias."""
        return self.attention_bias

    def window(self, layer: int) -> int | None:
        """How many positions a row of this layer sees, its own among them; None if all."""
        return None

    def layer_tensors(self, layer: int) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of one layer's tensors, as the checkpoint has them."""
        dim, ffn = self.hidden_size, self.intermediate_size
        queries = self.num_attention_heads * self.head_width
        keys = self.kv_heads * self.head_width
        matrices = {
            "self_attn.q_proj": (queries, dim, self.query_bias),
            "self_attn.k_proj": (keys, dim, self.query_bias),
            "self_attn.v_proj": (keys, dim, self.query_bias),
            "self_attn.o_proj": (dim, queries, self.out_bias),
            "mlp.gate_proj": (ffn, dim, self.mlp_bias),
            "mlp.up_proj": (ffn, dim, self.mlp_bias),
            "mlp.down_proj": (dim, ffn, self.mlp_bias),
        }
        prefix = f"model.layers.{layer}."
        shapes: dict[str, tuple[int, ...]] = {
            f"{prefix}input_layernorm.weight": (dim,),
            f"{prefix}post_attention_layernorm.weight": (dim,),
        }
        if self.has_head_norms:
            shapes[f"{prefix}self_attn.q_norm.weight"] = (self.head_width,)
            shapes[f"{prefix}self_attn.k_norm.weight"] = (self.head_width,)
        for name, (rows, columns, biased) in matrices.items():
            shapes[f"{prefix}{name}.weight"] = (rows, columns)
            if biased:
                shapes[f"{prefix}{name}.bias"] = (rows,)
        return shapes

    def owner_tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of what lies around the layers: embedding, final norm, head."""
        table = (self.vocab_size, self.hidden_size)
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": table,
            "model.norm.weight": (self.hidden_size,),
        }
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = table
        return shapes


class MistralConfig(LlamaConfig, frozen=True):
    """Mistral: a row may see the last `sliding_window` positions alone, in every layer."""

    architecture: ClassVar[str] = "MistralForCausalLM"

    num_key_value_heads: _Heads | None = 8
    max_position_embeddings: _Positions = 131072
    sliding_window: _Window | None = 4096

    @property
    def query_bias(self) -> bool:
        """Never."""
        return False

    @property
    def out_bias(self) -> bool:
        """Never."""
        return False

    def window(self, layer: int) -> int | None:
        """The same for all layers."""
        return self.sliding_window


class Qwen2Config(LlamaConfig, frozen=True):
    """Qwen2: queries, keys and values have biases; some layers may have a window."""

    architecture: ClassVar[str] = "Qwen2ForCausalLM"

    num_key_value_heads: _Heads | None = 32
    max_position_embeddings: _Positions = 32768
    use_sliding_window: bool = False
    sliding_window: _Window | None = 4096
    max_window_layers: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)] = 28
    layer_types: Annotated[tuple[_LayerType, ...], msgspec.Meta(max_length=MAX_LAYERS)] | None = (
        None
    )

    @property
    def query_bias(self) -> bool:
        """Always."""
        return True

    @property
    def out_bias(self) -> bool:
        """Never."""
        return False

    def window(self, layer: int) -> int | None:
        """Of layers that `layer_types` names, else of those from `max_window_layers` on."""
        if not self.use_sliding_window or self.sliding_window is None:
            return None
        if self.layer_types is not None:
            return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None
        return self.sliding_window if layer >= self.max_window_layers else None


class Qwen3Config(Qwen2Config, frozen=True):
    """Qwen3: each head of queries and keys is normalised before it is turned."""

    architecture: ClassVar[str] = "Qwen3ForCausalLM"
    has_head_norms: ClassVar[bool] = True

    head_dim: Annotated[int, msgspec.Meta(ge=2, le=4096)] | None = 128

    @property
    def query_bias(self) -> bool:
        """As the config says."""
        return self.attention_bias

    @property
    def out_bias(self) -> bool:
        """As the config says."""
        return self.attention_bias


FAMILY: Mapping[str, type[LlamaConfig]] = {
    config.architecture: config for config in (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)
}
"""The architectures that the fast engine computes, by their names in config.json."""


def parse_llama(data: bytes, file: str, architecture: str = ARCHITECTURE) -> LlamaConfig:
    """A checked config of one of the family; ModelError names the key of `file` that is wrong."""
    try:
        config = msgspec.json.decode(data, type=FAMILY[architecture])
    except (msgspec.ValidationError, msgspec.DecodeError, RecursionError) as error:
        raise ModelError(
            f"{file} is not a model config we can use: {error}",
            hint="download the model again, or " + _REFUSED_HINT,
        ) from error
    packing = config.quantization_config and config.quantization_config.problem()
    types = config.layer_types if isinstance(config, Qwen2Config) else None
    for holds, problem in (
        (packing is None, str(packing)),
        (types is None or len(types) == config.num_hidden_layers,
         "layer_types and num_hidden_layers disagree"),
        (config.num_attention_heads % config.kv_heads == 0,
         "num_attention_heads is no multiple of num_key_value_heads"),
        (config.head_dim or config.hidden_size % config.num_attention_heads == 0,
         "hidden_size is no multiple of num_attention_heads"),
        (config.head_width >= 2 and config.head_width % 2 == 0, "head_dim is odd"),
        (config.hidden_act == "silu", f"hidden_act is {config.hidden_act[:64]!r}, not 'silu'"),
        (config.rope.kind in ("default", "llama3"),
         f"rope_type {config.rope.kind[:64]!r} is not supported"),
        (config.rope.partial_rotary_factor == 1, "partial_rotary_factor is not 1"),
        (config.rope.kind != "llama3"
         or config.rope.low_freq_factor < config.rope.high_freq_factor,
         "low_freq_factor is not below high_freq_factor"),
    ):  # fmt: skip
        if not holds:
            raise ModelError(f"{file}: {problem}", hint=_REFUSED_HINT)
    return config
