"""Positions as rotations: the frequencies of a model, and those of a step's rows."""

from __future__ import annotations

import math

import torch

from gennode.engine.checkpoint.llama_config import LlamaConfig


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


def rotations(
    positions: torch.Tensor, frequencies: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of each position's angles, [rows, 1, head_dim] each.

    The sine is negative in its first half: a head `x` is turned to
    `x * cosine + roll(x, head_dim / 2) * sine`.
    """
    angles = torch.outer(positions.to(torch.float32), frequencies)[:, None, :]
    sine = angles.sin()
    return angles.cos().repeat(1, 1, 2), torch.cat((-sine, sine), dim=-1)
