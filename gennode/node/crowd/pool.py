"""What a made-up pool is drawn from: machines with published figures, regions, models.

Memory, arithmetic and bandwidth of the machines are their makers' figures: NVIDIA's
architecture whitepapers (Turing, Ampere GA102, Ada, RTX Blackwell) and datasheets (T4, V100,
A10, A6000, A100, L4, L40S, H100), AMD's and Intel's product pages. Tensor rates are dense, 16
bits with 32-bit sums. A CPU's rate is cores × clock × 32 (two 256-bit multiply-adds), its
bandwidth channels × 8 bytes × transfers. What share of a datasheet a machine reaches, how often
each kind occurs, and lines and places of peers are ours.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from gennode.wire.announcement import Machine
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import PeerId, peer_id_of
from gennode.wire.manifest import ModelShape

GIB = 1 << 30
REACHED_FLOPS = 0.6  # of the datasheet, by large matrix products
REACHED_BANDWIDTH = 0.8
GIVEN_MEMORY = 0.9  # what a peer gives of its memory, if it is a GPU's
GPU_PASS_S = 0.002  # starting the kernels of a pass
CPU_PASS_S = 0.003
SESSIONS = 32  # whose caches a peer sets memory aside for, before it counts layers
DISK_BYTES_PER_S = 1.5e9  # an NVMe drive through the loader


@dataclass(frozen=True)
class Kind:
    """A type of machine. `share`: how many in a hundred are of it."""

    name: str
    memory_gib: int
    flops_per_s: float
    memory_bytes_per_s: float
    share: int
    pass_s: float = GPU_PASS_S
    datacentre: bool = False


KINDS = (
    Kind("RTX 4060", 8, 30e12, 272e9, 10),
    Kind("RTX 3060", 12, 25e12, 360e9, 12),
    Kind("RTX 4070", 12, 58e12, 504e9, 8),
    Kind("T4", 16, 65e12, 320e9, 6, datacentre=True),
    Kind("RTX 4080", 16, 97e12, 717e9, 7),
    Kind("RTX 3090", 24, 71e12, 936e9, 14),
    Kind("RTX 4090", 24, 165e12, 1008e9, 12),
    Kind("A10", 24, 125e12, 600e9, 4, datacentre=True),
    Kind("L4", 24, 121e12, 300e9, 4, datacentre=True),
    Kind("RTX 5090", 32, 209e12, 1792e9, 5),
    Kind("V100", 32, 125e12, 900e9, 2, datacentre=True),
    Kind("RTX A6000", 48, 155e12, 768e9, 3),
    Kind("L40S", 48, 362e12, 864e9, 3, datacentre=True),
    Kind("A100", 80, 312e12, 2039e9, 2, datacentre=True),
    Kind("H100", 80, 989e12, 3350e9, 2, datacentre=True),
    Kind("Ryzen 7950X", 24, 2.3e12, 83e9, 4, CPU_PASS_S),
    Kind("EPYC 9354", 64, 3.3e12, 461e9, 2, CPU_PASS_S, datacentre=True),
)

# Bytes per second up and down of lines at home: cable, fibre of 100 Mbit/s to 1 Gbit/s.
HOME_LINES = ((5e6, 50e6), (12.5e6, 62.5e6), (40e6, 125e6), (125e6, 125e6))
DATACENTRE_LINE = (1.25e9, 1.25e9)

# Round trips between the regions, as points in a plane, seconds. Real ones are no plane; these
# are of the right size: 70 ms across North America, 85 ms over the Atlantic.
REGIONS = (
    ("us-east", 0.0, 0.0),
    ("europe", 0.085, 0.02),
    ("us-west", -0.065, 0.02),
    ("asia", -0.15, 0.09),
    ("south-america", 0.03, -0.115),
)
MAX_REGIONS = len(REGIONS)
_SCATTER_S = 0.004  # within a region
_HOME_HEIGHT_S = (0.002, 0.008)
_DATACENTRE_HEIGHT_S = (0.0002, 0.001)

MODELS = {
    "8b": ModelShape("llama", 32, 4096, 32, 8, 128, 14336, 128256, 131072),
    "70b": ModelShape("llama", 80, 8192, 64, 8, 128, 28672, 128256, 131072),
    "120b-moe": ModelShape(
        "gpt_oss", 36, 2880, 64, 8, 64, 2880, 201088, 131072,
        experts=128, experts_used=4, expert_dim=2880,
    ),
}  # fmt: skip
"""Published shapes: the config.json of Llama 3 8B and 70B, and of gpt-oss-120b."""
WEIGHT_BYTES = 1.0625  # 8 bits, and a 16-bit scale per 32
NUMBER_BYTES = 2  # of the cache


@dataclass(frozen=True)
class Specimen:
    """One peer of the pool: a machine, a line, a place."""

    peer: PeerId
    kind: Kind
    region: str
    machine: Machine
    download_bytes_per_s: float


def draw_peer(rng: random.Random, number: int, regions: int) -> Specimen:
    """The `number`-th peer of a swarm in the first `regions` regions."""
    kind = rng.choices(KINDS, [one.share for one in KINDS])[0]
    region = rng.randrange(regions)
    up, down = DATACENTRE_LINE if kind.datacentre else rng.choice(HOME_LINES)
    heights_s = _DATACENTRE_HEIGHT_S if kind.datacentre else _HOME_HEIGHT_S
    given = GIVEN_MEMORY if kind.pass_s == GPU_PASS_S else 0.5
    machine = Machine(
        memory_bytes=int(kind.memory_gib * GIB * given),
        flops_per_s=kind.flops_per_s * REACHED_FLOPS,
        memory_bytes_per_s=kind.memory_bytes_per_s * REACHED_BANDWIDTH,
        pass_s=kind.pass_s,
        upload_bytes_per_s=up,
        coordinate=draw_place(rng, region, heights_s),
    )
    return Specimen(_name("worker", number, rng), kind, REGIONS[region][0], machine, down)


def draw_place(
    rng: random.Random, region: int, heights_s: tuple[float, float] = _HOME_HEIGHT_S
) -> Coordinate:
    """A point in a region."""
    _, x_s, y_s = REGIONS[region]
    return Coordinate(
        x_s + rng.uniform(-_SCATTER_S, _SCATTER_S),
        y_s + rng.uniform(-_SCATTER_S, _SCATTER_S),
        rng.uniform(*heights_s),
        0.1,
    )


def draw_owner(rng: random.Random, number: int, region: int) -> tuple[PeerId, Coordinate]:
    """Somebody who asks, in a region."""
    return _name("owner", number, rng), draw_place(rng, region)


def _name(role: str, number: int, rng: random.Random) -> PeerId:
    secret = f"{role}/{number}/{rng.getrandbits(64)}".encode()
    return peer_id_of(hashlib.sha256(secret).digest())
