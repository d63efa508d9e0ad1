"""The precision is chosen before anything is loaded: by runs, or with a layer of noise."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from gennode.engine.choice import settle as settling
from gennode.engine.choice.runs import Layer, Run
from gennode.engine.choice.settle import JOB, settle
from gennode.engine.llama.fastest import MIN_LAYER_PARAMETERS
from gennode.engine.llama.precision import available
from gennode.engine.seam import Precision, StepInput
from gennode.errors import DeviceError, LocalError
from gennode.wire.ids import Span
from gennode.wire.manifest import ModelShape
from tests.engine.choice.layers import HERE, LAYERS, PRECISIONS, runs

SMALL = ModelShape("LlamaForCausalLM", 4, 64, 2, 2, 32, 128, 300, 512)
WIDE = msgspec.structs.replace(SMALL, dim=1024, heads=16, kv_heads=2, head_dim=64, ffn_dim=2816)
MEMORY_BYTES = 1 << 30
CPU = torch.device("cpu")
HAS_ALL = available(CPU) == PRECISIONS


def decide(
    shape: ModelShape,
    recorded: list[Run],
    *,
    wanted: Precision | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> tuple[Precision, list[Run]]:
    return settle(
        wanted or "auto",
        shape,
        "cpu",
        memory_bytes=memory_bytes,
        hardware=HERE,
        recorded=recorded,
    )


@pytest.fixture
def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever measures fails."""

    def none(*_: object, **__: object) -> None:
        raise LocalError("nothing was to be measured")

    monkeypatch.setattr(settling, "LlamaShard", none)
    monkeypatch.setattr(settling, "fastest", lambda *_: "bf16")


@pytest.mark.usefixtures("no_engines")
def test_what_is_asked_for_is_taken_if_it_is_here() -> None:
    for precision in available(CPU):
        assert decide(WIDE, [], wanted=precision) == (precision, [])
    for missing in ("fp16", "int4"):
        with pytest.raises(DeviceError) as caught:
            decide(WIDE, [], wanted=missing)
        assert "fp32" in caught.value.hint


@pytest.mark.skipif(not HAS_ALL, reason="this processor lacks bf16 or int8")
@pytest.mark.usefixtures("no_engines")
def test_recorded_runs_of_other_layers_decide_without_a_measurement() -> None:
    others = runs(layers=tuple(one for one in LAYERS if one != Layer.of(WIDE)))
    assert decide(WIDE, others) == ("int8", [])
    # The same machine, but with slow int8: what is chosen follows from the runs.
    slow = [
        msgspec.structs.replace(run, layer_s=9 * run.layer_s) if run.precision != "fp32" else run
        for run in others
    ]
    assert decide(WIDE, slow) == ("fp32", [])
    elsewhere = [msgspec.structs.replace(run, hardware="another") for run in others]
    with pytest.raises(LocalError, match="nothing was to be measured"):
        decide(WIDE, elsewhere)


@pytest.mark.usefixtures("no_engines")
def test_a_layer_that_is_too_large_has_its_products_tried() -> None:
    assert WIDE.layer_parameters > MIN_LAYER_PARAMETERS
    assert decide(WIDE, [], memory_bytes=8 * WIDE.layer_parameters - 1) == ("bf16", [])
    with pytest.raises(LocalError, match="nothing was to be measured"):
        decide(WIDE, [], memory_bytes=8 * WIDE.layer_parameters)
    for odd in ({"kv_heads": 3}, {"head_dim": 65}):
        assert decide(msgspec.structs.replace(WIDE, **odd), []) == ("bf16", [])
    huge = msgspec.structs.replace(WIDE, ffn_dim=1 << 20)
    assert decide(huge, [], memory_bytes=1 << 60) == ("bf16", [])


def test_small_layers_stay_exact() -> None:
    assert decide(SMALL, []) == ("fp32", [])


def test_a_layer_of_noise_is_measured_in_each_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "MIN_LAYER_PARAMETERS", 0)
    monkeypatch.setattr(settling, "STEP_S", 0.0)
    found, fresh = decide(SMALL, [])
    assert found in available(CPU)
    assert {run.precision for run in fresh} == set(available(CPU))
    assert {(run.hardware, run.layer) for run in fresh} == {(HERE, Layer.of(SMALL))}
    assert {run.step.context for run in fresh} == {0, JOB.prompt}
    assert len(fresh) == 4 * len(available(CPU))


@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"]
)
def test_noise_has_the_model_s_sizes_and_stays_finite(architecture: str) -> None:
    shape = msgspec.structs.replace(SMALL, architecture=architecture)
    engines = settling._engines(shape, "cpu", available(CPU), 1 << 30)
    states = np.ones((2, shape.dim), np.float32)
    results = []
    for engine in engines.values():
        assert engine.spans() == (Span(0, 1),)
        engine.open("x", Span(0, 1), 8)
        [result] = engine.step([StepInput("x", 0, states)])
        assert np.isfinite(result).all()
        assert not np.allclose(result, states)
        results.append(result)
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=0.2)
