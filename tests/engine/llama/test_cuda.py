"""Single rows in one padded call give what they give one by one; on a GPU, under graphs too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from gennode.engine.cache.pool import KvPlace, KvPool
from gennode.engine.checkpoint.weights import open_model
from gennode.engine.llama.attention import Rows
from gennode.engine.llama.cuda import FixedRows, bucket, put_places
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.seam import Precision, StepInput
from gennode.wire.ids import Span

KV_HEADS, HEADS, WIDTH = 2, 4, 16
LENGTHS = (5, 64, 130)
ALL = Span(0, 4)


def filled_pool() -> tuple[KvPool, list[KvPlace]]:
    """Sequences of some lengths, and the place of one more row in each."""
    pool = KvPool(KV_HEADS, WIDTH, pages=12)
    pool.add_layer(0)
    chance = torch.Generator().manual_seed(0)
    places = []
    for number, length in enumerate(LENGTHS):
        pool.open(number, Span(0, 1), 256)
        rows = torch.randn((2, length, KV_HEADS, WIDTH), generator=chance)
        pool.write(0, pool.place(number, 0, length), rows[0], rows[1])
        places.append(pool.place(number, length, 1))
    return pool, places


@pytest.mark.parametrize("window", [None, 3, 100])
def test_padded_rows_see_what_single_ones_see(window: int | None) -> None:
    chance = torch.Generator().manual_seed(1)
    rows = torch.randn((3, 2 * KV_HEADS + HEADS, WIDTH), generator=chance)
    frequencies = torch.rand(WIDTH // 2, generator=chance)
    keys, values = rows[:, :KV_HEADS], rows[:, KV_HEADS : 2 * KV_HEADS]
    queries = rows[:, 2 * KV_HEADS :]
    pool, places = filled_pool()
    alone = Rows(places, frequencies)
    alone.store(pool, 0, keys, values)
    expected = alone.attend(pool, 0, queries, window)
    pool, places = filled_pool()
    fixed = FixedRows(4, 256, frequencies)
    put_places(fixed, places)
    fixed.turn()
    padded = [torch.cat((each, each[:1])) for each in (keys, values, queries)]
    fixed.store(pool, 0, *padded[:2])
    found = fixed.attend(pool, 0, padded[2], window)
    torch.testing.assert_close(found[:3], expected)
    torch.testing.assert_close(found[3], found[0])
    torch.testing.assert_close(fixed.cosine[:3], alone.cosine)
    torch.testing.assert_close(fixed.sine[:3], alone.sine)


def test_buckets_are_powers_of_two() -> None:
    assert [bucket(count, 1) for count in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]
    assert [bucket(count, 256) for count in (1, 256, 257)] == [256, 256, 512]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_gives_what_the_cpu_gives(
    llamas: dict[str, tuple[Path, LlamaForCausalLM]], precision: Precision
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    folder = open_model(llamas["grouped"][0])
    states = np.random.default_rng(0).standard_normal((3, 80, 32)).astype(np.float32)
    results = []
    for shard in (LlamaShard(folder), LlamaShard(folder, device="cuda", precision=precision)):
        shard.load(ALL)
        found = []
        for number in range(3):
            shard.open(number, ALL, 128)
            found += shard.step([StepInput(number, 0, states[number, : 60 + number])])
        for at in range(10):
            batch = [
                StepInput(number, 60 + number + at, states[number, 60 + number + at, None])
                for number in range(3)
            ]
            found += shard.step(batch)
        results.append(np.concatenate(found))
    error = np.linalg.norm(results[1] - results[0]) / np.linalg.norm(results[0])
    assert error < (1e-4 if precision == "fp32" else 0.1)
