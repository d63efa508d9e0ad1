"""Sequences in one step give what they give alone; in 8 bits the same bits, on any number of
threads and wherever they lie in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from bench._random_model import random_llama
from gennode.engine.checkpoint.weights import open_model
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.seam import Precision, States, StepInput
from gennode.errors import LocalError, RemoteError, ResourceError
from gennode.wire.ids import Span
from gennode.wire.manifest import ModelShape

Llamas = dict[str, tuple[Path, LlamaForCausalLM]]
ALL = Span(0, 4)
SHAPE = ModelShape("LlamaForCausalLM", 2, 1024, 16, 4, 64, 2816, 300, 1024)
WIDE_ALL = Span(0, 2)
LENGTHS = (1, 63, 64, 130, 600, 5, 300, 17)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> LlamaShard:
    folder = tmp_path_factory.mktemp("wide")
    random_llama(folder, SHAPE, seed=3)
    shard = LlamaShard(open_model(folder), precision="int8")
    shard.load(WIDE_ALL)
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
        shard.open(number, WIDE_ALL, 700)
        shard.step([StepInput(number, 0, states(length, seed))])
        batch.append(StepInput(number, length, states(40 if seed == 3 else 1, 100 + seed)))
    return batch


def test_at_real_sizes_a_row_gives_the_same_bits_alone_and_in_batches(wide: LlamaShard) -> None:
    shard = wide
    expected = [shard.step([item])[0] for item in prepared(shard, 1)]
    for copies, threads in ((1, 2), (1, 1), (8, 2)):
        torch.set_num_threads(threads)
        found = shard.step(prepared(shard, copies))
        for number, result in enumerate(found):
            np.testing.assert_array_equal(result, expected[number % len(LENGTHS)])
    torch.set_num_threads(1)
    for item, one in zip(prepared(shard, 1), expected, strict=True):
        np.testing.assert_array_equal(shard.step([item])[0], one)


def random_states(rows: int, seed: int = 0) -> States:
    return np.random.default_rng(seed).standard_normal((rows, 32)).astype(np.float32)


def mixed_batch(shard: LlamaShard) -> list[StepInput]:
    """Single rows, prompts and later chunks, over two spans; each sequence is opened anew."""
    batch = []
    for number, (had, rows) in enumerate([(0, 1), (9, 1), (70, 1), (0, 40), (66, 7), (3, 1)]):
        shard.open(number, Span(1, 3) if number % 3 == 2 else ALL, 128)
        if had:
            shard.step([StepInput(number, 0, random_states(had, seed=number))])
        batch.append(StepInput(number, had, random_states(rows, seed=10 + number)))
    return batch


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_batch_gives_what_its_sequences_give_alone(llamas: Llamas, precision: Precision) -> None:
    shard = LlamaShard(open_model(llamas["grouped"][0]), precision=precision)
    shard.load(ALL)
    alone = [shard.step([item])[0] for item in mixed_batch(shard)]
    together = shard.step(mixed_batch(shard))
    for one, found, item in zip(alone, together, mixed_batch(shard), strict=True):
        assert found.shape == item.states.shape
        if precision == "int8":
            np.testing.assert_array_equal(found, one)
        else:
            np.testing.assert_allclose(found, one, rtol=1e-5, atol=1e-5)


def test_in_int8_a_huge_or_broken_neighbour_changes_no_bit(llamas: Llamas) -> None:
    shard = LlamaShard(open_model(llamas["grouped"][0]), precision="int8")
    shard.load(ALL)
    expected = shard.step(mixed_batch(shard))
    for factor in (1e4, np.nan):
        batch = mixed_batch(shard)
        batch[3] = StepInput(3, 0, batch[3].states * np.float32(factor))
        found = shard.step(batch)
        for number in (0, 1, 2, 4, 5):
            np.testing.assert_array_equal(found[number], expected[number])


def test_int8_stays_near_fp32(llamas: Llamas) -> None:
    results = []
    for precision in ("fp32", "int8"):
        shard = LlamaShard(open_model(llamas["grouped"][0]), precision=precision)
        shard.load(ALL)
        shard.open("s", ALL, 64)
        results.append(shard.step([StepInput("s", 0, random_states(64))])[0])
        assert shard.profile().compute_class in (f"{precision}-cpu", "int7-cpu")
    error = np.linalg.norm(results[1] - results[0], axis=1) / np.linalg.norm(results[0], axis=1)
    assert 0 < np.median(error) < 0.1


def test_a_cache_in_8_bits_stays_near_and_no_neighbour_changes_it(llamas: Llamas) -> None:
    folder = open_model(llamas["grouped"][0])
    exact, short = LlamaShard(folder), LlamaShard(folder, precision="int8", short_cache=True)
    coarse = LlamaShard(folder, short_cache=True)
    for shard in (exact, short, coarse):
        shard.load(ALL)
    assert coarse.compute_class == "fp32-kv8-cpu"
    pairs = zip(exact.step(mixed_batch(exact)), coarse.step(mixed_batch(coarse)), strict=True)
    errors = [np.linalg.norm(near - one) / np.linalg.norm(one) for one, near in pairs]
    assert 0 < max(errors) < 0.1
    alone = [short.step([item])[0] for item in mixed_batch(short)]
    for one, found in zip(alone, short.step(mixed_batch(short)), strict=True):
        np.testing.assert_array_equal(found, one)


def test_a_batch_without_room_for_all_computes_nothing(llamas: Llamas) -> None:
    page_bytes = 64 * 4 * 2 * 4 * 8 * 4
    shard = LlamaShard(open_model(llamas["plain"][0]), max_cache_bytes=2 * page_bytes)
    shard.load(ALL)
    for sequence in ("a", "b"):
        shard.open(sequence, ALL, 128)
    states = random_states(65)
    shard.step([StepInput("a", 0, states[:5])])
    with pytest.raises(ResourceError):
        shard.step([StepInput("a", 5, states[5:6]), StepInput("b", 0, states)])
    assert (shard.length("a"), shard.length("b")) == (5, 0)
    one, two = shard.step([StepInput("a", 5, states[5:6]), StepInput("b", 0, states[:64])])
    assert (len(one), len(two)) == (1, 64)


@pytest.mark.parametrize("short_cache", [False, True])
def test_what_is_kept_or_moved_goes_on_with_the_same_bits(
    llamas: Llamas, short_cache: bool
) -> None:
    folder = open_model(llamas["grouped"][0])
    shard, other = (LlamaShard(folder, short_cache=short_cache) for _ in range(2))
    for one in (shard, other):
        one.load(ALL)
    states = random_states(100)
    shard.open("first", ALL, 128)
    shard.step([StepInput("first", 0, states[:70])])
    shard.step([StepInput("first", 70, states[70:90])])
    kept = shard.keep("first", 70)
    assert kept is not None
    pages = shard.export("first")
    [expected] = shard.step([StepInput("first", 90, states[90:])])
    shard.close("first")
    other.open("moved", ALL, 128)
    other.restore("moved", pages)
    assert other.length("moved") == 90
    np.testing.assert_array_equal(other.step([StepInput("moved", 90, states[90:])])[0], expected)
    for follower in ("second", "third"):  # both read the same pages, and write beside them
        shard.open(follower, ALL, 128)
        shard.adopt(follower, kept)
        assert shard.length(follower) == 70
    shard.forget(kept)
    shard.forget(kept)
    shard.step([StepInput("third", 70, random_states(20, seed=9))])
    shard.open("alone", ALL, 128)
    shard.step([StepInput("alone", 0, states[:70])])
    for start, end in ((70, 90), (90, 100)):
        shared, alone = (
            shard.step([StepInput(name, start, states[start:end])])[0]
            for name in ("second", "alone")
        )
        np.testing.assert_array_equal(shared, alone)
    with pytest.raises(LocalError):
        other.restore("moved", pages)
    other.open("short", ALL, 80)
    with pytest.raises(RemoteError):
        other.restore("short", pages)
    assert other.length("short") == 0
