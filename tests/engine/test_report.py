"""A device's figures are those of some device, and are had within bounds."""

from __future__ import annotations

import pytest
import torch

from gennode.engine import report
from gennode.errors import DeviceError
from tests.engine.test_probe import SlowClock


def test_figures_are_those_of_some_device() -> None:
    told: list[tuple[int, int]] = []
    found = report.measure_device("cpu", progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert found.is_sound()
    assert (found.device, found.name, found.dtype) == ("cpu", "CPU", "float32")
    assert 1e7 < found.flops_per_s < 1e15
    assert 1e7 < found.read_bytes_per_s < 1e13
    assert tuple(found.layer_times_s) == report.ROWS
    assert 0 < found.memory.free_bytes <= found.memory.total_bytes
    assert found.to_device_bytes_per_s is found.from_device_bytes_per_s is None


@pytest.mark.parametrize("tick_s", [0.02, 10.0])
def test_a_slow_device_is_asked_for_a_small_layer_and_few_repeats(tick_s: float) -> None:
    clock = SlowClock(tick_s)
    found = report.measure_device("cpu", clock=clock)
    # Three repeats of each are made in any case, and each takes two looks or three.
    assert next(clock.ticks) * tick_s < 2.0 + 80 * tick_s
    assert found.layer == "0.1 B"
    assert found.layer_times_s == pytest.approx(dict.fromkeys(report.ROWS, tick_s))


def test_a_quick_device_is_asked_for_a_large_layer_if_there_is_memory() -> None:
    eight, one, small = report.LAYERS
    assert report._fitting(1e13, 1 << 30) is eight
    assert report._fitting(1e13, eight.parameters - 1) is one
    assert report._fitting(2e11, 1 << 30) is one
    assert report._fitting(1e10, 1 << 30) is small
    assert report._fitting(1e13, 0) is small


def test_layers_are_as_large_as_those_they_are_named_for() -> None:
    """Llama 3.1 8B has 218,103,808 parameters in a layer's matrices, TinyLlama 44,040,192."""
    assert [layer.parameters for layer in report.LAYERS[:2]] == [218_103_808, 44_040_192]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="THERE IS NO CUDA DEVICE HERE")
def test_an_accelerator_tells_of_its_copies_and_memory() -> None:
    found = report.measure_device("gpu")
    assert found.is_sound()
    assert found.dtype in ("bfloat16", "float16")
    assert found.memory.total_bytes == torch.cuda.mem_get_info(0)[1]
    for rate in (found.to_device_bytes_per_s, found.from_device_bytes_per_s):
        assert rate is not None
        assert 1e7 < rate < 1e13


def test_a_missing_device_is_a_device_error() -> None:
    with pytest.raises(DeviceError):
        report.measure_device("abacus")
