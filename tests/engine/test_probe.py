"""A machine is measured within bounds, and what comes out makes sense."""

from __future__ import annotations

import itertools

import msgspec
import pytest
import torch

from gennode.engine import probe
from gennode.errors import DeviceError
from gennode.wire.announcement import Machine

GIB = 1024**3


class SlowClock:
    """Each look at it takes so long, as if everything else did."""

    def __init__(self, tick_s: float) -> None:
        self.ticks = itertools.count()
        self.tick_s = tick_s

    def __call__(self) -> float:
        return next(self.ticks) * self.tick_s


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_figures_are_those_of_some_machine(dtype: torch.dtype) -> None:
    told: list[tuple[int, int]] = []
    machine = probe.measure_machine(
        "cpu",
        memory_bytes=GIB,
        dtype=dtype,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert machine.memory_bytes == GIB
    assert 1e7 < machine.flops_per_s < 1e15
    assert 1e7 < machine.memory_bytes_per_s < 1e13
    assert 1e-7 < machine.pass_s < 1
    assert machine.upload_bytes_per_s == 0
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(machine), type=Machine) == machine


@pytest.mark.parametrize("tick_s", [0.02, 0.1, 10.0])
def test_a_slow_machine_is_measured_with_few_and_small_products(tick_s: float) -> None:
    clock = SlowClock(tick_s)
    machine = probe.measure_machine("cpu", memory_bytes=GIB, clock=clock)
    # Ends are looked for after every repeat, which takes two or three looks; three repeats of
    # each are made in any case.
    looks = next(clock.ticks)
    assert looks * tick_s < 1.5 + 40 * tick_s
    # One tick a product: the first takes long enough already.
    assert machine.flops_per_s == pytest.approx(2 * probe.MIN_PRODUCT_DIM**3 / tick_s)
    assert machine.pass_s == pytest.approx(tick_s)


def test_little_memory_is_not_exceeded() -> None:
    """16 MiB of 64: one matrix of 2048 rows; with less than that, the smallest there is."""
    for memory_bytes, read_bytes in ((64 * 1024**2, 16 * 1024**2), (0, 4 * 1024**2)):
        clock = SlowClock(0.01)
        machine = probe.measure_machine("cpu", memory_bytes=memory_bytes, clock=clock)
        assert machine.memory_bytes_per_s == pytest.approx(read_bytes / 0.01)


def test_a_missing_device_is_a_device_error() -> None:
    with pytest.raises(DeviceError):
        probe.measure_machine("abacus", memory_bytes=GIB)
