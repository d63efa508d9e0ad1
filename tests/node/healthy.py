"""A machine and a network on which nothing is wrong, for tests to break one thing at a time."""

from __future__ import annotations

import sys
from dataclasses import replace

from gennode.engine.child.jail import Jail
from gennode.engine.devices import DeviceMemory, DeviceReport
from gennode.mesh.p2pd.relay_check import RelayCheck
from gennode.mesh.reach.reach import Dialled, Sighting
from gennode.node.doctor.diagnosis import KNOWN_BINARIES
from gennode.node.doctor.facts import (
    Binary,
    Bootstrap,
    Compute,
    Disk,
    Facts,
    Memory,
    Model,
    Network,
    OpenFiles,
    Package,
    RelayTrial,
    State,
    Temporary,
    Wanted,
)
from gennode.wire.signing import Key

OUTSIDE = "192.0.2.7"  # an address that no machine has: RFC 5737
HERE = "198.51.100.3"
PORT = 4001
RELAY = f"/ip4/192.0.2.9/tcp/4001/p2p/{Key(bytes(32)).peer}"
GIB = 1024**3


def sighting(
    number: int,
    *,
    port: int = PORT,
    dialled: Dialled = Dialled.REACHED,
    skew_s: float = 0.2,
    host: str = HERE,
) -> Sighting:
    """What the observer of this number sees."""
    return Sighting((f"192.0.2.{number}", PORT), (host, port), dialled, 0.03, skew_s)


def sightings(
    count: int, *, dialled: Dialled = Dialled.REACHED, host: str = HERE
) -> tuple[Sighting, ...]:
    """As many observers that agree on what they see."""
    return tuple(sighting(number, dialled=dialled, host=host) for number in range(1, count + 1))


WORKING_RELAY = RelayTrial(RELAY, RelayCheck(slot_s=0.7, round_trip_s=0.04, carry_s=0.2))

NETWORK = Network(0.3, ("127.0.0.1", HERE), PORT, (Bootstrap(RELAY, 0.012),), sightings(2), ())
"""Others dial us directly."""

CONE = sightings(4, dialled=Dialled.NOT_REACHED, host=OUTSIDE)
BEHIND_NAT = replace(NETWORK, sightings=CONE, relays=(WORKING_RELAY,))
"""A cone NAT, four observers and a relay."""

STATE = State("/state", 0o700, True, Key(bytes(32)).peer, None)

REPORT = DeviceReport(
    device="cpu",
    name="CPU",
    memory=DeviceMemory(16 * GIB, 12 * GIB),
    dtype="float32",
    flops_per_s=2.02e11,
    read_bytes_per_s=3.79e10,
    layer="1.1 B",
    layer_bytes=168 * 1024**2,
    layer_times_s={1: 0.005, 8: 0.0099, 32: 0.019, 128: 0.0563},
    to_device_bytes_per_s=None,
    from_device_bytes_per_s=None,
)
COMPUTE = Compute(Jail(4, True, "landlock abi 4, seccomp"), REPORT)

FACTS = Facts(
    wanted=Wanted("/state", "gennode-large", HERE, PORT, (RELAY,)),
    python=Package("python", "3.12.1", ">=3.11"),
    packages=(Package("torch", "2.13.0+cpu", ">=2.10"), Package("rich", "15.0.0", ">=14")),
    binary=Binary("/p2pd", min(KNOWN_BINARIES)),
    temporary=Temporary("/short", 20, 90),
    open_files=OpenFiles(4096, sys.maxsize),
    state=STATE,
    state_disk=Disk("/state", 9 * GIB),
    cache_disk=Disk("/cache", 9 * GIB),
    memory=Memory(16 * GIB, 12 * GIB, 6 * GIB),
    model=Model("/model", 22, GIB // 4, 22, True),
    gpu=None,
    jail="landlock abi 4",
    compute=COMPUTE,
    listening=None,
    network=NETWORK,
)
