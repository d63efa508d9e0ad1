"""Any decoder's layers in spans give the library's own bits, from its own checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gennode.engine.any.cache import KEPT_STEPS
from gennode.engine.any.shard import AnyShard
from gennode.engine.checkpoint.weights import ModelFolder, open_model
from gennode.engine.engines import owner_engine, shard_engine
from gennode.engine.options import EngineOptions
from gennode.engine.seam import ShardEngine, States, StepInput
from gennode.errors import LocalError, ModelError, ResourceError, UsageError
from gennode.wire.ids import Span
from tools.tiny_models import LAYERS, make_tiny
from tools.write_models import EXACT, verdict

FAMILIES = (
    *("gemma2", "gemma3_text", "gpt2", "gpt_oss", "phi3", "olmo2"),  # windows, positions, caps
    *("mixtral", "qwen3_moe", "deepseek_v3"),  # experts, which checkpoints keep one by one
    *("bamba", "mamba2", "falcon_h1", "qwen3_next"),  # recurrent layers, alone and with others
)
ALL = Span(0, LAYERS)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_three_spans_give_the_librarys_own_bits(model_type: str, tmp_path: Path) -> None:
    assert verdict(model_type, tmp_path) == EXACT


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFolder]:
    """With sliding windows, with recurrent layers, with layers that are both, with experts."""
    found = {}
    for model_type in ("gemma2", "bamba", "falcon_h1", "mixtral"):
        path = tmp_path_factory.mktemp(model_type)
        make_tiny(model_type, path)
        found[model_type] = open_model(path)
    return found


def loaded(folder: ModelFolder, span: Span = ALL, **settings: Any) -> AnyShard:
    shard = AnyShard(folder, **settings)
    shard.load(span)
    return shard


def random_states(rows: int, seed: int = 0) -> States:
    return np.random.default_rng(seed).standard_normal((rows, 32)).astype(np.float32)


def test_checkpoints_keep_experts_one_by_one(folders: dict[str, ModelFolder]) -> None:
    experts = [name for name in folders["mixtral"].names if ".experts.3." in name]
    assert len(experts) == 3 * LAYERS  # the library's classes keep all of a layer's as one


def test_the_factory_takes_the_generic_engine_for_what_is_no_llama(
    folders: dict[str, ModelFolder],
) -> None:
    engine: ShardEngine = shard_engine(folders["gemma2"], EngineOptions())
    assert isinstance(engine, AnyShard)
    assert owner_engine(folders["gemma2"]).layers == LAYERS
    with pytest.raises(UsageError, match="int8") as caught:
        shard_engine(folders["gemma2"], EngineOptions(precision="int8"))
    assert caught.value.hint


@pytest.mark.parametrize("model_type", ["gemma2", "bamba", "falcon_h1"])
def test_several_inputs_of_a_sequence_are_done_one_after_the_other(
    folders: dict[str, ModelFolder], model_type: str
) -> None:
    shard, rows = loaded(folders[model_type]), random_states(9)
    cuts = [(0, 5), (5, 6), (6, 9)]
    for name in ("a", "b"):
        shard.open(name, ALL, 16)
    expected = [shard.step([StepInput("a", s, rows[s:e])])[0] for s, e in cuts]
    found = shard.step([StepInput("b", s, rows[s:e]) for s, e in cuts])
    for one, result in zip(expected, found, strict=True):
        np.testing.assert_array_equal(result, one)
    with pytest.raises(LocalError, match="exported"):
        shard.export("b", 0, 9)
    with pytest.raises(LocalError, match="comes behind"):
        shard.step([StepInput("b", 0, rows[:5]), StepInput("b", 6, rows[6:])])
    assert shard.length("b") == 9


@pytest.mark.parametrize("model_type", ["gemma2", "bamba", "mixtral"])
def test_layers_loaded_at_different_times_are_one_span(
    folders: dict[str, ModelFolder], model_type: str
) -> None:
    whole, parts = loaded(folders[model_type]), AnyShard(folders[model_type])
    told: list[tuple[int, int]] = []
    for span in (Span(4, 6), Span(0, 3), Span(2, 4)):
        parts.load(span, lambda done, total: told.append((done, total)))
    assert told[-2:] == [(1, 2), (2, 2)]
    assert parts.spans() == (ALL,)
    for engine in (whole, parts):
        engine.open("s", ALL, 16)
    batch = [StepInput("s", 0, random_states(9))]
    np.testing.assert_array_equal(whole.step(batch)[0], parts.step(batch)[0])


def test_unloaded_layers_are_free_and_can_come_back(folders: dict[str, ModelFolder]) -> None:
    shard = loaded(folders["mixtral"], Span(1, 4))
    shard.open("s", Span(2, 3), 16)
    [before] = shard.step([StepInput("s", 0, random_states(5))])
    with pytest.raises(LocalError, match="a sequence runs over"):
        shard.unload(Span(1, 4))
    shard.unload(Span(1, 2))
    shard.close("s")
    shard.unload(Span(2, 4))
    assert shard.spans() == ()
    held = [each for each in shard._skeleton.layers.parameters() if not each.is_meta]
    assert held == []
    shard.load(Span(2, 3))
    shard.open("s", Span(2, 3), 16)
    np.testing.assert_array_equal(shard.step([StepInput("s", 0, random_states(5))])[0], before)


@pytest.mark.parametrize("model_type", ["gemma2", "bamba", "falcon_h1"])
@pytest.mark.parametrize("span", [ALL, Span(2, 4)], ids=str)
def test_going_back_gives_the_same_bits(
    folders: dict[str, ModelFolder], model_type: str, span: Span
) -> None:
    shard = loaded(folders[model_type], span)
    states = random_states(24)
    for sequence in ("straight", "back"):
        shard.open(sequence, span, 32)
        shard.step([StepInput(sequence, 0, states[:12])])

    def go(sequence: str, position: int) -> States:
        return shard.step([StepInput(sequence, position, states[position : position + 1])])[0]

    expected = [go("straight", position) for position in range(12, 20)]
    for position in range(12, 18):
        go("back", position)
    shard.truncate("back", 14)
    assert shard.length("back") == 14
    found = [go("back", position) for position in range(14, 18)]
    again = [go("back", position) for position in range(16, 20)]  # a step may go back by itself
    np.testing.assert_array_equal(found, expected[2:6])
    np.testing.assert_array_equal(again, expected[4:])
    shard.truncate("back", 0)
    [fresh] = shard.step([StepInput("back", 0, states[:12])])
    shard.open("anew", span, 32)
    np.testing.assert_array_equal(shard.step([StepInput("anew", 0, states[:12])])[0], fresh)


@pytest.mark.parametrize("model_type", ["gemma2", "bamba", "falcon_h1"])
def test_a_step_that_ran_out_of_memory_half_way_can_be_sent_again(
    folders: dict[str, ModelFolder], model_type: str
) -> None:
    def give_up(*_: object) -> None:
        raise MemoryError

    shard = loaded(folders[model_type])
    for sequence in ("calm", "hit"):
        shard.open(sequence, ALL, 16)
        shard.step([StepInput(sequence, 0, random_states(9))])
    handle = shard._skeleton.layers[4].register_forward_pre_hook(give_up)
    with pytest.raises(ResourceError, match="no memory for 2 rows at position 9"):
        shard.step([StepInput("hit", 9, random_states(2))])
    handle.remove()
    assert shard.length("hit") == 9
    calm, hit = shard.step([StepInput(each, 9, random_states(2)) for each in ("calm", "hit")])
    np.testing.assert_array_equal(calm, hit)


def test_recurrent_layers_say_how_far_they_can_go_back(folders: dict[str, ModelFolder]) -> None:
    shard = loaded(folders["bamba"])
    shard.open("s", ALL, 32)
    shard.step([StepInput("s", 0, random_states(4))])
    for position in range(4, 4 + KEPT_STEPS):
        shard.step([StepInput("s", position, random_states(1))])
    with pytest.raises(ResourceError, match=f"last {KEPT_STEPS} steps") as caught:
        shard.truncate("s", 2)  # within a step
    assert caught.value.hint
    shard.step([StepInput("s", 4, random_states(1))])  # that many steps ago
    assert shard.length("s") == 5


def test_sequences_do_not_change_each_others_bits(folders: dict[str, ModelFolder]) -> None:
    for folder in folders.values():
        shard = loaded(folder, Span(1, 5))
        states = [random_states(rows, seed) for seed, rows in enumerate((3, 9, 1))]
        for sequence in range(3):
            shard.open(sequence, Span(1, 5), 16)
        found = shard.step([StepInput(index, 0, each) for index, each in enumerate(states)])
        for index, each in enumerate(states):
            shard.open("alone", Span(1, 5), 16)
            np.testing.assert_array_equal(
                shard.step([StepInput("alone", 0, each)])[0], found[index]
            )


def test_caches_are_counted_bounded_and_freed(folders: dict[str, ModelFolder]) -> None:
    for folder in folders.values():
        shard = loaded(folder, max_cache_bytes=100_000)
        shard.open("s", ALL, 1000)
        shard.step([StepInput("s", 0, random_states(4))])
        used_bytes = shard.cache_use().used_bytes
        assert 0 < used_bytes < 100_000
        with pytest.raises(ResourceError, match="too few for the cache"):
            shard.step([StepInput("s", 4, random_states(900))])
        assert shard.length("s") == 4
        shard.step([StepInput("s", 4, random_states(1))])
        shard.close("s")
        assert shard.cache_use().used_bytes == 0


def test_calls_against_the_contract_are_our_own_fault(folders: dict[str, ModelFolder]) -> None:
    shard = AnyShard(folders["gemma2"])
    for call in (
        lambda: shard.load(Span(0, LAYERS + 1)),
        lambda: shard.open("s", Span(0, 1), 8),
        lambda: shard.step([StepInput("s", 0, random_states(1))]),
        shard.profile,
        lambda: shard.reread(folders["bamba"].path),
    ):
        with pytest.raises(LocalError):
            call()
    shard.load(Span(0, 1))
    shard.open("s", Span(0, 1), 8)
    for states, position in ((random_states(9), 0), (random_states(1), 1)):
        with pytest.raises(LocalError):
            shard.step([StepInput("s", position, states)])
    profile = shard.profile()
    assert profile.compute_class == "fp32-cpu"
    assert profile.layer_time_s > 0


def test_a_worker_needs_its_own_layers_files_alone(tmp_path: Path) -> None:
    """In one file per layer, all others may be lost after the folder was checked."""
    make_tiny("qwen3_moe", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    placed = {name: f"{name.split('.')[2] if '.layers.' in name else 'rest'}.safetensors"
              for name in tensors}  # fmt: skip
    for file in set(placed.values()):
        save_file({name: each for name, each in tensors.items() if placed[name] == file},
                  tmp_path / file)  # fmt: skip
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    folder = open_model(tmp_path)
    for file in set(placed.values()) - {"2.safetensors", "3.safetensors"}:
        (tmp_path / file).unlink()
    shard = loaded(folder, Span(2, 4))
    shard.open("s", Span(2, 4), 8)
    shard.step([StepInput("s", 0, random_states(3))])
    with pytest.raises(ModelError):
        shard.load(Span(4, 5))
    assert shard.spans() == (Span(2, 4),)


def test_weights_in_bf16_are_widened(tmp_path: Path) -> None:
    model = make_tiny("gemma2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    halves = {name: each.bfloat16() for name, each in tensors.items()}
    save_file(halves, tmp_path / "model.safetensors")
    shard = loaded(open_model(tmp_path), Span(0, 1))
    found = dict(shard._skeleton.layers[0].named_parameters())["mlp.up_proj.weight"]
    assert found.dtype == torch.float32
    rounded = model.model.layers[0].mlp.up_proj.weight.bfloat16().float()
    torch.testing.assert_close(found, rounded, rtol=0, atol=0)


def _edit(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_edit(lambda tensors: tensors.__delitem__(UP)), "layer 1 of the model lacks"),
        (_edit(lambda tensors: tensors.update({UP: torch.zeros(3, 3)})), "has shape"),
        (_edit(lambda tensors: tensors.update({UP[:-6] + "bias": torch.zeros(3)})), "no place"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    make_tiny("gemma2", tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        loaded(open_model(tmp_path), Span(1, 2))
    assert "up_proj" in str(caught.value)
    assert caught.value.hint


def test_weights_that_are_no_numbers_are_seen_before_anybody_is_served(tmp_path: Path) -> None:
    make_tiny("gemma2", tmp_path)
    _edit(lambda tensors: tensors.update({UP: torch.full_like(tensors[UP], torch.nan)}))(tmp_path)
    shard = loaded(open_model(tmp_path), Span(1, 2))
    with pytest.raises(ModelError, match="not finite"):
        shard.profile()


def test_a_window_of_less_than_nothing_is_refused(tmp_path: Path) -> None:
    make_tiny("gemma2", tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text()) | {"sliding_window": -1}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError):
        loaded(open_model(tmp_path), Span(1, 2))
