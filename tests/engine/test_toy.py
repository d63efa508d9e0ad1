"""The toy notices every fault that the real engine would suffer from."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gennode.engine.sample import Sampling, choose
from gennode.engine.seam import CachePart, OwnerEngine, ShardEngine, States, StepInput
from gennode.engine.toy import TOY_DIM, ToyOwner, ToyShard, toy_manifest
from gennode.errors import LocalError, RemoteError
from gennode.wire.activations import codec
from gennode.wire.fields import CodecName
from gennode.wire.ids import Span

LAYERS = 6
MANIFEST = toy_manifest(LAYERS)
WHOLE = [Span(0, LAYERS)]


def generate(
    prompt: str, spans: Sequence[Span] = WHOLE, count: int = 24, end_every: int | None = None
) -> list[int]:
    owner = ToyOwner(MANIFEST, end_every=end_every)
    shard = ToyShard(MANIFEST)
    shard.load(Span(0, LAYERS))
    for span in spans:
        shard.open(span, span, 256)
    tokens = owner.tokenize(prompt)
    answer: list[int] = []
    position, states = 0, owner.embed(tokens, 0)
    while len(answer) < count and not (answer and owner.is_end(answer[-1])):
        rows = len(states)
        for span in spans:
            [states] = shard.step([StepInput(span, position, states)])
        position += rows
        answer.append(choose(owner.logits(states[-1]), Sampling(), position))
        states = owner.embed(answer[-1:], position)
    return answer


def one_layer_run(shard: ToyShard, chunks: Sequence[States]) -> States:
    shard.open("s", Span(0, 1), 64)
    position, result = 0, chunks[0]
    for chunk in chunks:
        [result] = shard.step([StepInput("s", position, chunk)])
        position += len(chunk)
    return result[-1:]


@pytest.fixture
def shard() -> ToyShard:
    made = ToyShard(MANIFEST)
    made.load(Span(0, LAYERS))
    return made


def test_cuts_do_not_matter_and_prompts_do() -> None:
    answer = generate("hello")
    assert generate("hello", [Span(0, 2), Span(2, 5), Span(5, 6)]) == answer
    assert generate("hellp") != answer
    assert len(set(answer)) > 5


@pytest.mark.parametrize("left_out", range(LAYERS))
def test_a_skipped_layer_changes_the_answer(left_out: int) -> None:
    spans = [Span(layer, layer + 1) for layer in range(LAYERS) if layer != left_out]
    assert generate("hello", spans) != generate("hello")


def test_several_inputs_of_a_sequence_in_a_step_are_as_many_steps(shard: ToyShard) -> None:
    rows = ToyOwner(MANIFEST).embed(range(2, 9), 0)
    for name in ("a", "b", "c"):
        shard.open(name, Span(0, LAYERS), 16)
    [whole] = shard.step([StepInput("a", 0, rows)])
    parts = shard.step([
        StepInput("b", 0, rows[:4]), StepInput("c", 0, rows), StepInput("b", 4, rows[4:])
    ])  # fmt: skip
    np.testing.assert_array_equal(np.concatenate([parts[0], parts[2]]), whole)
    np.testing.assert_array_equal(parts[1], whole)
    with pytest.raises(LocalError, match="comes behind"):
        shard.step([StepInput("b", 0, rows[:4]), StepInput("b", 3, rows[3:])])


def test_layers_out_of_order_change_the_answer() -> None:
    assert generate("hello", [Span(3, 6), Span(0, 3)]) != generate("hello")


def test_every_earlier_position_counts(shard: ToyShard) -> None:
    rows = ToyOwner(MANIFEST).embed(range(2, 42), 0)
    true = one_layer_run(shard, [rows])
    np.testing.assert_array_equal(one_layer_run(shard, [rows[:7], rows[7:8], rows[8:]]), true)
    for index in range(39):
        changed = rows.copy()
        changed[index, 0] += 1
        assert (one_layer_run(shard, [changed]) != true).any()
        swapped = rows.copy()
        swapped[[index, index - 1]] = rows[[index - 1, index]]
        assert (one_layer_run(shard, [swapped]) != true).any()


def test_a_doubled_step_shows_and_a_repeated_one_does_not(shard: ToyShard) -> None:
    rows = ToyOwner(MANIFEST).embed(range(2, 12), 0)
    shard.open("s", Span(0, 3), 64)
    [true] = shard.step([StepInput("s", 0, rows)])
    shard.step([StepInput("s", 10, rows[:1])])
    [again] = shard.step([StepInput("s", 4, rows[4:])])
    np.testing.assert_array_equal(again, true[4:])
    assert shard.length("s") == 10
    [doubled] = shard.step([StepInput("s", 10, rows[9:])])
    assert (doubled != true[9:]).any()


@pytest.mark.parametrize("name", ["raw", "int8", "int8-outlier"])
def test_every_codec_carries_states_without_loss(shard: ToyShard, name: CodecName) -> None:
    shard.open("s", Span(0, 3), 64)
    [states] = shard.step([StepInput("s", 0, ToyOwner(MANIFEST).embed(range(40), 0))])
    chosen = codec(name)
    np.testing.assert_array_equal(chosen.decode(chosen.encode(states), TOY_DIM), states)


def test_states_that_are_no_numbers_give_nan_logits_and_no_crash(shard: ToyShard) -> None:
    bad = np.full((1, TOY_DIM), np.nan, dtype=np.float32)
    assert np.isnan(ToyOwner(MANIFEST).logits(bad)).all()
    shard.open("s", Span(0, 1), 8)
    huge = np.full((1, TOY_DIM), 3e38, dtype=np.float32)
    for states in (bad, huge, -huge):
        assert np.isfinite(shard.step([StepInput("s", 0, states)])[0]).all()


def test_answers_end_by_chance_of_the_prompt_or_never() -> None:
    assert all(len(generate(str(prompt))) == 24 for prompt in range(20))
    lengths = {len(generate(str(prompt), count=200, end_every=8)) for prompt in range(40)}
    assert len(lengths) > 5
    assert max(lengths) < 200


def test_the_contract_is_that_of_the_real_engine(shard: ToyShard) -> None:
    rows = np.zeros((2, TOY_DIM), dtype=np.float32)
    shard.open("s", Span(1, 3), 2)
    for misuse in (
        lambda: shard.open("t", Span(3, 9), 8),
        lambda: shard.load(Span(3, 9)),
        lambda: shard.unload(Span(3, 9)),
        lambda: shard.unload(Span(2, 4)),
        lambda: shard.step([StepInput("t", 0, rows)]),
        lambda: shard.step([StepInput("s", 1, rows)]),
        lambda: shard.step([StepInput("s", 0, np.zeros((3, TOY_DIM), dtype=np.float32))]),
        lambda: shard.truncate("s", 1),
    ):
        with pytest.raises(LocalError):
            misuse()
    shard.close("s")
    shard.close("s")
    assert shard.spans() == (Span(0, LAYERS),)
    shard.unload(Span(2, 4))
    assert shard.spans() == (Span(0, 2), Span(4, LAYERS))
    with pytest.raises(LocalError):
        shard.open("s", Span(1, 3), 2)


def test_a_toy_claims_what_it_was_told() -> None:
    profile = ToyShard(MANIFEST, layer_time_s=3.0, further_time_s=1.0).profile()
    assert profile.compute_class == "toy"
    assert (profile.layer_time_s, profile.further_time_s) == (3.0, 1.0)
    assert ToyShard(MANIFEST, layer_time_s=3.0).profile().further_time_s == 3.0


def test_text_and_tokens(shard: ToyShard) -> None:
    owner: OwnerEngine = ToyOwner(MANIFEST)
    engine: ShardEngine = shard
    assert engine.dim == owner.dim == TOY_DIM
    assert owner.detokenize(owner.tokenize("Hi there~ é")) == "Hi there~ ?"
    assert owner.layers == LAYERS
    assert owner.model == shard.model == MANIFEST.model


def test_the_toy_needs_no_torch() -> None:
    program = "import sys, gennode.engine.toy; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_kept_prefix_and_an_exported_cache_go_on_as_the_original() -> None:
    shard, states = ToyShard(MANIFEST), ToyOwner(MANIFEST).embed(range(40), 0)
    whole = Span(0, MANIFEST.shape.layers)
    shard.load(whole)
    for name in ("first", "second", "third"):
        shard.open(name, whole, 64)
    [expected] = shard.step([StepInput("first", 0, states)])
    kept = shard.keep("first", 16)
    assert kept is not None
    parts = [shard.export("first", start, end) for start, end in ((0, 7), (7, 40))]
    shard.close("first")
    shard.adopt("second", kept)
    shard.forget(kept)
    [after] = shard.step([StepInput("second", 16, states[16:])])
    np.testing.assert_array_equal(after, expected[16:])
    for part in parts:
        assert len(part.payload) == (part.end - part.start) * shard.cache_position_bytes(whole)
        shard.restore("third", part)
    assert shard.length("third") == 40
    [again] = shard.step([StepInput("third", 30, states[30:])])
    np.testing.assert_array_equal(again, expected[30:])


@pytest.mark.parametrize(
    "wrong",
    [
        {"end": 4}, {"end": 39}, {"end": 41}, {"end": 1 << 40}, {"start": 4}, {"start": -1},
        {"layout": "other"}, {"span": Span(1, 2)}, {"payload": b""},
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(shard: ToyShard, wrong: dict[str, Any]) -> None:
    whole, states = Span(0, LAYERS), ToyOwner(MANIFEST).embed(range(41), 0)
    for name in ("one", "two"):
        shard.open(name, whole, 64)
        shard.step([StepInput(name, 0, states[:5])])
    shard.step([StepInput("one", 5, states[5:40])])
    part = shard.export("one", 5, 40)
    with pytest.raises(RemoteError):
        shard.restore("two", dataclasses.replace(part, **wrong))
    with pytest.raises(LocalError):
        shard.export("one", 5, 41)
    assert shard.length("two") == 5
    shard.restore("two", part)
    wanted, found = (shard.step([StepInput(one, 40, states[40:])])[0] for one in ("one", "two"))
    np.testing.assert_array_equal(found, wanted)


def test_any_number_that_a_part_holds_stands_for_one_of_the_toys(shard: ToyShard) -> None:
    whole = Span(0, LAYERS)
    shard.open("one", whole, 64)
    payload = b"\xff\x7f" * (4 * 3 * shard.cache_position_bytes(whole) // 8)
    shard.restore("one", CachePart("toy", whole, 0, 3, payload))
    [found] = shard.step([StepInput("one", 3, ToyOwner(MANIFEST).embed([7], 3))])
    assert np.isfinite(found).all()
