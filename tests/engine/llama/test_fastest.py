"""The quickest precision wins if it is quick enough, and small layers stay exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from gennode.engine.checkpoint.weights import open_model
from gennode.engine.llama.fastest import TRIAL_ROWS, Trial, choose, fastest, try_out
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.llama.precision import arithmetic, available
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.seam import Precision
from gennode.errors import DeviceError
from gennode.wire.manifest import ModelShape

CPU = torch.device("cpu")
SMALL = ModelShape("LlamaForCausalLM", 8, 512, 8, 8, 64, 1408, 300, 128)
LARGE = ModelShape("LlamaForCausalLM", 80, 8192, 64, 8, 128, 28672, 300, 128)


def trials(**seconds: tuple[float, float]) -> list[Trial]:
    """Seconds with 1 and 8 rows, of each precision."""
    names: dict[str, Precision] = {"fp32": "fp32", "bf16": "bf16", "int8": "int8"}
    return [
        Trial(names[name], rows, parameter_s)
        for name, both in seconds.items()
        for rows, parameter_s in zip(TRIAL_ROWS, both, strict=True)
    ]


def test_the_quickest_is_chosen_if_it_is_worth_its_rounding() -> None:
    assert choose(trials(fp32=(4, 8), bf16=(2, 4), int8=(1, 2))) == "int8"
    assert choose(trials(fp32=(4, 8), bf16=(1, 2), int8=(2, 4))) == "bf16"
    assert choose(trials(fp32=(4, 8), bf16=(16, 64), int8=(3.9, 7.9))) == "fp32"
    assert choose(trials(fp32=(4, 8), int8=(3.9, 1000))) == "fp32"
    assert choose(trials(fp32=(4, 8))) == "fp32"


def test_small_layers_stay_in_fp32() -> None:
    assert fastest(SMALL, CPU) == "fp32"


def test_every_precision_is_tried_on_a_part_of_large_layers() -> None:
    ticks = iter(range(10**6))
    found = try_out(LARGE, CPU, lambda: float(next(ticks)))
    assert [(trial.precision, trial.rows) for trial in found] == [
        (precision, rows) for precision in available(CPU) for rows in TRIAL_ROWS
    ]
    assert all(0 < trial.parameter_s < 1e-6 for trial in found)


def test_auto_is_a_precision_that_is_here(
    llamas: dict[str, tuple[Path, LlamaForCausalLM]],
) -> None:
    shard = LlamaShard(open_model(llamas["plain"][0]), precision="auto")
    assert shard.precision == "fp32"


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_what_a_cpu_computes_slowly_or_not_at_all_is_refused(precision: Precision) -> None:
    with pytest.raises(DeviceError) as caught:
        arithmetic(precision, CPU)
    assert caught.value.hint


def test_an_owners_head_may_be_in_8_bits(
    llamas: dict[str, tuple[Path, LlamaForCausalLM]],
) -> None:
    folder = open_model(llamas["plain"][0])
    state = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    exact, coarse = (LlamaOwner(folder, precision=each).logits(state) for each in ("fp32", "int8"))
    error = np.linalg.norm(coarse - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.03
