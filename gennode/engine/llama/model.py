"""The arithmetic of Llama: one layer over one sequence's cached keys and values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from gennode.engine.checkpoint.llama_config import LlamaConfig
from gennode.engine.checkpoint.weights import ModelFolder
from gennode.engine.llama.linear import Linear, make_linear


@dataclass(frozen=True)
class Layer:
    """One layer's weights, those that read the same input side by side."""

    dtype: torch.dtype
    input_norm: torch.Tensor
    query_key_value: Linear
    attention_out: Linear
    attention_norm: torch.Tensor
    gate_up: Linear
    down: Linear


@dataclass
class LayerCache:
    """Keys and values of one layer, each [kv_heads, capacity, head_dim]."""

    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class Place:
    """Where a step's rows lie in their sequence: what all its layers share.

    `cosine`, `sine`: [rows, 1, head_dim], the sine negative in its first half.
    `mask`: [rows, position + rows], −inf where a row must not look; None if nothing is hidden,
    or if `causal` says the same.
    """

    position: int
    cosine: torch.Tensor
    sine: torch.Tensor
    mask: torch.Tensor | None
    causal: bool


def load_layer(folder: ModelFolder, index: int, device: torch.device, dtype: torch.dtype) -> Layer:
    """Read one layer, one matrix at a time; that one is held twice. Raises ModelError."""
    shapes = folder.llama.layer_tensors(index)
    prefix = f"model.layers.{index}."

    def take(names: Sequence[str], dtype: torch.dtype) -> torch.Tensor:
        full = [prefix + name for name in names]
        return folder.read({name: shapes[name] for name in full}, dtype).to(device)

    def linear(*names: str) -> Linear:
        biases = [f"{name}.bias" for name in names]
        bias = take(biases, dtype) if prefix + biases[0] in shapes else None
        return make_linear(take([f"{name}.weight" for name in names], dtype), bias)

    def norm(name: str) -> torch.Tensor:
        return take([f"{name}.weight"], torch.float32)

    return Layer(
        dtype=dtype,
        input_norm=norm("input_layernorm"),
        query_key_value=linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_out=linear("self_attn.o_proj"),
        attention_norm=norm("post_attention_layernorm"),
        gate_up=linear("mlp.gate_proj", "mlp.up_proj"),
        down=linear("mlp.down_proj"),
    )


def rotary_frequencies(config: LlamaConfig) -> torch.Tensor:
    """Radians per position, [head_dim / 2] (Su et al. 2021, arXiv:2104.09864).

    Scaling `llama3` slows down waves longer than the training context by `factor`, and those
    between its two bounds by a share of it (Llama 3.1; as transformers computes it).
    """
    width = config.head_width
    exponents = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    frequencies = 1.0 / (config.theta**exponents)
    rope = config.rope
    if rope.kind != "llama3":
        return frequencies
    context = rope.original_max_position_embeddings
    waves = 2 * math.pi / frequencies
    share = (context / waves - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    share = share.clamp(0, 1)
    return (1 - share) * frequencies / rope.factor + share * frequencies


def place(position: int, rows: int, frequencies: torch.Tensor) -> Place:
    """What the layers need to know of a step of `rows` ≥ 1 rows that starts at `position`."""
    device = frequencies.device
    positions = torch.arange(position, position + rows, device=device, dtype=torch.float32)
    angles = torch.outer(positions, frequencies)[:, None, :]
    sine = angles.sin()
    causal = position == 0 and rows > 1
    mask = None
    if rows > 1 and not causal:
        mask = torch.full((rows, position + rows), -math.inf, device=device)
        mask = mask.triu_(position + 1)
    return Place(
        position=position,
        cosine=angles.cos().repeat(1, 1, 2),
        sine=torch.cat((-sine, sine), dim=-1),
        mask=mask,
        causal=causal,
    )


def normalise(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMSNorm in fp32 (Zhang and Sennrich 2019, arXiv:1910.07467); [rows, dim] to the same."""
    return functional.rms_norm(states, (states.shape[-1],), weight, epsilon)


def run_layer(
    layer: Layer,
    config: LlamaConfig,
    cache: LayerCache,
    where: Place,
    states: torch.Tensor,
) -> None:
    """Add one layer to `states` (fp32 [rows, dim], in place) and its keys and values to `cache`.

    The sum that runs from layer to layer stays in fp32, whatever the dtype of the weights.
    """
    rows = states.shape[0]
    heads, kv_heads, width = config.num_attention_heads, config.kv_heads, config.head_width
    normed = normalise(states, layer.input_norm, config.rms_norm_eps).to(layer.dtype)
    mixed = layer.query_key_value(normed).view(rows, heads + 2 * kv_heads, width)
    turning = mixed[:, : heads + kv_heads].float()
    turned = torch.addcmul(turning * where.cosine, turning.roll(width // 2, -1), where.sine)
    end = where.position + rows
    cache.keys[:, where.position : end] = turned[:, heads:].transpose(0, 1)
    cache.values[:, where.position : end] = mixed[:, heads + kv_heads :].transpose(0, 1)
    attended = attend(
        turned[:, :heads].to(layer.dtype), cache.keys[:, :end], cache.values[:, :end], where
    )
    states += layer.attention_out(attended)
    normed = normalise(states, layer.attention_norm, config.rms_norm_eps).to(layer.dtype)
    gate, up = layer.gate_up(normed).chunk(2, dim=-1)
    states += layer.down(functional.silu(gate) * up)


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, where: Place
) -> torch.Tensor:
    """Attention of [rows, heads, width] to [kv_heads, positions, width]; [rows, heads × width].

    No key is copied per query head: one row's heads of a group become rows of one product, and
    several rows see the group's keys through a view.
    """
    rows, heads, width = queries.shape
    kv_heads, positions, _ = keys.shape
    group = heads // kv_heads
    if rows == 1:
        one = functional.scaled_dot_product_attention(
            queries.view(1, kv_heads, group, width), keys[None], values[None]
        )
        return one.reshape(1, heads * width)
    size = (kv_heads, group, positions, width)
    several = functional.scaled_dot_product_attention(
        queries.view(rows, kv_heads, group, width).permute(1, 2, 0, 3),
        keys[:, None].expand(size),
        values[:, None].expand(size),
        attn_mask=where.mask,
        is_causal=where.causal,
    )
    return several.permute(2, 0, 1, 3).reshape(rows, heads * width)
