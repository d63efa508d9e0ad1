"""Pools of strangers' machines by lot, for the benches of placement: a seed gives a pool.

Machines are GPUs of 8 to 80 GB as their makers describe them, and consumer CPUs. Nine tenths of
the memory can be used, half of the peak arithmetic and four fifths of the bandwidth. They sit in
three regions, 80 to 200 ms apart, 2 to 30 ms within, and send with 10 Mbit/s to 1 Gbit/s.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from gennode.sharding.capacity import demand_of, layer_cost
from gennode.wire.announcement import Machine
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import ModelId, PeerId
from gennode.wire.manifest import ModelShape
from gennode.wire.snapshot import Candidate, Demand, Snapshot

# GB of memory, 10^12 operations per second (fp16, sums in fp32, dense), GB/s of memory.
GPUS = {
    "RTX 3070": (8, 40.6, 448),
    "RTX 3060": (12, 25.5, 360),
    "RTX 4060 Ti": (16, 44.0, 288),
    "RTX 4080": (16, 97.5, 717),
    "RTX 3090": (24, 71.0, 936),
    "RTX 4090": (24, 165.0, 1008),
    "A10": (24, 125.0, 600),
    "L4": (24, 121.0, 300),
    "V100": (32, 125.0, 900),
    "A100 40": (40, 312.0, 1555),
    "RTX A6000": (48, 155.0, 768),
    "L40S": (48, 362.0, 864),
    "A100 80": (80, 312.0, 2039),
    "H100": (80, 989.0, 3350),
}
# Who comes to a pool, and how often. Eight small cards hold no large model.
KINDS = {
    "small": (("RTX 3070", "RTX 3070", "RTX 3060"), 0.15),
    "home": (("CPU", "CPU", "RTX 3070", "RTX 3060", "RTX 4090"), 0.15),
    "mixed": ((*GPUS, "CPU", "CPU", "CPU"), 0.5),
    "halls": (tuple(list(GPUS)[4:]), 0.2),
}
USABLE_MEMORY, USABLE_COMPUTE, USABLE_BANDWIDTH = 0.9, 0.5, 0.8
MAX_SESSIONS = 256


@dataclass(frozen=True)
class Model:
    """A shape, and how its weights are kept."""

    name: str
    shape: ModelShape
    weight_bytes: float

    def demand(self, step_limit_s: float = 0.2) -> Demand:
        """What it asks of a pool; caches in fp16."""
        return demand_of(
            self.shape,
            weight_bytes=self.weight_bytes,
            number_bytes=2,
            step_limit_s=step_limit_s,
        )

    @property
    def embedding_bytes(self) -> int:
        """The embedding's weights; a head of its own takes as many. Both stay in 16 bits."""
        return 2 * self.shape.vocab * self.shape.dim


MODELS = (
    Model("8B", ModelShape("llama", 32, 4096, 32, 8, 128, 14336, 128256, 8192), 2.0),
    Model("70B", ModelShape("llama", 80, 8192, 64, 8, 128, 28672, 128256, 8192), 1.0),
    Model(
        "120B MoE",
        ModelShape(
            "gpt_oss",
            36,
            2880,
            64,
            8,
            64,
            2880,
            201088,
            8192,
            experts=128,
            experts_used=4,
            expert_dim=2880,
        ),
        0.53125,  # four bits and a shared exponent of eight for every 32
    ),
)


@dataclass(frozen=True)
class Pool:
    """One pool and one model. `machines` are those of `candidates`, in the same order."""

    seed: int
    model: Model
    demand: Demand
    candidates: tuple[Candidate, ...]
    machines: tuple[Machine, ...]

    def snapshot(self, step_limit_s: float) -> Snapshot:
        """What a plan for this limit is made from."""
        demand = self.model.demand(step_limit_s)
        return Snapshot(ModelId("0" * 64), 1, demand, self.candidates)

    @property
    def layers_fit(self) -> bool:
        """Whether all machines together can hold the model once."""
        room = sum(candidate.capacity_layers for candidate in self.candidates)
        return room >= self.demand.layers


def pool_of(seed: int, size: int, model: Model) -> Pool:
    """The pool of a seed: the same machines for each model."""
    rng = random.Random(f"{seed} {size}")
    names, weights = list(KINDS), [weight for _, weight in KINDS.values()]
    kinds = KINDS[rng.choices(names, weights)[0]][0]
    regions = _regions(rng)
    machines = tuple(_machine(rng, rng.choice(kinds), rng.choice(regions)) for _ in range(size))
    demand = model.demand()
    candidates = tuple(
        _candidate(f"peer{number:05}", machine, model, demand)
        for number, machine in enumerate(machines)
    )
    return Pool(seed, model, demand, candidates, machines)


def _regions(rng: random.Random) -> tuple[tuple[float, float], ...]:
    """Three points, each two 80 to 180 ms apart: their machines are 80 to 200."""
    while True:
        points = tuple((rng.uniform(0, 0.2), rng.uniform(0, 0.2)) for _ in range(3))
        apart = [math.dist(points[one], points[one - 1]) for one in range(3)]
        if min(apart) >= 0.085 and max(apart) <= 0.175:
            return points


def _machine(rng: random.Random, kind: str, region: tuple[float, float]) -> Machine:
    if kind == "CPU":
        gigabytes = float(rng.choice((16, 32, 64)))
        teraflops, bandwidth = rng.uniform(0.3, 1.5), rng.uniform(40, 90)
    else:
        gigabytes, teraflops, bandwidth = GPUS[kind]
    angle, radius = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.008)
    return Machine(
        memory_bytes=int(gigabytes * USABLE_MEMORY * 1e9),
        flops_per_s=teraflops * USABLE_COMPUTE * 1e12,
        memory_bytes_per_s=bandwidth * USABLE_BANDWIDTH * 1e9,
        pass_s=rng.uniform(0.5e-3, 2e-3),
        upload_bytes_per_s=10 ** rng.uniform(7, 9) / 8,
        coordinate=Coordinate(
            region[0] + radius * math.cos(angle),
            region[1] + radius * math.sin(angle),
            rng.uniform(0.001, 0.007),
            0.1,
        ),
    )


def _candidate(peer: str, machine: Machine, model: Model, demand: Demand) -> Candidate:
    cost = layer_cost(model.shape, machine, weight_bytes=model.weight_bytes, number_bytes=2)
    return Candidate(
        peer=PeerId(peer),
        capacity_layers=min(
            demand.layers, machine.memory_bytes // (demand.layer_bytes + demand.session_bytes)
        ),
        memory_bytes=machine.memory_bytes,
        max_sessions=MAX_SESSIONS,
        cost=cost,
        pass_s=machine.pass_s,
        upload_bytes_per_s=machine.upload_bytes_per_s,
        coordinate=machine.coordinate,
    )
