"""A random decoder whose hidden states have the outliers of trained ones, quantised on the way.

Trained models carry a few channels that are much larger than the rest, and on the first token a
few that are larger still (massive activations, Sun et al. 2024, arXiv:2402.17762); the weights
of their norms damp them. This net has both by construction, or none. Its logits have about the
spread of a trained model's, and mean nothing: divergences rank codecs and say little about text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gennode.wire.activations import codec
from gennode.wire.fields import CodecName

HOPS = (1, 3, 7)
LAYERS = 8
LARGE_SHARE, LARGE = 6 / 4096, 40.0
MASSIVE = (900.0, -450.0)  # two more channels, on the first token alone
LOGIT_SPREAD = 4.0


@dataclass(frozen=True)
class NetShape:
    """`sequences` of `tokens` each pass through it."""

    dim: int
    ffn_dim: int
    heads: int
    vocab: int
    sequences: int
    tokens: int


@dataclass(frozen=True)
class Loss:
    """What a codec costs: `snr_db` of states after the first hop, without outlier channels and
    first tokens; `kl_nats` of the final logits after so many hops, in the mean.
    """

    snr_db: float
    kl_nats: dict[int, float]


def measure_net(
    names: Sequence[CodecName], shape: NetShape, *, outliers: bool, seed: int
) -> dict[CodecName, Loss]:
    """All codecs and numbers of hops side by side, a layer's weights in memory at a time."""
    variants: list[tuple[CodecName, int]] = [(name, hops) for name in names for hops in HOPS]
    chance = torch.Generator().manual_seed(seed)
    states = torch.randn(shape.sequences, shape.tokens, shape.dim, generator=chance)
    count = round(LARGE_SHARE * shape.dim)
    channels = torch.randperm(shape.dim, generator=chance)[: count + len(MASSIVE)]
    damping = torch.ones(shape.dim)
    if outliers:
        large, massive = channels[:count], channels[count:]
        states[:, :, large] *= LARGE
        states[:, 0, massive] = torch.tensor(MASSIVE)
        damping[large] = 1 / LARGE
        damping[massive] = 1 / max(MASSIVE)
    usual = torch.ones(shape.dim, dtype=torch.bool)
    usual[channels] = False
    batch = states.repeat(1 + len(variants), 1, 1, 1)
    snr_db: dict[CodecName, float] = {}
    for layer in range(LAYERS):
        batch = _layer(batch, shape, damping, chance)
        for place, (name, hops) in enumerate(variants, start=1):
            if (layer + 1) % (LAYERS // (hops + 1)) or layer + 1 == LAYERS:
                continue
            sent = batch[place].reshape(-1, shape.dim).numpy()
            back = torch.from_numpy(through(name, sent)).reshape(batch[place].shape)
            if hops == 1:
                snr_db[name] = _snr_db(batch[place][:, 1:, usual], back[:, 1:, usual])
            batch[place] = back
    head = torch.randn(shape.vocab, shape.dim, generator=chance) / math.sqrt(shape.dim)
    head *= LOGIT_SPREAD
    logits = torch.log_softmax(_norm(batch, damping) @ head.T, dim=-1)
    divergence = (logits[:1].exp() * (logits[:1] - logits[1:])).sum(-1).mean((1, 2)).tolist()
    found = dict(zip(variants, divergence, strict=True))
    return {name: Loss(snr_db[name], {hops: found[name, hops] for hops in HOPS}) for name in names}


def through(name: CodecName, states: np.ndarray) -> np.ndarray:
    """What the next hop gets of [rows, dim]."""
    chosen, dim = codec(name), states.shape[1]
    return chosen.decode(chosen.encode(states), dim, len(states))


def kl_nats(reference: np.ndarray, logits: np.ndarray) -> float:
    """Mean divergence of logits [rows, vocab] from those of the reference."""
    pair = (_log_softmax(reference), _log_softmax(logits))
    return float((np.exp(pair[0]) * (pair[0] - pair[1])).sum(axis=1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _snr_db(true: torch.Tensor, back: torch.Tensor) -> float:
    error = (true - back).square().sum().item()
    return 10 * math.log10(true.square().sum().item() / error) if error else math.inf


def _norm(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-5) * weight


def _layer(
    states: torch.Tensor, shape: NetShape, damping: torch.Tensor, chance: torch.Generator
) -> torch.Tensor:
    """Causal attention and a gated MLP, with weights drawn now: all variants share them."""
    dim, heads = shape.dim, shape.heads

    def weight(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=chance) / math.sqrt(columns)

    def split(part: torch.Tensor) -> torch.Tensor:
        return part.reshape(-1, shape.tokens, heads, dim // heads).transpose(1, 2)

    flat = states.reshape(-1, shape.tokens, dim)
    mixed = _norm(flat, damping) @ weight(3 * dim, dim).T
    queries, keys, values = map(split, mixed.chunk(3, dim=-1))
    attended = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, is_causal=True
    )
    flat = flat + attended.transpose(1, 2).reshape(flat.shape) @ weight(dim, dim).T
    gate, up = (_norm(flat, damping) @ weight(2 * shape.ffn_dim, dim).T).chunk(2, dim=-1)
    flat = flat + (torch.nn.functional.silu(gate) * up) @ weight(dim, shape.ffn_dim).T
    return flat.reshape(states.shape)
