"""Measures what a cache in 8 bits saves, what it costs, and what it does to the next token."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Threads that spin while they wait make a shared machine many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to find the tasks as a script

from bench._random_model import random_llama
from bench._report import median_of, report
from gennode.engine.checkpoint.weights import ModelFolder, open_model
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.seam import States, StepInput
from gennode.wire.ids import Span
from gennode.wire.manifest import ModelShape
from tools.demo_tasks import FAMILIES, held_out_examples

BUNDLED = Path(__file__).resolve().parents[1] / "gennode" / "models" / "gennode-large"
OUTLIERS = ModelShape(
    architecture="LlamaForCausalLM",
    layers=4,
    dim=512,
    heads=8,
    kv_heads=4,
    head_dim=64,
    ffn_dim=1024,
    vocab=4000,
    max_positions=4096,
)
SEED = 3
SEQUENCE_TOKENS = 256
CHUNK_ROWS = 8  # after the first 64: most rows look at what was cached before
LONG_POSITIONS = 1024
TIMED_STEPS = 40


@dataclass(frozen=True)
class Sides:
    """One model with each cache, over all its layers."""

    folder: ModelFolder
    span: Span
    plain: LlamaShard
    short: LlamaShard


def with_large_channels(folder: Path) -> None:
    """Make two channels of each head's keys and values 8 and 6 times as large as the others."""
    path, chance = folder / "model.safetensors", torch.Generator().manual_seed(SEED)
    tensors = load_file(path)
    for name, weight in tensors.items():
        for part, factor in (("k_proj", 8.0), ("v_proj", 6.0)):
            if part in name:
                for head in range(OUTLIERS.kv_heads):
                    own = torch.randperm(OUTLIERS.head_dim, generator=chance)[:2]
                    weight[own + head * OUTLIERS.head_dim] *= factor
        if "q_proj" in name:
            weight *= 0.5  # else softmax picks one position, and rounding decides which
        if "lm_head" in name:
            weight *= 3.0
    save_file(tensors, path, metadata={"format": "pt"})


def sides(path: Path) -> Sides:
    folder = open_model(path)
    span = Span(0, folder.config.shape.layers)
    plain, short = (
        LlamaShard(folder, precision="fp32", max_cache_bytes=256 << 20, short_cache=is_short)
        for is_short in (False, True)
    )
    plain.load(span)
    short.load(span)
    return Sides(folder, span, plain, short)


def prompts(owner: LlamaOwner, count: int) -> list[list[int]]:
    """Sequences of tasks with their answers, one behind the other, as tokens."""
    lines = [
        f"{one.prompt}{one.answer}"
        for family in FAMILIES
        for one in held_out_examples(family, SEED, 4 * count)
    ]
    random.Random(SEED).shuffle(lines)
    made = []
    for number in range(count):
        text = [token for line in lines[number::count] for token in owner.tokenize(line)]
        made.append(text[:SEQUENCE_TOKENS])
    return made


def likelihoods(
    shard: LlamaShard, owner: LlamaOwner, span: Span, tokens: Sequence[int]
) -> torch.Tensor:
    """Log-probabilities of what follows each token, [tokens, vocabulary]."""
    states, position = owner.embed(tokens, 0), 0
    outputs: list[States] = []
    shard.open("likelihoods", span, len(tokens))
    while position < len(tokens):
        end = min(len(tokens), position + (CHUNK_ROWS if position else 64))
        step = StepInput("likelihoods", position, states[position:end])
        outputs.extend(shard.step([step])[0])
        position = end
    shard.close("likelihoods")
    logits = np.stack([owner.logits(row) for row in outputs])
    return torch.from_numpy(logits).double().log_softmax(-1)


def divergence(pair: Sides, count: int) -> tuple[float, float]:
    """Mean KL of the next token from the plain cache's, and how often both prefer the same."""
    owner, means, same = LlamaOwner(pair.folder), [], []
    for tokens in prompts(owner, count):
        wanted = likelihoods(pair.plain, owner, pair.span, tokens)
        found = likelihoods(pair.short, owner, pair.span, tokens)
        means.append((wanted.exp() * (wanted - found)).sum(-1).mean().item())
        same.append((wanted.argmax(-1) == found.argmax(-1)).double().mean().item())
    return sum(means) / len(means), sum(same) / len(same)


def step_times_s(pair: Sides) -> tuple[float, float]:
    """Seconds of one token after 1,024 positions with each cache, in turns."""
    times_s: tuple[list[float], list[float]] = ([], [])
    states = np.random.default_rng(SEED).standard_normal(
        (LONG_POSITIONS + TIMED_STEPS, pair.plain.dim)
    )
    rows = states.astype(np.float32)
    for shard in (pair.plain, pair.short):
        shard.open("time", pair.span, len(rows))
        shard.step([StepInput("time", 0, rows[:LONG_POSITIONS])])
    for position in range(LONG_POSITIONS, len(rows)):
        for shard, into in zip((pair.plain, pair.short), times_s, strict=True):
            start_s = time.perf_counter()
            shard.step([StepInput("time", position, rows[position : position + 1])])
            into.append(time.perf_counter() - start_s)
    return median_of(times_s[0]), median_of(times_s[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer prompts")
    count = 2 if parser.parse_args().quick else 8
    figures: dict[str, float | int | str] = {}
    rows = []
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / "outliers"
        random_llama(made, OUTLIERS, SEED)
        with_large_channels(made)
        for name, path in (("bundled", BUNDLED), ("outliers", made)):
            pair = sides(path)
            kl, same = divergence(pair, count)
            plain_s, short_s = step_times_s(pair)
            shares = pair.short.cache_use().used_bytes / pair.plain.cache_use().used_bytes
            rows.append((name, shares, kl, same, plain_s * 1e3, short_s * 1e3))
            figures |= {
                f"{name}_bytes_ratio": shares,
                f"{name}_kl": kl,
                f"{name}_same_token": same,
                f"{name}_step_time_ratio": short_s / plain_s,
            }
    columns = ("model", "bytes", "KL", "same token", "fp32 step ms", "8-bit step ms")
    report("cache", figures, columns=columns, rows=rows)


if __name__ == "__main__":
    main()
