"""At the sizes of real layers too, a row's 8-bit result is the same alone, in any batch, on any
number of threads, and wherever its sequence lies in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bench._random_model import random_llama
from gennode.engine.checkpoint.weights import open_model
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.seam import States, StepInput
from gennode.wire.ids import Span
from gennode.wire.manifest import ModelShape

SHAPE = ModelShape("LlamaForCausalLM", 2, 1024, 16, 4, 64, 2816, 300, 1024)
ALL = Span(0, 2)
LENGTHS = (1, 63, 64, 130, 600, 5, 300, 17)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> LlamaShard:
    folder = tmp_path_factory.mktemp("wide")
    random_llama(folder, SHAPE, seed=3)
    shard = LlamaShard(open_model(folder), precision="int8")
    shard.load(ALL)
    return shard


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def states(rows: int, seed: int) -> States:
    """Some channels are large, as in trained models."""
    found = np.random.default_rng(seed).standard_normal((rows, SHAPE.dim)).astype(np.float32)
    found[:, 7] *= 50
    found[:, 500] *= 200
    return found


def prepared(shard: LlamaShard, copies: int) -> list[StepInput]:
    """Sequences of many lengths and one more row for each; with a chunk of 40 rows."""
    batch = []
    for number, length in enumerate(LENGTHS * copies):
        seed = number % len(LENGTHS)
        shard.open(number, ALL, 700)
        shard.step([StepInput(number, 0, states(length, seed))])
        batch.append(StepInput(number, length, states(40 if seed == 3 else 1, 100 + seed)))
    return batch


def test_a_row_gives_the_same_bits_alone_and_in_batches(shard: LlamaShard) -> None:
    expected = [shard.step([item])[0] for item in prepared(shard, 1)]
    for copies, threads in ((1, 2), (1, 1), (8, 2)):
        torch.set_num_threads(threads)
        found = shard.step(prepared(shard, copies))
        for number, result in enumerate(found):
            np.testing.assert_array_equal(result, expected[number % len(LENGTHS)])
    torch.set_num_threads(1)
    for item, one in zip(prepared(shard, 1), expected, strict=True):
        np.testing.assert_array_equal(shard.step([item])[0], one)
