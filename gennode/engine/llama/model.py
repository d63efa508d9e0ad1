"""The arithmetic of the Llama family: one layer over the rows of many sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from gennode.engine.cache.memory import Usual
from gennode.engine.cache.pool import KvPool
from gennode.engine.checkpoint.llama_config import LlamaConfig
from gennode.engine.checkpoint.weights import ModelFolder
from gennode.engine.llama.attention import StepRows
from gennode.engine.llama.linear import Linear
from gennode.engine.llama.precision import Arithmetic, MakeLinear

_LEAST_USUAL = 1e-6  # of what is divided by


@dataclass(frozen=True)
class Layer:
    """One layer's weights, those that read the same input side by side.

    `head_norm`: [heads + kv_heads, width], what each head of queries and keys is multiplied
    with once it is normalised; None in models that don't. `window`: how many positions a row
    sees, its own among them; None if all. `usual`: for a cache in 8 bits.
    """

    index: int
    usual: Usual | None
    epsilon: torch.Tensor
    input_norm: torch.Tensor
    query_key_value: Linear
    head_norm: torch.Tensor | None
    window: int | None
    attention_out: Linear
    attention_norm: torch.Tensor
    gate_up: Linear
    down: Linear


def load_layer(
    folder: ModelFolder,
    index: int,
    device: torch.device,
    arithmetic: Arithmetic,
    *,
    with_usual: bool = False,
) -> Layer:
    """Read one layer, one matrix at a time; that one is held twice. Raises ModelError."""
    config = folder.llama
    shapes = config.layer_tensors(index)
    prefix = f"model.layers.{index}."

    def take(names: Sequence[str], dtype: torch.dtype) -> torch.Tensor:
        full = [prefix + name for name in names]
        return folder.read({name: shapes[name] for name in full}, dtype).to(device)

    def linear(*names: str, make: MakeLinear = arithmetic.linear) -> Linear:
        biases = [f"{name}.bias" for name in names]
        has_bias = prefix + biases[0] in shapes
        bias = take(biases, torch.float32) if has_bias else None
        weight = take([f"{name}.weight" for name in names], arithmetic.weight_dtype)
        return make(weight, bias)

    def norm(name: str) -> torch.Tensor:
        return take([f"{name}.weight"], torch.float32)

    head_norm = None
    if prefix + "self_attn.q_norm.weight" in shapes:
        heads, kv_heads = config.num_attention_heads, config.kv_heads
        queries = norm("self_attn.q_norm").expand(heads, -1)
        head_norm = torch.cat((queries, norm("self_attn.k_norm").expand(kv_heads, -1)))
    input_norm = norm("input_layernorm")
    usual = None
    if with_usual:
        lengths = []
        for name in ("self_attn.k_proj", "self_attn.v_proj"):
            weight = take([f"{name}.weight"], torch.float32) * input_norm
            if prefix + f"{name}.bias" in shapes:
                bias = take([f"{name}.bias"], torch.float32)[:, None]
                weight = torch.cat((weight, bias), dim=1)
            lengths.append(torch.linalg.vector_norm(weight, dim=-1))
        usual = usual_of(lengths[0], lengths[1], config, head_norm)
    return Layer(
        index=index,
        usual=usual,
        epsilon=epsilon_of(config, device),
        input_norm=input_norm,
        query_key_value=linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        head_norm=head_norm,
        window=config.window(index),
        attention_out=linear("self_attn.o_proj"),
        attention_norm=norm("post_attention_layernorm"),
        gate_up=linear("mlp.gate_proj", "mlp.up_proj"),
        down=linear("mlp.down_proj", make=arithmetic.long_tailed),
    )


def usual_of(
    keys: torch.Tensor,
    values: torch.Tensor,
    config: LlamaConfig,
    head_norm: torch.Tensor | None,
) -> Usual:
    """How large a layer's keys and values usually are.

    `keys`, `values`: the lengths of the rows that make them of normalised states, [kv_heads ×
    width]. What is turned together is as large together. Only proportions matter: see `Usual`.
    """
    kv_heads, width = config.kv_heads, config.head_width
    lengths = keys.view(kv_heads, width)
    if head_norm is not None:
        lengths = head_norm[-kv_heads:].abs()
    pairs = lengths.view(kv_heads, 2, width // 2)
    together = torch.linalg.vector_norm(pairs, dim=1, keepdim=True).expand_as(pairs)
    return Usual(
        keys=together.reshape(kv_heads, width).clamp_min(_LEAST_USUAL),
        values=values.view(kv_heads, width).clamp_min(_LEAST_USUAL),
    )


def normalise(states: torch.Tensor, weight: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
    """RMSNorm in fp32 (Zhang and Sennrich 2019, arXiv:1910.07467) over the last dimension.

    `epsilon`: one number, [1, 1]. torch's own takes 20 times as long for 512 rows.
    """
    size = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    scale = torch.addcmul(epsilon, size, size, value=1 / states.shape[-1]).rsqrt_()
    return (states * scale).mul_(weight)


def epsilon_of(config: LlamaConfig, device: torch.device) -> torch.Tensor:
    """What `normalise` adds before it divides."""
    return torch.full((1, 1), config.rms_norm_eps, device=device)


def run_layer(
    layer: Layer, config: LlamaConfig, pool: KvPool, rows: StepRows, states: torch.Tensor
) -> None:
    """Add one layer to `states` (fp32 [rows, dim], in place) and its keys and values to `pool`.

    The sum that runs from layer to layer stays in fp32, whatever the dtype of the weights.
    """
    heads, kv_heads, width = config.num_attention_heads, config.kv_heads, config.head_width
    normed = normalise(states, layer.input_norm, layer.epsilon)
    mixed = layer.query_key_value(normed).view(rows.count, heads + 2 * kv_heads, width)
    turning, values = mixed[:, : heads + kv_heads], mixed[:, heads + kv_heads :]
    if layer.head_norm is not None:
        turning = normalise(turning, layer.head_norm, layer.epsilon)
    turned = torch.addcmul(turning * rows.cosine, turning.roll(width // 2, -1), rows.sine)
    rows.store(pool, layer.index, turned[:, heads:], values)
    attended = rows.attend(pool, layer.index, turned[:, :heads], layer.window)
    states += layer.attention_out(attended)
    normed = normalise(states, layer.attention_norm, layer.epsilon)
    gate, up = layer.gate_up(normed).chunk(2, dim=-1)
    states += layer.down(functional.silu(gate, inplace=True).mul_(up))
