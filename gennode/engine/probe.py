"""How fast this machine computes and reads weights, measured before it has any."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gennode.engine.devices import pick_device, wait_for
from gennode.engine.llama.linear import make_linear
from gennode.engine.llama.rotary import rotations
from gennode.errors import ResourceError
from gennode.wire.announcement import Machine
from gennode.wire.coordinates import Coordinate

# Each measurement ends with the first repeat past its part, so that all take 1.5 s at most.
COMPUTE_S, READ_S, PASS_S = 0.4, 0.5, 0.05
MIN_REPEATS, MAX_REPEATS = 3, 15

# A product is as large as one thread would take this long for, going by a small one. Where
# other programs keep threads waiting, as they do 40 ms at a time, that weighs little then.
PRODUCT_S = 0.1
MIN_PRODUCT_DIM, MAX_PRODUCT_DIM = 256, 8192

# Matrices as large as those of an 8 B model, read in turn: together more than processors keep
# at hand. Of what the machine gives, a part is taken; less than 1024 rows measure nothing.
MIN_MATRIX_DIM, MAX_MATRIX_DIM = 1024, 4096
MAX_READ_BYTES = 256 * 1024**2
MEMORY_SHARE = 4

# Accelerators keep 50 MB at hand, and read faster than small products can be begun.
MAX_ACCELERATOR_DIM = 8192
MAX_ACCELERATOR_BYTES = 1024**3

PASS_DIM = 4096  # of the states that a pass takes in and gives out
_HEAD_DIM = 128

STAGES = 3


def measure_machine(
    device: str,
    *,
    memory_bytes: int,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Machine:
    """What a plan needs to know of this machine, measured in 1.5 s at most.

    `memory_bytes` is what it gives for weights and caches; upload and coordinate are left for
    those who know them. `dtype`: of the products; by default what layers are computed in there,
    fp32 on CPUs and bf16 on accelerators. `progress` is told (stages done, stages in all). Takes
    some 350 MB for as long as it measures. Raises DeviceError, ResourceError.
    """
    picked = torch.device(pick_device(device))
    usual = torch.float32 if picked.type == "cpu" else torch.bfloat16
    probe = Probe(picked, dtype or usual, clock)

    def done(stages: int) -> None:
        if progress is not None:
            progress(stages, STAGES)

    try:
        with torch.inference_mode():
            done(0)
            flops_per_s = probe.flops_per_s()
            done(1)
            memory_bytes_per_s = probe.memory_bytes_per_s(memory_bytes // MEMORY_SHARE)
            done(2)
            pass_s = probe.pass_s()
            done(3)
    except (MemoryError, RuntimeError) as error:
        raise ResourceError(
            f"{device} can't be measured: {error}", hint="free some of its memory"
        ) from error
    return Machine(memory_bytes, flops_per_s, memory_bytes_per_s, pass_s, 0.0, Coordinate())


@dataclass(frozen=True)
class Probe:
    """Measurements of one device with weights of one dtype, to be made in inference mode."""

    device: torch.device
    dtype: torch.dtype
    clock: Callable[[], float]

    def flops_per_s(self) -> float:
        """Operations per second of a large square product, on all threads."""
        end_s = self.clock() + COMPUTE_S
        if self.device.type != "cpu":
            dim = self._large_dim()
            return 2 * dim * dim * dim / self.median_s(self._product(dim), end_s)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            small = self._product(MIN_PRODUCT_DIM)
            expected_s = min(self._time_s(small) for _ in range(MIN_REPEATS))
        finally:
            torch.set_num_threads(threads)
        dim = MIN_PRODUCT_DIM
        while dim < MAX_PRODUCT_DIM and 8 * expected_s <= PRODUCT_S:
            dim, expected_s = 2 * dim, 8 * expected_s
        return 2 * dim * dim * dim / self.median_s(self._product(dim), end_s)

    def _large_dim(self) -> int:
        """Of a product that keeps an accelerator busy: small ones only take a while to begin."""
        dim = MIN_PRODUCT_DIM
        while dim < MAX_PRODUCT_DIM and 8 * self._time_s(self._product(dim)) <= PRODUCT_S:
            dim *= 2
        return dim

    def memory_bytes_per_s(self, limit_bytes: int) -> float:
        """Bytes of weights per second that products with one row read."""
        end_s = self.clock() + READ_S
        is_cpu = self.device.type == "cpu"
        dim = MAX_MATRIX_DIM if is_cpu else MAX_ACCELERATOR_DIM
        max_bytes = MAX_READ_BYTES if is_cpu else MAX_ACCELERATOR_BYTES
        while dim > MIN_MATRIX_DIM and dim * dim * self.dtype.itemsize > limit_bytes:
            dim //= 2
        each_bytes = dim * dim * self.dtype.itemsize
        products = [make_linear(self._matrix(dim), None)]
        while (
            (len(products) + 1) * each_bytes <= min(limit_bytes, max_bytes)
            and self.clock() < end_s - READ_S / 2
        ):  # fmt: skip
            products.append(make_linear(self._matrix(dim), None))
        row = torch.full((1, dim), 0.5, dtype=self.dtype, device=self.device)

        def run() -> None:
            for product in products:
                product(row)

        run()
        return len(products) * each_bytes / self.median_s(run, end_s)

    def pass_s(self) -> float:
        """Seconds that a pass of one row takes beside its layers."""
        end_s = self.clock() + PASS_S
        states = np.zeros((1, PASS_DIM), np.float32)
        frequencies = torch.ones(_HEAD_DIM // 2, device=self.device)
        position = torch.tensor([64], device=self.device)

        def run() -> None:
            rows = torch.tensor(states, device=self.device)
            rotations(position, frequencies)
            rows.cpu().numpy()

        run()
        return self.median_s(run, end_s)

    def _product(self, dim: int) -> Callable[[], None]:
        """A square product that ran once already, for what is set up then does not count."""
        matrix = self._matrix(dim)
        product = make_linear(matrix, None)

        def run() -> None:
            product(matrix)

        run()
        return run

    def _matrix(self, dim: int) -> torch.Tensor:
        """Written, for pages that nobody wrote to are all the same one."""
        return torch.full((dim, dim), 0.5 / dim, dtype=self.dtype, device=self.device)

    def median_s(self, run: Callable[[], None], end_s: float) -> float:
        """Seconds that `run` takes, tried until `end_s` and a few times at least."""
        times_s: list[float] = []
        while len(times_s) < MIN_REPEATS or (len(times_s) < MAX_REPEATS and self.clock() < end_s):
            times_s.append(self._time_s(run))
        return max(statistics.median(times_s), 1e-9)  # clocks tick

    def _time_s(self, run: Callable[[], None]) -> float:
        start_s = self.clock()
        run()
        wait_for(self.device)
        return self.clock() - start_s
