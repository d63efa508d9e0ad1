"""Sequences in one step give what they give alone; in 8 bits the same bits, on any number of
threads and wherever they lie in the cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

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
from tests.engine.conftest import make_llama

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
    parts = [shard.export("first", start, end) for start, end in ((0, 64), (64, 90))]
    assert len(parts[1].payload) == 26 * shard.cache_position_bytes(ALL)
    [expected] = shard.step([StepInput("first", 90, states[90:])])
    shard.close("first")
    other.open("moved", ALL, 128)
    for part in parts:
        other.restore("moved", part)
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
    with pytest.raises(RemoteError):
        other.restore("moved", parts[1])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"layout": "2x8 bfloat16 64 little"}, "another way"),
        ({"span": Span(1, 4)}, "other layers"),
        ({"start": 19}, "comes to 20"),
        ({"start": 21}, "comes to 20"),
        ({"start": -20}, "comes to 20"),
        ({"end": 19}, "comes to 20 of 80"),
        ({"end": 81}, "comes to 20 of 80"),
        ({"end": 71}, "as long as its"),
        ({"payload": b""}, "as long as its"),
        ({"payload": bytes(7)}, "as long as its"),
        ({"payload": b"\xff" * 50 * 4 * 2 * 16 * 4}, "not finite"),
    ],
)
def test_a_part_that_does_not_fit_is_the_senders_fault_and_changes_nothing(
    llamas: Llamas, wrong: dict[str, Any], reason: str
) -> None:
    shard = LlamaShard(open_model(llamas["grouped"][0]))
    shard.load(ALL)
    states = random_states(71)
    for name in ("a", "b"):
        shard.open(name, ALL, 80)
        shard.step([StepInput(name, 0, states[:20])])
    shard.step([StepInput("a", 20, states[20:70])])
    part = shard.export("a", 20, 70)
    with pytest.raises(RemoteError, match=reason):
        shard.restore("b", replace(part, **wrong))
    assert shard.length("b") == 20
    shard.restore("b", part)
    wanted, found = (shard.step([StepInput(one, 70, states[70:])])[0] for one in ("a", "b"))
    np.testing.assert_array_equal(found, wanted)


def test_only_what_is_cached_can_be_exported(llamas: Llamas) -> None:
    shard = LlamaShard(open_model(llamas["grouped"][0]))
    shard.load(ALL)
    shard.open("a", ALL, 80)
    assert shard.export("a", 0, 0).payload == b""
    shard.step([StepInput("a", 0, random_states(9))])
    for start, end in ((-1, 3), (4, 3), (3, 10), (10, 10)):
        with pytest.raises(LocalError, match="not cached"):
            shard.export("a", start, end)


# A sequence as it came the first time: a prompt in frames, then tokens one by one, and drafts.
FRAMES = (128, 40, 2, *[1] * 30, 5, *[1] * 8)


def stepped(shard: LlamaShard, name: str, seed: int = 50) -> list[States]:
    """What a sequence gives frame by frame."""
    shard.open(name, WIDE_ALL, 700)
    rows, results, position = states(sum(FRAMES), seed), [], 0
    for count in FRAMES:
        item = StepInput(name, position, rows[position : position + count])
        results.append(shard.step([item])[0])
        position += count
    return results


def frames_of(name: str, seed: int = 50) -> list[StepInput]:
    """The same frames, all of them."""
    rows, ends = states(sum(FRAMES), seed), np.cumsum((0, *FRAMES))
    return [StepInput(name, int(start), rows[start:end]) for start, end in pairwise(ends)]


@pytest.mark.parametrize(("windows", "threads"), [(1, 2), (4, 1)])
def test_a_replay_of_many_frames_in_a_step_gives_the_bits_of_one_after_the_other(
    wide: LlamaShard, windows: int, threads: int
) -> None:
    expected = stepped(wide, "first")
    torch.set_num_threads(threads)
    alone = {item.sequence: wide.step([item])[0] for item in prepared(wide, 1)}
    wide.open("again", WIDE_ALL, 700)
    found: list[States] = []
    frames = frames_of("again")
    size = -(-len(frames) // windows)
    for start in range(0, len(frames), size):
        part = frames[start : start + size]
        neighbours = prepared(wide, 1)
        mixed = [*neighbours[:3], *part[:1], *neighbours[3:], *part[1:]]
        results = wide.step(mixed)
        for item, one in zip(mixed, results, strict=True):
            if item.sequence == "again":
                found.append(one)
            else:
                np.testing.assert_array_equal(one, alone[item.sequence])
    assert wide.length("again") == sum(FRAMES)
    for one, result in zip(expected, found, strict=True):
        np.testing.assert_array_equal(result, one)
    row = states(1, 99)
    went_on = [wide.step([StepInput(name, sum(FRAMES), row)])[0] for name in ("first", "again")]
    np.testing.assert_array_equal(went_on[0], went_on[1])


@pytest.mark.parametrize("short_cache", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 16])
def test_a_frame_that_is_cut_where_the_profile_says_keeps_its_bits(
    tmp_path: Path, kv_heads: int, short_cache: bool
) -> None:
    shape = ModelShape("LlamaForCausalLM", 2, 1024, 16, kv_heads, 64, 512, 300, 1024)
    random_llama(tmp_path, shape, seed=4)
    shard = LlamaShard(open_model(tmp_path), precision="int8", short_cache=short_cache)
    shard.load(WIDE_ALL)
    cut_rows = shard.profile().cut_rows
    assert cut_rows > 1
    whole, behind = states(150, 7), states(90, 8)
    for name, cuts in (("whole", ()), ("cut", (1, 3, 4, 9))):
        shard.open(name, WIDE_ALL, 300)
        found = []
        for position, rows in ((0, whole), (150, behind)):
            edges = [0, *(cut_rows * cut for cut in cuts if cut_rows * cut < len(rows)), len(rows)]
            pieces = [
                shard.step([StepInput(name, position + start, rows[start:end])])[0]
                for start, end in pairwise(edges)
            ]
            found.append(np.concatenate(pieces))
        if name == "whole":
            expected = found
    for one, result in zip(expected, found, strict=True):
        np.testing.assert_array_equal(result, one)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_frames_of_small_models_in_one_step_agree_with_single_ones(
    tmp_path: Path, precision: Precision, window: int | None
) -> None:
    make_llama(tmp_path)
    if window is not None:
        config = json.loads((tmp_path / "config.json").read_text())
        mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
        changed = config | mistral | {"sliding_window": window}
        (tmp_path / "config.json").write_text(json.dumps(changed))
    folder = open_model(tmp_path)
    assert folder.llama.window(0) == window
    shard = LlamaShard(folder, precision=precision)
    shard.load(ALL)
    rows = random_states(60)
    edges = [0, 33, 40, *range(41, 60), 60]
    items = [
        (start, rows[start:end]) for start, end in pairwise(edges)
    ]  # fmt: skip
    for name in ("single", "together"):
        shard.open(name, ALL, 64)
    single = [shard.step([StepInput("single", *item)])[0] for item in items]
    together = shard.step([StepInput("together", *item) for item in items])
    for one, found in zip(single, together, strict=True):
        if precision == "int8":
            np.testing.assert_array_equal(found, one)
        else:
            np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-4)


def test_frames_of_a_sequence_have_to_follow_each_other(llamas: Llamas) -> None:
    shard = LlamaShard(open_model(llamas["grouped"][0]))
    shard.load(ALL)
    shard.open("s", ALL, 8)
    rows = random_states(4)
    for second in (0, 1, 3):
        with pytest.raises(LocalError, match="comes behind one up to 2"):
            shard.step([StepInput("s", 0, rows[:2]), StepInput("s", second, rows[2:])])
    with pytest.raises(LocalError, match="beyond the 8"):
        shard.step([StepInput("s", 0, rows), StepInput("s", 4, random_states(5))])
    assert shard.length("s") == 0
    shard.step([StepInput("s", 0, rows)])
    went_back = shard.step([StepInput("s", 2, rows[2:3]), StepInput("s", 3, rows[3:])])
    assert [len(one) for one in went_back] == [1, 1]
    assert shard.length("s") == 4
