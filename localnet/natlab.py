"""A small internet on this machine: homes behind routers of any kind, public hosts, slow links.

    homes = {"alice": Home(Nat.CONE, Link(delay_ms=10)), "bob": Home(Nat.SYMMETRIC)}
    with Lab(homes, public={"relay": Link(delay_ms=20)}) as lab:
        relay = lab.popen("relay", ["gennode", "relay", …])
        lab.run("alice", ["gennode", "join", lab.address("relay"), …])

Every host and router is a network namespace; localnet/delay.py carries the packets between them.
Nothing leaves the machine, so addresses may look public: every home and public host has a /16 of
11.0.0.0/8 of its own, because libp2p takes the networks reserved for examples for private, and
because nodes limit how many peers they take from one network. Processes see the machine's files,
so unix sockets work across the lab.

Needs Linux, root, iproute2 and iptables: `available()` says what is missing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from gennode.errors import NetworkError, UsageError
from localnet import namespaces
from localnet.namespaces import available
from localnet.nat import LAN, WAN, Nat, rules
from localnet.wires import Flow, Link

__all__ = ["Flow", "Home", "Host", "Lab", "Link", "Nat", "available"]

_ROOT = Path(__file__).resolve().parent.parent
_OURS = re.compile(r"natlab-((\d+)\.\d+)-.*")  # a process and its start, then what only it knows
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_FIRST_PUBLIC, _FIRST_HOME = 1, 101  # 11.1.0.0/16 …, 11.101.0.0/16 …
_MAX_PUBLIC, _MAX_HOMES, _MAX_HOSTS = 100, 150, 200  # what the numbering has room for
_FIRST_HOST = 10
_QUEUE = 10_000  # packets a device keeps for the program that carries them: bursts aren't losses
_STOP_S = 5.0  # the program that carries packets has nothing to do but end
_serials = count()


@dataclass(frozen=True)
class Home:
    """A router and what is behind it: a host named like the home, and its `mates`."""

    nat: Nat = Nat.CONE
    link: Link = Link()
    mates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Host:
    """Where a host is: its own `address`, and the one that the internet knows it by."""

    name: str
    port: str
    address: str
    public_address: str


class Lab:
    """Homes and public hosts while the `with` block runs; nothing is left of them after.

    `homes` and `public` give every name its link; all names differ. `seed` decides which packets
    are lost and how much they jitter. UsageError for names or numbers that can't be served,
    NetworkError if this machine can't have a lab. `family` is what the names of its namespaces
    begin with.
    """

    def __init__(
        self, homes: Mapping[str, Home], public: Mapping[str, Link] | None = None, *, seed: int = 0
    ) -> None:
        self.homes = dict(homes)
        self.public = dict(public or {})
        _check(self.homes, self.public)
        self.hosts = {host.name: host for host in _numbered(self.homes, list(self.public))}
        self._seed = seed
        self.family = f"{_family(os.getpid())}{next(_serials)}-"
        self._exits = ExitStack()
        self._internet: subprocess.Popen[str] | None = None
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        if reason := available():
            raise NetworkError(f"no NAT lab here: {reason}")
        self.sweep()
        with ExitStack() as exits:  # a failure on the way up takes down what was built
            exits.enter_context(_outlived_by_nothing(self._processes))
            self._internet = exits.enter_context(_internet())
            exits.callback(self._remove)
            self._build(self._internet)
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._internet = None
        self._exits.__exit__(kind, error, traceback)

    def address(self, name: str) -> str:
        """The IPv4 address that the internet knows `name` by: behind a NAT, its router's."""
        return self._host(name).public_address

    def home_address(self, name: str) -> str:
        """The IPv4 address that `name` itself has: behind a NAT, a private one."""
        return self._host(name).address

    def namespace(self, name: str) -> str:
        """The network namespace of a host, or of a home's router as `<home>.router`."""
        home = name.removesuffix(".router")
        if not (name != home and home in self.homes):
            self._host(name)
        return self.family + name

    def prefix(self, name: str) -> list[str]:
        """What to put before a command so that it runs on `name`; it keeps its process id."""
        return namespaces.within(self.namespace(name), [])

    def popen(self, name: str, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start `command` on `name`; `options` are those of Popen. It ends with the lab."""
        process = subprocess.Popen([*self.prefix(name), *command], **options)
        self._processes.append(process)
        return process

    def run(
        self, name: str, command: Sequence[str], *, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` on `name` to its end, and return its output as text.

        It has a minute unless `options`, which are those of subprocess.run, say otherwise.
        CalledProcessError if it fails and `check`.
        """
        options = {"capture_output": True, "text": True, "timeout": 60.0} | options
        return subprocess.run([*self.prefix(name), *command], check=check, **options)

    def set_link(self, name: str, link: Link) -> None:
        """From now on, attach a home or public host by `link`; a mate shares its home's."""
        self._ask(name=self._host(name).port, link=asdict(link))

    def partition(self, name: str) -> None:
        """Silently lose all that goes in or out at the home or public host `name`."""
        self._ask(name=self._host(name).port, cut=True)

    def heal(self, name: str) -> None:
        """Undo `partition`."""
        self._ask(name=self._host(name).port, cut=False)

    def unplug(self, name: str) -> None:
        """Pull the cable of one host: its system knows at once, and reaches nobody."""
        namespaces.batch(self.namespace(name), [f"link set {self._interface(name)} down"])

    def plug(self, name: str) -> None:
        """Undo `unplug`."""
        interface = self._interface(name)
        route = f"route replace default {self._gateway(name)}dev {interface}"
        namespaces.batch(self.namespace(name), [f"link set {interface} up", route])

    def flows(self) -> dict[tuple[str, str], Flow]:
        """What each home or public host sent to each other so far: who talks to whom directly."""
        return {(a, b): Flow(**flow) for a, b, flow in self._ask(flows=True)}

    @staticmethod
    def sweep() -> list[str]:
        """Remove what labs of dead processes left, and return the namespaces that these were."""
        left = []
        for name in namespaces.names("natlab-"):
            ours = _OURS.fullmatch(name)
            if ours and namespaces.owner(int(ours[2])) != ours[1]:
                left.append(name)
        namespaces.remove(left)
        return left

    def _host(self, name: str) -> Host:
        if name not in self.hosts:
            raise UsageError(f"the lab has no {name!r}", hint=f"it has {', '.join(self.hosts)}")
        return self.hosts[name]

    def _interface(self, name: str) -> str:
        return WAN if name in self.public else "eth0"

    def _gateway(self, name: str) -> str:
        return "" if name in self.public else f"via {_gateway(self.hosts[name].address)} "

    def _ask(self, **request: Any) -> Any:
        if self._internet is None:
            raise UsageError("the lab isn't up", hint="use it within its `with` block")
        return _asked(self._internet, request)

    def _build(self, internet: subprocess.Popen[str]) -> None:
        links = {name: home.link for name, home in self.homes.items()} | self.public
        wans = {host.port: _wan(host) for host in self.hosts.values()}
        config = {
            "links": {name: asdict(link) for name, link in links.items()},
            "networks": {_network(address): name for name, address in wans.items()},
            "seed": self._seed,
        }
        devices = _asked(internet, config)
        routers = [f"{name}.router" for name in self.homes]
        places = [self.namespace(name) for name in (*self.hosts, *routers)]
        namespaces.batch("", [f"netns add {place}" for place in places])
        for port, device in devices.items():
            place = self.namespace(port if port in self.public else f"{port}.router")
            namespaces.batch("", [f"link set {device} netns {place} name {WAN}"])
            up = [f"addr add {wans[port]}/32 dev {WAN}", f"link set {WAN} up txqueuelen {_QUEUE}"]
            namespaces.batch(place, ["link set lo up", *up, f"route add default dev {WAN}"])
        for name, home in self.homes.items():
            self._furnish(name, home)

    def _furnish(self, name: str, home: Home) -> None:
        """Connect a home's hosts to its router, and make that what it is."""
        hosts = [self.hosts[host] for host in (name, *home.mates)]
        router, gateway = self.namespace(f"{name}.router"), _gateway(hosts[0].address)
        lan = [f"link add {LAN} type bridge", f"addr add {gateway}/24 dev {LAN}"]
        for index, host in enumerate(hosts, 1):
            place = self.namespace(host.name)
            lan.append(f"link add lan{index} type veth peer name eth0 netns {place}")
            lan.append(f"link set lan{index} master {LAN} up")
        namespaces.batch(router, [*lan, f"link set {LAN} up"])
        for host in hosts:
            up = ["link set lo up", f"addr add {host.address}/24 dev eth0", "link set eth0 up"]
            up.append(f"route add default via {gateway}")
            namespaces.batch(self.namespace(host.name), up)
        restore = namespaces.within(router, ["iptables-restore"])
        namespaces.run(restore, rules(home.nat, hosts[0].address))
        forward = ["sysctl", "-qw", "net.ipv4.ip_forward=1"]
        namespaces.run(namespaces.within(router, forward))

    def _remove(self) -> None:
        namespaces.remove(namespaces.names(self.family))
        for process in self._processes:
            process.kill()  # had it not yet reached its namespace
            process.wait()


def _numbered(homes: Mapping[str, Home], public: Sequence[str]) -> Iterator[Host]:
    """Every host with its addresses."""
    for number, name in enumerate(public, _FIRST_PUBLIC):
        yield Host(name, name, f"11.{number}.0.1", f"11.{number}.0.1")
    for number, (name, home) in enumerate(homes.items(), _FIRST_HOME):
        open_ = home.nat is Nat.OPEN
        network = f"11.{number}.1" if open_ else f"192.168.{number}"
        for last, host in enumerate((name, *home.mates), _FIRST_HOST):
            address = f"{network}.{last}"
            yield Host(host, name, address, address if open_ else f"11.{number}.0.1")


def _check(homes: Mapping[str, Home], public: Mapping[str, Link]) -> None:
    named = [*public, *homes, *(mate for home in homes.values() for mate in home.mates)]
    for name in named:
        if not _NAME.fullmatch(name) or named.count(name) > 1:
            raise UsageError(f"{name!r} is taken or no name for a host")
    most = max((1 + len(home.mates) for home in homes.values()), default=0)
    if len(public) > _MAX_PUBLIC or len(homes) > _MAX_HOMES or most > _MAX_HOSTS:
        room = f"{_MAX_PUBLIC} public hosts, {_MAX_HOMES} homes and {_MAX_HOSTS} hosts in each"
        raise UsageError(f"a lab has room for {room}")


def _wan(host: Host) -> str:
    """The address of the interface towards the internet, of a public host or a router."""
    return f"11.{host.public_address.split('.')[1]}.0.1"


def _network(address: str) -> str:
    """The /16 of an address as the program that carries packets wants it, in hexadecimal."""
    return bytes(map(int, address.split(".")[:2])).hex()


def _gateway(address: str) -> str:
    """The router's address in the home of a host's."""
    return address.rpartition(".")[0] + ".1"


@contextmanager
def _internet() -> Iterator[subprocess.Popen[str]]:
    """The program that carries packets; it ends when its input closes, so even if we are killed."""
    command = [sys.executable, "-m", "localnet.delay"]
    pipe = subprocess.PIPE
    # A session of its own, since Ctrl-C is for the lab, which then stops this.
    with subprocess.Popen(
        command, cwd=_ROOT, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            if process.stdin:
                process.stdin.close()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _asked(internet: subprocess.Popen[str], request: Mapping[str, Any]) -> Any:
    """What the program that carries packets answers. NetworkError if it has died."""
    try:
        print(json.dumps(request), file=internet.stdin, flush=True)
        answer = internet.stdout.readline() if internet.stdout else ""
    except BrokenPipeError:
        answer = ""
    if not answer:
        raise NetworkError("the program that carries the lab's packets has died")
    return json.loads(answer)


@contextmanager
def _outlived_by_nothing(processes: Sequence[subprocess.Popen[Any]]) -> Iterator[None]:
    """Let SIGTERM take this process's labs down first, where nobody else has decided on it."""

    def leave(number: int, _: FrameType | None) -> None:
        # No exception: a test runner would take it for one test's failure, and run on.
        signal.signal(number, signal.SIG_DFL)
        namespaces.remove(namespaces.names(_family(os.getpid())))
        for process in processes:
            process.kill()  # had it not yet reached its namespace
        os.kill(os.getpid(), number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _family(pid: int) -> str:
    """What the names of all namespaces of the labs of a process begin with."""
    return f"natlab-{namespaces.owner(pid)}-"
