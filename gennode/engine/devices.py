"""What can compute here: the CPU, or an accelerator that torch can use.

torch takes seconds to import, so it is imported only where an accelerator is asked for: a node
whose layers run in a child process has no other use for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from gennode.errors import DeviceError

if TYPE_CHECKING:
    import torch

_MAX_NAME, _MAX_ROW_COUNTS = 200, 16  # of a report: a line or two on a terminal

_NAME = re.compile(r"(cpu|cuda|mps)(?::(\d{1,2}))?", re.ASCII)


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device's memory: all of it, and what nobody uses now."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class DeviceReport:
    """What a device was measured to do; see `gennode.engine.report.measure_device`.

    `device`: as torch names it; `name`: as its maker does; `memory`: its own, or the machine's
    where it has none; `dtype`: of the weights that were multiplied. `layer`: whose products were
    timed, such as `1.1 B` for a layer of a Llama of 1.1 billion parameters; `layer_bytes`: their
    weights; `layer_times_s`: by numbers of rows. Copies are between the machine's memory and the
    device's; None where they are the same.
    """

    device: str
    name: str
    memory: DeviceMemory
    dtype: str
    flops_per_s: float
    read_bytes_per_s: float
    layer: str
    layer_bytes: int
    layer_times_s: dict[int, float]
    to_device_bytes_per_s: float | None
    from_device_bytes_per_s: float | None

    def is_sound(self) -> bool:
        """Whether these are figures of some device, and words for a terminal."""
        copies = (self.to_device_bytes_per_s, self.from_device_bytes_per_s)
        figures = [self.flops_per_s, self.read_bytes_per_s, *self.layer_times_s.values()]
        figures += [copy for copy in copies if copy is not None]
        words = (self.device, self.name, self.dtype, self.layer)
        return (
            0 < len(self.layer_times_s) <= _MAX_ROW_COUNTS
            and all(0 < figure < inf for figure in figures)
            and all(len(each) <= _MAX_NAME and each.isprintable() for each in words)
        )


def check_device(device: str) -> None:
    """DeviceError unless layers can be computed on `device` here; see `pick_device`."""
    pick_device(device)


def pick_device(wanted: str) -> str:
    """The device that a person means, as torch names it.

    `cpu`; `gpu`, whichever accelerator torch can use; or one of them by name: `cuda` (also
    AMD's, through ROCm), `cuda:1` for the second of several, `mps` (Apple's). DeviceError,
    with the next step, if it is not here.
    """
    if wanted == "cpu":
        return "cpu"
    if wanted == "gpu":
        return _any_accelerator()
    match = _NAME.fullmatch(wanted)
    if match is None or match[1] == "cpu":
        raise DeviceError(f"device {wanted[:64]!r} is not supported",
                          hint="use cpu, gpu, cuda, cuda:1 or mps")  # fmt: skip
    index = int(match[2] or 0)
    if match[1] == "mps":
        return _mps(index)
    return _cuda(index)


def accelerator(device: str) -> str:
    """What a person calls a device of `pick_device`: its maker's name for it, or CPU."""
    if device == "cpu":
        return "CPU"
    import torch

    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return "Apple GPU"


def device_memory(device: str) -> DeviceMemory | None:
    """Of an accelerator, memory of its own; None where it shares the machine's."""
    if not device.startswith("cuda"):
        return None
    import torch

    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return DeviceMemory(total_bytes, free_bytes)


def wait_for(device: torch.device) -> None:
    """Return when everything that was asked of the device is done."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _any_accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda:0"
    if torch.backends.mps.is_available():
        return "mps"
    raise DeviceError("there is no GPU that torch can use", hint=_next_step())


def _cuda(index: int) -> str:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise DeviceError("there is no CUDA device that torch can use", hint=_next_step())
    if index >= count:
        names = "cuda:0" if count == 1 else f"one of cuda:0 to cuda:{count - 1}"
        raise DeviceError(f"there is no cuda:{index} here", hint=f"use {names}")
    return f"cuda:{index}"


def _mps(index: int) -> str:
    import torch

    if index or not torch.backends.mps.is_available():
        raise DeviceError(f"there is no Apple GPU {index} that torch can use", hint=_next_step())
    return "mps"


def _next_step() -> str:
    """What to do where torch finds no accelerator: is torch without one, or the machine?"""
    import torch

    if torch.version.cuda or torch.version.hip:
        return "use the device cpu, or install the driver of this machine's GPU"
    return "use the device cpu, or install a torch for this machine's GPU (pytorch.org)"
