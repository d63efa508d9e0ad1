"""What a device can do, measured for people: more than a plan needs, see `probe` for that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from gennode.engine.devices import (
    DeviceMemory,
    DeviceReport,
    accelerator,
    device_memory,
    pick_device,
    wait_for,
)
from gennode.engine.llama.linear import Linear, make_linear
from gennode.engine.probe import MEMORY_SHARE, Probe
from gennode.errors import ResourceError

ROWS = (1, 8, 32, 128)  # a token, those of some sequences at once, and a chunk of a prompt
LAYER_S = 0.1  # for each number of rows, ended with the first repeat past it
COPY_S, COPY_BYTES = 0.1, 64 * 1024**2

STAGES = 4


@dataclass(frozen=True)
class _Layer:
    """The sizes of a Llama's layer. `kv_dim`: of its keys, and of its values."""

    name: str
    dim: int
    kv_dim: int
    hidden_dim: int

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """[out, in] of each: queries, keys and values; output; gate and up; down."""
        dim, hidden = self.dim, self.hidden_dim
        return (dim + 2 * self.kv_dim, dim), (dim, dim), (2 * hidden, dim), (dim, hidden)

    @property
    def parameters(self) -> int:
        return sum(rows * columns for rows, columns in self.products)


# Of Llama 3.1 8B, TinyLlama 1.1B and SmolLM 135M, as their config.json files say.
LAYERS = (
    _Layer("8 B", 4096, 1024, 14336),
    _Layer("1.1 B", 2048, 256, 5632),
    _Layer("0.1 B", 576, 192, 1536),
)


def measure_device(
    device: str,
    *,
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> DeviceReport:
    """Figures of `device`, see `pick_device`, in two seconds or so on a CPU.

    `progress` is told (stages done, stages in all). Takes a quarter of the memory that is free
    at most. Raises DeviceError, ResourceError.
    """
    picked = pick_device(device)
    where = torch.device(picked)
    dtype = _dtype(where)
    probe, memory = Probe(where, dtype, clock), _memory(picked)
    limit_bytes = memory.free_bytes // MEMORY_SHARE

    def done(stages: int) -> None:
        if progress is not None:
            progress(stages, STAGES)

    try:
        with torch.inference_mode():
            done(0)
            flops_per_s = probe.flops_per_s()
            done(1)
            read_bytes_per_s = probe.memory_bytes_per_s(limit_bytes)
            done(2)
            layer = _fitting(flops_per_s, limit_bytes // dtype.itemsize)
            layer_times_s = _layer_times_s(probe, layer)
            done(3)
            to_device, from_device = _copies_bytes_per_s(probe)
            done(4)
    except (MemoryError, RuntimeError) as error:
        raise ResourceError(
            f"{device} can't be measured: {error}", hint="free some of its memory"
        ) from error
    return DeviceReport(
        device=picked,
        name=accelerator(picked),
        memory=memory,
        dtype=str(dtype).removeprefix("torch."),
        flops_per_s=flops_per_s,
        read_bytes_per_s=read_bytes_per_s,
        layer=layer.name,
        layer_bytes=layer.parameters * dtype.itemsize,
        layer_times_s=layer_times_s,
        to_device_bytes_per_s=to_device,
        from_device_bytes_per_s=from_device,
    )


def _dtype(device: torch.device) -> torch.dtype:
    """In which an accelerator is made to compute; float32 on CPUs, where it depends."""
    if device.type == "cpu":
        return torch.float32
    is_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if is_bf16 else torch.float16


def _memory(device: str) -> DeviceMemory:
    found = device_memory(device)
    if found is not None:
        return found
    shared = psutil.virtual_memory()
    return DeviceMemory(int(shared.total), int(shared.available))


def _fitting(flops_per_s: float, max_parameters: int) -> _Layer:
    """The largest layer that the most rows take no longer through than there is time for."""
    for layer in LAYERS[:-1]:
        expected_s = 2 * layer.parameters * ROWS[-1] / flops_per_s
        if layer.parameters <= max_parameters and expected_s <= LAYER_S:
            return layer
    return LAYERS[-1]


def _layer_times_s(probe: Probe, layer: _Layer) -> dict[int, float]:
    """Seconds that the products of a layer take, one after the other, by numbers of rows."""
    products = [_linear(probe, rows, columns) for rows, columns in layer.products]
    return {rows: _time_s(probe, products, rows) for rows in ROWS}


def _linear(probe: Probe, rows: int, columns: int) -> tuple[Linear, int]:
    weight = torch.full((rows, columns), 0.5 / columns, dtype=probe.dtype, device=probe.device)
    return make_linear(weight, None), columns


def _time_s(probe: Probe, products: list[tuple[Linear, int]], rows: int) -> float:
    end_s = probe.clock() + LAYER_S
    states = {width: torch.full((rows, width), 0.5, device=probe.device) for _, width in products}

    def run() -> None:
        for product, width in products:
            product(states[width])

    run()
    wait_for(probe.device)
    return probe.median_s(run, end_s)


def _copies_bytes_per_s(probe: Probe) -> tuple[float | None, float | None]:
    """To the device and back, as weights and states go: from memory that nobody pinned."""
    if probe.device.type == "cpu":
        return None, None
    here = torch.from_numpy(np.ones(COPY_BYTES, np.uint8))
    there = here.to(probe.device)
    to_s = probe.median_s(lambda: _drop(here.to(probe.device)), probe.clock() + COPY_S)
    from_s = probe.median_s(lambda: _drop(there.cpu()), probe.clock() + COPY_S)
    return COPY_BYTES / to_s, COPY_BYTES / from_s


def _drop(_copy: torch.Tensor) -> None:
    """Nobody wants what was copied."""
