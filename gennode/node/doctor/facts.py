"""What `gennode doctor` measures, as values: no judgement, and a failure is a fact too."""

from __future__ import annotations

from dataclasses import dataclass

from gennode.engine.child.jail import Jail
from gennode.engine.devices import DeviceReport
from gennode.errors import GennodeError
from gennode.mesh.p2pd.relay_check import RelayCheck
from gennode.mesh.reach.reach import Sighting, endpoint
from gennode.wire.ids import PeerId


@dataclass(frozen=True)
class Failure:
    """Why something could not be measured or does not work, in the words of the error met."""

    words: str
    fix: str
    exit_code: int

    @classmethod
    def of(cls, error: GennodeError) -> Failure:
        """An error as a value."""
        return cls(str(error), error.hint, error.exit_code)


@dataclass(frozen=True)
class Wanted:
    """What the node is meant to do, as `gennode join` would be told. `port` 0: any free one."""

    state: str
    model: str
    host: str
    port: int
    bootstrap: tuple[str, ...] = ()
    memory_bytes: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Package:
    """What is installed of a package (None: nothing) and which versions are wanted (PEP 440)."""

    name: str
    installed: str | None
    wanted: str


@dataclass(frozen=True)
class Binary:
    """The libp2p daemon's program."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Temporary:
    """The folder for temporary files, and how long the path of a daemon's folder there is."""

    path: str
    socket_path_bytes: int
    max_socket_path_bytes: int


@dataclass(frozen=True)
class OpenFiles:
    """Limits on open files: the one in force, and the one up to which a process may raise it.

    `sys.maxsize`: no limit.
    """

    soft: int
    hard: int


@dataclass(frozen=True)
class Disk:
    """Free bytes where `path` lies or would lie."""

    path: str
    free_bytes: int


@dataclass(frozen=True)
class OwnNode:
    """The node that runs from the state folder, and how many workers it knows.

    `rival`: addresses of another node with its key, None if it knows of none.
    """

    peer: PeerId
    addresses: tuple[str, ...]
    workers: int
    rival: tuple[str, ...] | None = None

    @property
    def endpoints(self) -> tuple[tuple[str, int], ...]:
        """IP addresses and ports at which it listens."""
        return tuple(where for text in self.addresses if (where := endpoint(text)))


@dataclass(frozen=True)
class State:
    """The state folder. `mode`: its permissions, None if it does not exist yet.

    `key`: whose it is, None if there is none yet; `node`: who runs from it, None if nobody does.
    """

    path: str
    mode: int | None
    is_writable: bool
    key: PeerId | Failure | None
    node: OwnNode | Failure | None


@dataclass(frozen=True)
class Memory:
    """Bytes of the machine, those free, and those that the node may take."""

    total_bytes: int
    available_bytes: int
    allowed_bytes: int


@dataclass(frozen=True)
class Model:
    """A model folder that opens. `layer_bytes`: one layer with its caches.

    `fitting_layers`: how many the allowed memory holds; `is_hashed`: whether there was time to
    read all of it.
    """

    path: str
    layers: int
    layer_bytes: int
    fitting_layers: int
    is_hashed: bool


@dataclass(frozen=True)
class Compute:
    """The process that computes: what holds it, and what its device was measured to do."""

    jail: Jail
    report: DeviceReport


@dataclass(frozen=True)
class Bootstrap:
    """A first peer: how long it took to reach it over an authenticated connection, or why not."""

    address: str
    reached_s: float | Failure


@dataclass(frozen=True)
class RelayTrial:
    """The address of a peer that was tried as a relay, and what it did or why it did nothing."""

    relay: str
    check: RelayCheck | Failure


@dataclass(frozen=True)
class Network:
    """What the mesh answered. `sightings`: one per observer; `dialled_port`: what they dialled.

    `own_hosts`: the IP addresses of this machine.
    """

    start_s: float
    own_hosts: tuple[str, ...]
    dialled_port: int
    bootstraps: tuple[Bootstrap, ...]
    sightings: tuple[Sighting, ...]
    relays: tuple[RelayTrial, ...]


@dataclass(frozen=True)
class Facts:
    """All that was measured. `listening`, `gpu`: None where it works."""

    wanted: Wanted
    python: Package | Failure
    packages: tuple[Package, ...] | Failure
    binary: Binary | Failure
    temporary: Temporary | Failure
    open_files: OpenFiles | Failure
    state: State | Failure
    state_disk: Disk | Failure
    cache_disk: Disk | Failure
    memory: Memory | Failure
    model: Model | Failure | None
    """None: its weights come from peers, who know how large it is."""
    gpu: Failure | None
    jail: str
    """What would hold the compute process here, in words."""
    compute: Compute | Failure | None
    """None: not looked at."""
    listening: Failure | None
    network: Network | Failure | None
    """None: not tried, for we can't listen."""
