"""Layers in spans give what the whole model gives, and obey the engine's contract."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from bench._random_model import random_llama
from gennode.engine.checkpoint.weights import open_model
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.seam import Logits, ShardEngine, StepInput
from gennode.errors import DeviceError, LocalError, ModelError, ResourceError
from gennode.wire.ids import Span
from gennode.wire.manifest import ModelShape

Llamas = dict[str, tuple[Path, LlamaForCausalLM]]
ALL = Span(0, 4)
CUTS: dict[int, list[Span]] = {
    1: [ALL],
    2: [Span(0, 1), Span(1, 4)],
    3: [Span(0, 2), Span(2, 3), Span(3, 4)],
    4: [Span(0, 1), Span(1, 2), Span(2, 3), Span(3, 4)],
}
PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 200, 8, 12


class Chain:
    """An owner and one worker per span, without a network."""

    def __init__(self, folder: Path, spans: Sequence[Span]) -> None:
        model = open_model(folder)
        self.owner = LlamaOwner(model)
        self.shards = [LlamaShard(model) for _ in spans]
        for shard, span in zip(self.shards, spans, strict=True):
            shard.load(span)
        self.spans = spans

    def open(self, sequence: object, max_positions: int = 512) -> None:
        for shard, span in zip(self.shards, self.spans, strict=True):
            shard.open(sequence, span, max_positions)

    def step(self, sequence: object, position: int, tokens: Sequence[int]) -> list[Logits]:
        states = self.owner.embed(tokens, 0)
        for shard in self.shards:
            [states] = shard.step([StepInput(sequence, position, states)])
        return [self.owner.logits(row) for row in states]


def one_shard(folder: Path, span: Span = ALL) -> ShardEngine:
    shard: ShardEngine = LlamaShard(open_model(folder))
    shard.load(span)
    return shard


def random_states(rows: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((rows, 32)).astype(np.float32)


@pytest.mark.parametrize("variant", ["plain", "grouped", "tied-llama3", "biased"])
@pytest.mark.parametrize("spans", CUTS.values(), ids=CUTS.keys())
def test_logits_equal_those_of_transformers(
    llamas: Llamas, variant: str, spans: list[Span]
) -> None:
    folder, reference = llamas[variant]
    tokens = np.random.default_rng(5).integers(0, 300, 80).tolist()
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    chain = Chain(folder, spans)
    chain.open("s")
    found = chain.step("s", 0, tokens[:40]) + chain.step("s", 40, tokens[40:64])
    for position in range(64, 80):
        found += chain.step("s", position, [tokens[position]])
    error = np.linalg.norm(np.array(found) - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 1e-4


def test_greedy_tokens_are_those_of_transformers_for_200_prompts(llamas: Llamas) -> None:
    folder, reference = llamas["grouped"]
    prompts = np.random.default_rng(7).integers(0, 300, (PROMPTS, PROMPT_TOKENS))
    ids, cache = torch.from_numpy(prompts), None
    expected = []
    with torch.inference_mode():
        for _ in range(ANSWER_TOKENS):
            answer = reference(ids, past_key_values=cache, use_cache=True)
            cache = answer.past_key_values
            ids = answer.logits[:, -1:].argmax(dim=-1)
            expected.append(ids[:, 0].numpy())
    chain = Chain(folder, CUTS[2])
    found = []
    for prompt in prompts.tolist():
        chain.open("s")
        tokens = [int(chain.step("s", 0, prompt)[-1].argmax())]
        while len(tokens) < ANSWER_TOKENS:
            position = PROMPT_TOKENS + len(tokens) - 1
            tokens.append(int(chain.step("s", position, tokens[-1:])[0].argmax()))
        found.append(tokens)
    np.testing.assert_array_equal(np.array(found), np.array(expected).T)


def test_a_repeated_step_gives_the_same_bits_and_forgets_what_followed(llamas: Llamas) -> None:
    shard = one_shard(llamas["grouped"][0])
    shard.open("s", ALL, 64)
    states = random_states(30)
    first = shard.step([StepInput("s", 0, states[:20])])[0]
    second = shard.step([StepInput("s", 20, states[20:])])[0]
    assert shard.length("s") == 30
    again = shard.step([StepInput("s", 0, states[:20])])[0]
    assert shard.length("s") == 20
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(shard.step([StepInput("s", 20, states[20:])])[0], second)


def test_after_truncate_a_sequence_goes_on_as_if_never_longer(llamas: Llamas) -> None:
    shard = one_shard(llamas["plain"][0])
    for sequence in ("a", "b"):
        shard.open(sequence, Span(1, 3), 64)
        shard.step([StepInput(sequence, 0, random_states(10))])
    shard.step([StepInput("a", 10, random_states(5, seed=1))])
    shard.truncate("a", 10)
    one = random_states(1, seed=2)
    left, right = shard.step([StepInput("a", 10, one), StepInput("b", 10, one)])
    np.testing.assert_array_equal(left, right)


def test_chunks_of_a_prompt_agree_with_the_whole_across_cache_growth(llamas: Llamas) -> None:
    shard = one_shard(llamas["grouped"][0])
    states = random_states(400)
    shard.open("whole", ALL, 400)
    shard.open("chunks", ALL, 400)
    [whole] = shard.step([StepInput("whole", 0, states)])
    pieces = [
        shard.step([StepInput("chunks", start, states[start : start + 150])])[0]
        for start in (0, 150, 300)
    ]
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-4, atol=1e-4)


def test_a_step_leaves_its_input_alone_and_accepts_read_only_states(llamas: Llamas) -> None:
    shard = one_shard(llamas["plain"][0])
    shard.open("s", ALL, 8)
    states = random_states(3)
    states.flags.writeable = False
    before = states.copy()
    [result] = shard.step([StepInput("s", 0, states)])
    np.testing.assert_array_equal(states, before)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    assert not np.shares_memory(result, states)
    assert shard.step([StepInput("s", 3, states[:0])])[0].shape == (0, 32)


def test_small_steps_leave_the_number_of_threads_as_it_was(llamas: Llamas) -> None:
    threads = torch.get_num_threads()
    shard = one_shard(llamas["plain"][0])
    shard.open("s", ALL, 8)
    shard.step([StepInput("s", 0, random_states(1))])
    assert torch.get_num_threads() == threads


def test_misuse_is_our_own_bug(llamas: Llamas) -> None:
    shard = one_shard(llamas["plain"][0], Span(1, 3))
    shard.open("s", Span(1, 3), 8)
    for misuse in (
        lambda: shard.open("t", Span(0, 2), 8),
        lambda: shard.open("t", Span(1, 3), 0),
        lambda: shard.load(Span(3, 5)),
        lambda: shard.unload(Span(3, 5)),
        lambda: shard.unload(Span(2, 4)),
        lambda: shard.step([StepInput("t", 0, random_states(1))]),
        lambda: shard.step([StepInput("s", 1, random_states(1))]),
        lambda: shard.step([StepInput("s", 0, random_states(9))]),
        lambda: shard.step([StepInput("s", 0, random_states(1)[:, :5])]),
        lambda: shard.step([StepInput("s", 0, random_states(1))] * 2),
        lambda: shard.keep("s", 1),
        lambda: shard.truncate("s", 1),
        lambda: shard.length("t"),
        lambda: LlamaShard(open_model(llamas["plain"][0])).profile(),
    ):
        with pytest.raises(LocalError):
            misuse()
    shard.close("s")
    shard.close("s")


def test_loading_adds_layers_and_tells_of_it(llamas: Llamas) -> None:
    shard = one_shard(llamas["plain"][0], Span(3, 4))
    told: list[tuple[int, int]] = []
    shard.load(Span(0, 2), lambda done, total: told.append((done, total)))
    assert shard.spans() == (Span(0, 2), Span(3, 4))
    assert told == [(1, 2), (2, 2)]
    shard.load(ALL)
    assert shard.spans() == (ALL,)


def test_what_no_sequence_needs_is_unloaded_and_loads_again_to_the_same_bits(
    llamas: Llamas,
) -> None:
    shard = one_shard(llamas["plain"][0])
    shard.open("s", ALL, 8)
    [expected] = shard.step([StepInput("s", 0, random_states(3))])
    shard.open("s", Span(0, 1), 8)  # over fewer layers from now on
    shard.unload(Span(1, 3))
    assert shard.spans() == (Span(0, 1), Span(3, 4))
    with pytest.raises(LocalError, match="0:1"):
        shard.unload(ALL)
    assert shard.spans() == (Span(0, 1), Span(3, 4))
    shard.close("s")
    shard.unload(ALL)
    shard.unload(ALL)
    assert shard.spans() == ()
    shard.load(ALL)
    shard.open("s", ALL, 8)
    np.testing.assert_array_equal(shard.step([StepInput("s", 0, random_states(3))])[0], expected)


def test_a_full_cache_is_a_resource_error_until_a_sequence_is_closed(llamas: Llamas) -> None:
    page_bytes = 64 * 4 * 2 * 4 * 8 * 4  # positions, layers, keys and values, heads, width, fp32
    shard = LlamaShard(open_model(llamas["plain"][0]), max_cache_bytes=2 * page_bytes)
    shard.load(ALL)
    shard.open("a", ALL, 512)
    shard.open("b", ALL, 512)
    [first] = shard.step([StepInput("a", 0, random_states(65))])
    with pytest.raises(ResourceError, match="cache") as caught:
        shard.step([StepInput("b", 0, random_states(65))])
    assert caught.value.hint
    shard.close("a")
    np.testing.assert_array_equal(shard.step([StepInput("b", 0, random_states(65))])[0], first)


def test_profile_is_measured_once(llamas: Llamas) -> None:
    shard = one_shard(llamas["plain"][0])
    profile = shard.profile()
    assert profile.compute_class == "fp32-cpu"
    assert profile.layer_time_s > 0
    assert profile.load_time_s > 0
    # No more is promised here, for it is measured on whatever else runs meanwhile.
    assert 0 <= profile.further_time_s < 20 * profile.layer_time_s
    assert shard.profile() is profile


def test_a_missing_accelerator_is_a_device_error(llamas: Llamas) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is an accelerator here")
    for device in ("cuda", "abacus"):
        with pytest.raises(DeviceError) as caught:
            LlamaShard(open_model(llamas["plain"][0]), device=device)
        assert caught.value.hint


def test_bf16_weights_on_a_cpu_stay_near_fp32(llamas: Llamas) -> None:
    folder = llamas["grouped"][0]
    exact = one_shard(folder)
    coarse = LlamaShard(open_model(folder), precision="bf16")
    coarse.load(ALL)
    results = []
    for shard in (exact, coarse):
        shard.open("s", ALL, 16)
        results.append(shard.step([StepInput("s", 0, random_states(16))])[0])
    error = np.linalg.norm(results[1] - results[0]) / np.linalg.norm(results[0])
    assert 0 < error < 0.1
    assert coarse.profile().compute_class == "bf16-cpu"


_LOAD_SPAN = """
import re, sys
from pathlib import Path
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.checkpoint.weights import open_model
from gennode.wire.ids import Span

def resident_bytes(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

folder, start, end = sys.argv[1:]
shard = LlamaShard(open_model(Path(folder)))
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = resident_bytes("VmRSS")
shard.load(Span(int(start), int(end)))
print(resident_bytes("VmHWM") - before, resident_bytes("VmRSS") - before)
shard.unload(Span(int(start) + 1, int(end)))
print(resident_bytes("VmRSS") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_loading_a_span_takes_the_memory_of_that_span_and_unloading_gives_it_back(
    tmp_path: Path,
) -> None:
    shape = ModelShape("LlamaForCausalLM", 10, 1024, 16, 16, 64, 2048, 512, 512)
    random_llama(tmp_path, shape, 1)  # 210 MB in bf16
    command = [sys.executable, "-c", _LOAD_SPAN, str(tmp_path), "3", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    layer_bytes = 4 * shape.layer_parameters
    peak_bytes, end_bytes, left_bytes = map(int, done.stdout.split())
    # 10 % and a constant: the library's own buffers, and one matrix in two forms.
    assert end_bytes <= 1.1 * 4 * layer_bytes
    assert peak_bytes <= 1.1 * 4 * layer_bytes + 32 * 1024**2
    assert left_bytes <= 1.1 * layer_bytes + 32 * 1024**2


def test_weights_that_are_no_numbers_are_seen_before_anybody_is_served(llama_folder: Path) -> None:
    tensors = load_file(llama_folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_file(tensors, llama_folder / "model.safetensors")
    shard = LlamaShard(open_model(llama_folder))
    shard.load(Span(0, 2))
    with pytest.raises(ModelError, match="not finite"):
        shard.profile()
