"""What the mesh says of real daemons, some behind a miniature NAT of proxies on loopback."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from gennode.errors import NetworkError
from gennode.mesh.p2pd.daemon import find_binary
from gennode.mesh.p2pd.relay_check import RelayCheck
from gennode.mesh.p2pd.roles import Role
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.mesh.reach.observer import Observer
from gennode.mesh.reach.reach import Dialled
from gennode.node.doctor.diagnosis import diagnose
from gennode.node.doctor.examine_network import own_hosts, probe, try_relays
from gennode.node.doctor.facts import Failure, Network
from gennode.node.doctor.finding import Finding, Level
from gennode.wire.signing import Key
from tests.node.healthy import BEHIND_NAT, FACTS

ROUTER = "127.0.0.100"  # what observers see of whoever comes through a proxy


def key(number: int) -> Key:
    return Key(bytes([number]) * 32)


@asynccontextmanager
async def observers(count: int, *, clock_shift_s: float = 0.0) -> AsyncIterator[list[str]]:
    """Addresses of as many observers, on addresses of their own."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        addresses: list[str] = []
        for number in range(1, count + 1):
            transport = await P2pdTransport.start(key(number), host=f"127.0.0.{number + 1}")
            stack.push_async_callback(transport.close)
            await Observer(transport, tasks, clock_s=lambda: time.time() + clock_shift_s).start()
            addresses += transport.addresses()
        yield addresses


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.transport.abort()


async def forward(
    there: tuple[str, int],
    local: tuple[str, int],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Carry one connection on to `there`, from `local` (port 0: another one each time)."""
    far = socket.socket()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    far.setblocking(False)
    far.bind(local)
    await asyncio.get_running_loop().sock_connect(far, there)
    far_reader, far_writer = await asyncio.open_connection(sock=far)
    async with asyncio.TaskGroup() as group:
        group.create_task(carry(reader, far_writer))
        group.create_task(carry(far_reader, writer))


@asynccontextmanager
async def behind_router(addresses: list[str], *, port: int) -> AsyncIterator[list[str]]:
    """The same peers, as they look from behind a NAT: `port` is what it maps to (0: any)."""
    async with AsyncExitStack() as stack:
        mapped = []
        for address in addresses:
            _, _, host, _, far, _, peer = address.split("/")
            carrying = partial(forward, (host, int(far)), (ROUTER, port))
            server = await asyncio.start_server(carrying, host, 0)
            await stack.enter_async_context(server)
            near = server.sockets[0].getsockname()[1]
            mapped.append(f"/ip4/{host}/tcp/{near}/p2p/{peer}")
        yield mapped


def found(network: Network, check: str) -> Finding:
    """What a node that listens on a real address is told."""
    findings = diagnose(replace(FACTS, network=network))
    (finding,) = [each for each in findings if each.check == check]
    return finding


def free_port() -> int:
    with socket.create_server((ROUTER, 0)) as server:
        port: int = server.getsockname()[1]
        return port


async def test_observers_dial_us_back() -> None:
    async with observers(2) as addresses:
        network = await probe("127.0.0.1", 0, bootstrap=addresses)
    assert {sighting.observer[0] for sighting in network.sightings} == {"127.0.0.2", "127.0.0.3"}
    assert {sighting.seen for sighting in network.sightings} == {
        ("127.0.0.1", network.dialled_port)
    }
    for check in ("observers", "nat", "reachability", "clock"):
        assert found(network, check).level is Level.OK
    assert found(network, "reachability").words.startswith("direct: 2 of 2")


async def test_a_port_that_is_shut_is_found() -> None:
    shut = free_port()
    async with observers(2) as addresses:
        network = await probe("127.0.0.1", 0, bootstrap=addresses, dialled_port=shut)
    assert {sighting.dialled for sighting in network.sightings} == {Dialled.NOT_REACHED}
    finding = found(network, "reachability")
    assert finding.level is Level.FAIL
    assert f"open TCP port {shut}" in finding.fix


async def test_a_symmetric_nat_is_found() -> None:
    async with observers(2) as addresses, behind_router(addresses, port=0) as mapped:
        network = await probe("127.0.0.1", 0, bootstrap=mapped)
    finding = found(network, "nat")
    assert finding.level is Level.WARN
    assert "symmetric" in finding.words
    assert "forward TCP port" in finding.fix
    assert found(network, "reachability").level is Level.FAIL


async def test_a_cone_nat_is_found() -> None:
    async with observers(2) as addresses, behind_router(addresses, port=free_port()) as mapped:
        network = await probe("127.0.0.1", 0, bootstrap=mapped)
    assert "cone" in found(network, "nat").words


@pytest.mark.parametrize("shift_s", [-3600.0, 3600.0])
async def test_a_clock_that_is_wrong_is_found(shift_s: float) -> None:
    async with observers(1, clock_shift_s=shift_s) as addresses:
        network = await probe("127.0.0.1", 0, bootstrap=addresses)
    finding = found(network, "clock")
    assert finding.level is Level.WARN
    assert ("behind" if shift_s > 0 else "ahead") in finding.words
    assert "timedatectl" in finding.fix
    assert found(network, "observers").level is Level.WARN


async def test_a_peer_that_observes_nothing_is_no_observer() -> None:
    mute = await P2pdTransport.start(key(1))
    try:
        network = await probe("127.0.0.1", 0, bootstrap=mute.addresses())
    finally:
        await mute.close()
    assert not network.sightings
    assert found(network, "bootstrap").level is Level.OK
    assert found(network, "observers").level is Level.WARN


@asynccontextmanager
async def relay(binary: Path | None = None) -> AsyncIterator[str]:
    """The address of a relay."""
    started = await P2pdTransport.start(key(1), role=Role.RELAY, binary=binary)
    try:
        yield f"/ip4/127.0.0.1/tcp/{started.port}/p2p/{started.peer}"
    finally:
        await started.close()


async def test_a_relay_that_carries_is_timed() -> None:
    """The daemon starts with libp2p's own limit now and then: see `role_environment`."""
    for _ in range(5):
        async with relay() as address:
            (trial,) = await try_relays([address])
        if isinstance(trial.check, RelayCheck):
            break
    assert isinstance(trial.check, RelayCheck)
    assert trial.check.round_trip_s > 0
    network = replace(BEHIND_NAT, relays=(trial,))
    assert found(network, "relay").level is Level.OK
    assert found(network, "reachability").words.startswith("punchable")


async def test_a_relay_that_cuts_off_is_found(tmp_path: Path) -> None:
    """One with libp2p's own limit, which passes every small test."""
    binary = tmp_path / "p2pd"
    binary.write_text(f'#!/bin/sh\nexec {find_binary()} "$@" -relayDataLimit=131072\n')
    binary.chmod(0o700)
    async with relay(binary) as address:
        (trial,) = await try_relays([address])
    assert isinstance(trial.check, Failure)
    assert "cut off" in trial.check.words
    finding = found(replace(BEHIND_NAT, relays=(trial,)), "relay")
    assert finding.level is Level.FAIL
    assert finding.fix


async def test_a_node_that_is_no_relay_is_found() -> None:
    """libp2p's daemon gives anybody a place, and then cuts off."""
    ordinary = await P2pdTransport.start(key(1))
    try:
        (trial,) = await try_relays(ordinary.addresses())
    finally:
        await ordinary.close()
    assert isinstance(trial.check, Failure)
    assert "relay" in trial.check.fix


async def test_a_relay_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{key(1).peer}"
        (trial,) = await try_relays([address], timeout_s=0.5)
    assert isinstance(trial.check, Failure)
    assert "did not relay" in trial.check.words
    assert "--relay" in trial.check.fix


async def test_each_address_that_fails_says_why() -> None:
    gone = f"/ip4/127.0.0.1/tcp/1/p2p/{key(1).peer}"
    network = await probe("127.0.0.1", 0, bootstrap=[gone, "nonsense"])
    refused, malformed = (each.reached_s for each in network.bootstraps)
    assert isinstance(refused, Failure)
    assert isinstance(malformed, Failure)
    assert refused.words == f"{gone}: dial tcp4 127.0.0.1:1: connect: connection refused"
    assert malformed.words.startswith("nonsense: 'nonsense' is not a multiaddress")
    assert (refused.exit_code, malformed.exit_code) == (4, 2)


async def test_a_host_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{key(1).peer}"
        network = await probe("127.0.0.1", 0, bootstrap=[address])
    (lost,) = network.bootstraps
    assert isinstance(lost.reached_s, Failure)
    assert lost.reached_s.words == f"{address}: no answer in 3 s"


def test_own_hosts_are_addresses() -> None:
    assert "127.0.0.1" in own_hosts()
    assert not [host for host in own_hosts() if "%" in host]


async def test_a_daemon_that_never_comes_up_is_given_up(tmp_path: Path) -> None:
    binary = tmp_path / "p2pd"
    binary.write_text("#!/bin/sh\nexec sleep 60\n")
    binary.chmod(0o700)
    with pytest.raises(NetworkError, match="did not come up"):
        await probe("127.0.0.1", 0, binary=binary, start_timeout_s=0.2)
