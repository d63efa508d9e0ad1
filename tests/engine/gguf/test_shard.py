"""llama.cpp layer by layer: the same bits as in one model, and the seam's contract."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import LlamaForCausalLM

from gennode.engine.gguf.folder import open_gguf
from gennode.engine.gguf.native import library
from gennode.engine.gguf.shard import FIRST_POSITIONS, SLOTS, GgufShard
from gennode.engine.seam import States, StepInput
from gennode.errors import LocalError, ResourceError
from gennode.wire.ids import Span
from tests.engine.gguf.conftest import needs_llama
from tests.engine.gguf.making import LAYERS

pytestmark = needs_llama
Kinds = Callable[[str], Path]
DIM = 256
WHOLE = Span(0, LAYERS)


def states(rows: int, seed: int = 0) -> States:
    return np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)


def shard(folder: Path, span: Span = WHOLE, **settings: int) -> GgufShard:
    engine = GgufShard(open_gguf(folder), **settings)
    engine.load(span)
    return engine


def run(engine: GgufShard, inputs: States, prompt: int, name: str = "one") -> States:
    """A prompt, then row by row."""
    [span] = engine.spans()
    engine.open(name, span, len(inputs))
    parts = engine.step([StepInput(name, 0, inputs[:prompt])])
    for position in range(prompt, len(inputs)):
        parts += engine.step([StepInput(name, position, inputs[position : position + 1])])
    return np.concatenate(parts)


class Whole:
    """A GGUF file as llama.cpp itself computes it: all layers in one model."""

    def __init__(self, file: Path) -> None:
        self._llama: Any = library()
        model = self._llama.llama_model_load_from_file(
            str(file).encode(), self._llama.llama_model_default_params()
        )
        options = self._llama.llama_context_default_params()
        options.n_ctx, options.n_seq_max = SLOTS * FIRST_POSITIONS, SLOTS
        options.n_batch = options.n_ubatch = 256
        options.n_threads = options.n_threads_batch = 1
        self.parts: list[States] = []
        self._base = ctypes.CDLL(str(Path(library().__file__ or "").parent / "lib/libggml-base.so"))
        self._base.ggml_get_name.restype = ctypes.c_char_p
        self._base.ggml_nbytes.restype = ctypes.c_size_t
        self._take = self._llama.ggml_backend_sched_eval_callback(self._taken)
        options.cb_eval = self._take
        self._context = self._llama.llama_init_from_model(model, options)
        self._batch = self._llama.llama_batch_init(256, DIM, 1)

    def _taken(self, tensor: int, ask: bool, data: int | None) -> bool:
        pointer = ctypes.c_void_p(tensor)
        wanted = self._base.ggml_get_name(pointer) == f"l_out-{LAYERS - 1}".encode()
        if wanted and not ask:
            size = self._base.ggml_nbytes(pointer)
            out = np.empty((size // 4 // DIM, DIM), np.float32)
            self._base.ggml_backend_tensor_get(
                pointer, ctypes.c_void_p(out.ctypes.data), ctypes.c_size_t(0), ctypes.c_size_t(size)
            )
            self.parts.append(out)
        return wanted or not ask

    def step(self, rows: States, position: int) -> None:
        self._batch.n_tokens = len(rows)
        ctypes.memmove(self._batch.embd, rows.ctypes.data, rows.nbytes)
        for row in range(len(rows)):
            self._batch.pos[row], self._batch.n_seq_id[row] = position + row, 1
            self._batch.seq_id[row][0], self._batch.logits[row] = 0, True
        assert self._llama.llama_decode(self._context, self._batch) == 0


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0", "q4_k"])
def test_layers_of_their_own_give_the_same_bits_as_the_whole_file(kinds: Kinds, kind: str) -> None:
    folder, inputs = kinds(kind), states(20)
    whole = Whole(folder / "model.gguf")
    whole.step(inputs[:12], 0)
    for position in range(12, 20):
        whole.step(inputs[position : position + 1], position)
    assert np.array_equal(run(shard(folder), inputs, 12), np.concatenate(whole.parts))


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0", "q4_k"])
@pytest.mark.parametrize("cuts", [(0, 3, 6), (0, 1, 4, 6)])
def test_workers_in_a_row_give_the_same_bits_as_one(
    kinds: Kinds, kind: str, cuts: tuple[int, ...]
) -> None:
    folder, inputs = kinds(kind), states(20)
    passed = inputs
    for start, end in itertools.pairwise(cuts):
        passed = run(shard(folder, Span(start, end)), passed, 12)
    assert np.array_equal(passed, run(shard(folder), inputs, 12))


def test_f16_agrees_with_transformers(model: tuple[Path, LlamaForCausalLM], kinds: Kinds) -> None:
    inputs = states(40)
    layers = model[1].model
    taken: list[torch.Tensor] = []
    hook = layers.norm.register_forward_pre_hook(lambda norm, given: taken.append(given[0]))
    with torch.inference_mode():
        layers(inputs_embeds=torch.from_numpy(inputs)[None])
    hook.remove()
    exact = taken[0][0].numpy()
    found = run(shard(kinds("f16")), inputs, 30)
    error = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert 0 < np.median(error) < 5e-3 > error.max() / 2


def test_a_batch_gives_each_sequence_what_it_gets_alone(kinds: Kinds) -> None:
    engine, names = shard(kinds("q8_0")), range(4)
    inputs = {name: states(9 + name, seed=name) for name in names}
    alone = {name: run(shard(kinds("q8_0")), inputs[name], 9) for name in names}
    for name in names:
        engine.open(name, WHOLE, 64)
    engine.close(1)  # a gap between the slots
    engine.step([StepInput(name, 0, inputs[name][:9]) for name in (3, 0, 2)])
    batch = [StepInput(3, 9, inputs[3][9:]), StepInput(0, 9, states(1)),
             StepInput(2, 9, inputs[2][9:10])]  # fmt: skip
    three, _, two = engine.step(batch)
    assert np.allclose(three, alone[3][9:], rtol=0, atol=2e-3 * np.abs(alone[3]).max())
    assert np.allclose(two, alone[2][9:10], rtol=0, atol=2e-3 * np.abs(alone[2]).max())


def test_a_step_repeated_gives_the_same_bits(kinds: Kinds) -> None:
    engine, inputs = shard(kinds("q8_0")), states(12)
    first = run(engine, inputs, 8)
    again = engine.step([StepInput("one", 9, inputs[9:])])
    assert engine.length("one") == 12
    engine.truncate("one", 8)
    slow = [engine.step([StepInput("one", p, inputs[p : p + 1])])[0] for p in range(8, 12)]
    assert np.array_equal(np.concatenate(slow), first[8:])
    assert np.allclose(again[0], first[9:], atol=1e-2 * np.abs(first).max())


def test_a_sequence_may_run_over_a_part_of_what_is_loaded(kinds: Kinds) -> None:
    engine, inputs = shard(kinds("f16")), states(6)
    engine.open("part", Span(2, 4), 8)
    [found] = engine.step([StepInput("part", 0, inputs)])
    assert np.array_equal(found, run(shard(kinds("f16"), Span(2, 4)), inputs, 6))


def test_caches_grow_without_a_change_of_bits(kinds: Kinds) -> None:
    rows, first = FIRST_POSITIONS + 40, FIRST_POSITIONS - 3
    inputs = states(rows, seed=3)
    engine = shard(kinds("f16"))
    small = engine.cache_use().used_bytes
    engine.open("other", WHOLE, 8)
    engine.step([StepInput("other", 0, inputs[:4])])
    engine.open("one", WHOLE, rows)
    [head] = engine.step([StepInput("one", 0, inputs[:first])])
    assert engine.cache_use().used_bytes == small
    [tail] = engine.step([StepInput("one", first, inputs[first:])])
    assert engine.cache_use().used_bytes == 2 * small
    [other] = engine.step([StepInput("other", 4, inputs[4:5])])

    roomy = shard(kinds("f16"))
    roomy.open("long", WHOLE, 2 * FIRST_POSITIONS)
    roomy.step([StepInput("long", 0, states(2 * FIRST_POSITIONS))])
    for name in ("one", "other"):
        roomy.open(name, WHOLE, rows)
    assert np.array_equal(roomy.step([StepInput("one", 0, inputs[:first])])[0], head)
    assert np.array_equal(roomy.step([StepInput("one", first, inputs[first:])])[0], tail)
    roomy.step([StepInput("other", 0, inputs[:4])])
    assert np.array_equal(roomy.step([StepInput("other", 4, inputs[4:5])])[0], other)
    for name in ("long", "one", "other"):
        roomy.close(name)
    assert roomy.cache_use().used_bytes == small  # given back when nobody is left


def test_there_are_so_many_slots_and_no_more(kinds: Kinds) -> None:
    engine = shard(kinds("f16"), Span(0, 1))
    for name in range(SLOTS):
        engine.open(name, Span(0, 1), 8)
    with pytest.raises(ResourceError, match="no more than"):
        engine.open("more", Span(0, 1), 8)
    engine.close(3)
    engine.open("more", Span(0, 1), 8)
    assert engine.length("more") == 0


def test_layers_come_and_go(kinds: Kinds) -> None:
    engine, told = shard(kinds("q4_0"), Span(1, 3)), []
    engine.load(Span(0, 4), lambda done, total: told.append((done, total)))
    assert engine.spans() == (Span(0, 4),)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    engine.open("one", Span(2, 4), 8)
    with pytest.raises(LocalError, match="runs over"):
        engine.unload(Span(3, 4))
    engine.unload(Span(0, 1))
    assert engine.spans() == (Span(1, 4),)
    with pytest.raises(LocalError, match="not loaded"):
        engine.open("two", Span(0, 2), 8)
    engine.close("one")
    engine.close("one")
    engine.unload(Span(0, 4))
    assert engine.spans() == ()


def test_a_cache_that_is_too_small_is_refused_and_what_ran_goes_on(kinds: Kinds) -> None:
    enough = shard(kinds("f16")).cache_use().used_bytes
    engine = shard(kinds("f16"), max_cache_bytes=enough)
    engine.open("one", WHOLE, 2048)
    with pytest.raises(ResourceError, match="too few"):
        engine.step([StepInput("one", 0, states(FIRST_POSITIONS + 1))])
    [found] = engine.step([StepInput("one", 0, states(5))])
    assert np.array_equal(found, run(shard(kinds("f16")), states(5), 5))
    with pytest.raises(ResourceError, match="too few"):
        shard(kinds("f16"), max_cache_bytes=enough - 1)


def test_several_inputs_of_a_sequence_are_done_one_after_the_other(kinds: Kinds) -> None:
    engine, rows = shard(kinds("q8_0")), states(9)
    for name in ("one", "other"):
        engine.open(name, WHOLE, 16)
    expected = [
        engine.step([StepInput("one", start, rows[start:end])])[0]
        for start, end in ((0, 6), (6, 7), (7, 9))
    ]
    engine.open("one", WHOLE, 16)
    found = engine.step([
        StepInput("one", 0, rows[:6]), StepInput("other", 0, rows[:6]),
        StepInput("one", 6, rows[6:7]), StepInput("one", 7, rows[7:]),
    ])  # fmt: skip
    for one, result in zip([expected[0], *expected], [found[1], found[0], *found[2:]], strict=True):
        assert np.array_equal(one, result)
    with pytest.raises(LocalError, match="comes behind"):
        engine.step([StepInput("one", 0, rows[:6]), StepInput("one", 7, rows[6:7])])


def test_callers_are_held_to_the_contract(kinds: Kinds) -> None:
    engine = shard(kinds("f16"))
    with pytest.raises(LocalError, match="not open"):
        engine.step([StepInput("none", 0, states(1))])
    engine.open("one", WHOLE, 4)
    with pytest.raises(LocalError, match="gap"):
        engine.step([StepInput("one", 1, states(1))])
    with pytest.raises(LocalError, match="beyond"):
        engine.step([StepInput("one", 0, states(5))])
    with pytest.raises(LocalError, match="not float32"):
        engine.step([StepInput("one", 0, states(2)[:, :-1])])
    with pytest.raises(LocalError, match="cut"):
        engine.truncate("one", 1)
    with pytest.raises(LocalError, match="exported"):
        engine.export("one", 0, 0)
    assert engine.cache_position_bytes(WHOLE) == 0
    assert engine.keep("one", 0) is None
    [none] = engine.step([StepInput("one", 0, states(0))])
    assert none.shape == (0, DIM)


def test_states_that_are_no_numbers_harm_nobody_else(kinds: Kinds) -> None:
    engine = shard(kinds("q8_0"))
    expected = run(engine, states(6), 5)
    engine.open("bad", WHOLE, 8)
    engine.step([StepInput("bad", 0, np.full((5, DIM), np.nan, np.float32))])
    engine.step([StepInput("one", 5, states(6)[5:]), StepInput("bad", 5, states(1) * np.inf)])
    [found] = engine.step([StepInput("one", 5, states(6)[5:])])
    assert np.array_equal(found, expected[5:])


def test_layers_take_no_more_memory_than_is_counted_for_them(kinds: Kinds) -> None:
    folder, inputs = open_gguf(kinds("q8_0")), states(FIRST_POSITIONS)
    engine = GgufShard(folder)
    engine.load(Span(0, 1))
    engine.open("one", Span(0, 1), FIRST_POSITIONS)
    engine.step([StepInput("one", 0, inputs)])
    before_bytes = psutil.Process().memory_full_info().uss
    engine.load(WHOLE)
    engine.open("one", WHOLE, FIRST_POSITIONS)
    engine.step([StepInput("one", 0, inputs)])
    taken_bytes = psutil.Process().memory_full_info().uss - before_bytes
    cache_bytes = engine.cache_use().used_bytes // LAYERS
    assert taken_bytes < (LAYERS - 1) * (folder.gguf.layer_memory_bytes + cache_bytes)


def test_the_profile_names_weights_and_times(kinds: Kinds) -> None:
    profile = shard(kinds("q8_0")).profile()
    assert profile.compute_class == "gguf-q8_0-cpu"
    assert profile.layer_time_s > 0
    assert profile.load_time_s > 0
    assert shard(kinds("q4_k")).compute_class == "gguf-q4_k-cpu"
