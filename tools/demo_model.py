"""The Llama that the training script trains, and the packed batches it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

POSITIONS_MAX = 512
ROPE_THETA = 10_000.0
NORM_EPSILON = 1e-5
NO_TARGET = -100


@dataclass(frozen=True)
class Size:
    """The shape of one model and how it is trained."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    inner: int
    rows: int
    steps: int
    learning_rate: float
    seed: int
    mix: Mapping[str, float]

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


@dataclass(frozen=True)
class Batch:
    """Packed rows: tokens, places within each example, targets and who may see whom."""

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    mask: Tensor


class Norm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, states: Tensor) -> Tensor:
        """The states at unit scale, times a learned weight."""
        return functional.rms_norm(states, self.weight.shape, self.weight, NORM_EPSILON)


def rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions in the half-and-half layout of Hugging Face Llama."""
    first, second = states.chunk(2, dim=-1)
    return states * cosine + torch.cat((-second, first), dim=-1) * sine


class Attention(nn.Module):
    """Grouped-query attention within the examples of a packed row."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        shared = size.key_value_heads * size.head
        self.q_proj = nn.Linear(size.hidden, size.hidden, bias=False)
        self.k_proj = nn.Linear(size.hidden, shared, bias=False)
        self.v_proj = nn.Linear(size.hidden, shared, bias=False)
        self.o_proj = nn.Linear(size.hidden, size.hidden, bias=False)

    def forward(self, states: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """What each position gathers from those the mask lets it see."""
        rows, length, hidden = states.shape
        shape = (rows, length, -1, self.size.head)
        query = rotate(self.q_proj(states).view(shape).transpose(1, 2), *rotary)
        key = rotate(self.k_proj(states).view(shape).transpose(1, 2), *rotary)
        value = self.v_proj(states).view(shape).transpose(1, 2)
        copies = self.size.heads // self.size.key_value_heads
        key, value = key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1)
        # Written out: on a processor this is faster backwards than the fused kernel.
        scores = (query * self.size.head**-0.5) @ key.transpose(2, 3) + mask
        mixed = scores.softmax(-1).to(value.dtype) @ value
        gathered: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(rows, length, hidden))
        return gathered


class Mlp(nn.Module):
    """The gated feed-forward part of a layer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size.hidden, size.inner, bias=False)
        self.up_proj = nn.Linear(size.hidden, size.inner, bias=False)
        self.down_proj = nn.Linear(size.inner, size.hidden, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """The states after the gate."""
        gated = functional.silu(self.gate_proj(states)) * self.up_proj(states)
        result: Tensor = self.down_proj(gated)
        return result


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.self_attn = Attention(size)
        self.mlp = Mlp(size)
        self.input_layernorm = Norm(size.hidden)
        self.post_attention_layernorm = Norm(size.hidden)

    def forward(self, states: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """The states, with what this layer adds."""
        states = states + self.self_attn(self.input_layernorm(states), rotary, mask)
        added: Tensor = self.mlp(self.post_attention_layernorm(states))
        return states + added


class Llama(nn.Module):
    """A Llama whose parameters carry the names that checkpoints use."""

    def __init__(self, size: Size, vocabulary_size: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary_size, size.hidden)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.norm = Norm(size.hidden)
        halves = torch.arange(0, size.head, 2) / size.head
        angles = torch.outer(torch.arange(POSITIONS_MAX), ROPE_THETA**-halves).repeat(1, 2)
        self.cosine, self.sine = angles.cos(), angles.sin()
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                spread = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=spread / (2 * size.layers) ** (0.5 * deep))

    def forward(self, batch: Batch) -> Tensor:
        """Mean weighted loss over the answer tokens of a batch."""
        cosine = self.cosine[batch.positions].unsqueeze(1)
        rotary = (cosine, self.sine[batch.positions].unsqueeze(1))
        states = self.embed_tokens(batch.tokens)
        for layer in self.layers:
            states = layer(states, rotary, batch.mask)
        asked = batch.targets != NO_TARGET
        logits = functional.linear(self.norm(states[asked]), self.embed_tokens.weight)
        losses = functional.cross_entropy(logits.float(), batch.targets[asked], reduction="none")
        weights = batch.weights[asked]
        return (losses * weights).sum() / weights.sum()
