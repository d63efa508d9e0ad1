"""Links between peers behind NATs, in a lab of namespaces: holes, relays, and relays that die."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from gennode.errors import NetworkError
from gennode.mesh.p2pd.daemon import find_binary
from gennode.mesh.p2pd.relay_check import check_relay
from gennode.mesh.p2pd.roles import Role, is_reached_by_relay
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.mesh.reach.observer import Observer, ask_observers
from gennode.mesh.reach.reach import Dialled, Nat, nat_kind
from gennode.wire.signing import Key
from localnet import natlab
from tests.mesh.ends import Diary, ping

RELAYS = tuple(f"relay{number}" for number in range(1, 6))  # go-libp2p wants four observers
PORT = 4001
WAIT_S = 30.0

pytestmark = pytest.mark.skipif(
    bool(natlab.available()), reason=f"NO NAT LAB, so NATs are not tested: {natlab.available()}"
)


@pytest.fixture
def lab() -> Iterator[natlab.Lab]:
    kinds = {"cone1": natlab.Nat.CONE, "cone2": natlab.Nat.CONE, "far": natlab.Nat.SYMMETRIC}
    homes = {name: natlab.Home(kind, natlab.Link(delay_ms=5)) for name, kind in kinds.items()}
    with natlab.Lab(homes, public=dict.fromkeys(RELAYS, natlab.Link(delay_ms=5))) as lab:
        yield lab


class Internet:
    """Transports whose daemons run on the lab's hosts."""

    def __init__(self, lab: natlab.Lab, folder: Path, stack: AsyncExitStack) -> None:
        self.lab, self.folder, self.stack = lab, folder, stack
        self.relays: dict[str, P2pdTransport] = {}

    async def start(self, host: str, role: Role) -> P2pdTransport:
        """One transport; its relays are those that run."""
        program = self.folder / host
        if not program.exists():
            within = " ".join(self.lab.prefix(host))
            program.write_text(f'#!/bin/sh\nexec {within} {find_binary()} "$@"\n')
            program.chmod(0o700)
        everywhere = "0.0.0.0"  # noqa: S104 - within the lab
        transport = await P2pdTransport.start(
            Key(os.urandom(32)),
            host=everywhere,
            port=PORT if role is Role.PRIVATE else 0,
            role=role,
            relays=self.relay_addresses(),
            binary=program,
        )
        self.stack.push_async_callback(transport.close)
        if role is Role.RELAY:
            await prove(transport, program)
        return transport

    def relay_addresses(self) -> tuple[str, ...]:
        """Those of the relays that run."""
        return tuple(transport.addresses()[0] for transport in self.relays.values())

    async def at_home(self, host: str) -> P2pdTransport:
        """A node behind a NAT, known to all relays, with an address at one of them."""
        transport = await self.start(host, Role.PRIVATE)
        for address in self.relay_addresses():
            await transport.connect(address, timeout_s=WAIT_S)
        async with asyncio.timeout(WAIT_S):
            while not is_reached_by_relay(transport.addresses()):
                await transport.refresh()
        return transport


async def prove(relay: P2pdTransport, program: Path) -> None:
    """As a node does that relays: see `role_environment`."""
    for _ in range(5):
        with suppress(NetworkError):
            await check_relay(relay.addresses()[0], binary=program)
            return
        await relay.become(Role.RELAY)
    raise AssertionError("it carries too little")


@asynccontextmanager
async def internet(lab: natlab.Lab, folder: Path, relays: int) -> AsyncIterator[Internet]:
    async with AsyncExitStack() as stack:
        there = Internet(lab, folder, stack)
        for name in RELAYS[:relays]:
            there.relays[name] = await there.start(name, Role.RELAY)
        yield there


async def test_a_session_moves_from_relay_to_hole_and_loses_nothing(
    lab: natlab.Lab, tmp_path: Path
) -> None:
    async with internet(lab, tmp_path, 5) as there, AsyncExitStack() as stack:
        first, second = await there.at_home("cone1"), await there.at_home("cone2")
        a, b = Diary(first), Diary(second, echo=True)
        await stack.enter_async_context(a.links)
        await stack.enter_async_context(b.links)
        a.links.learn(second.peer, second.addresses())
        a.links.send(second.peer, ping(0), bytes(8192))
        sent = 1
        async with asyncio.timeout(WAIT_S):
            while sent < 50 or a.links._outgoing[second.peer].is_relayed:
                a.links.send(second.peer, ping(sent), bytes(8192))
                sent += 1
                await a.wait_for(messages=sent)
        assert second.peer in await first.direct_peers()
        assert [nonce for _, nonce, _ in a.got] == list(range(sent))
        assert not a.downs
        assert not b.downs


async def test_symmetric_nats_talk_through_a_relay_and_survive_its_death(
    lab: natlab.Lab, tmp_path: Path
) -> None:
    async with internet(lab, tmp_path, 2) as there, AsyncExitStack() as stack:
        first, second = await there.at_home("far"), await there.at_home("cone1")
        async with asyncio.timeout(WAIT_S):
            while sum(map(is_reached_by_relay, ([text] for text in second.addresses()))) < 2:
                await second.refresh()
        a, b = Diary(first), Diary(second, echo=True)
        await stack.enter_async_context(a.links)
        await stack.enter_async_context(b.links)
        a.links.learn(second.peer, second.addresses())
        a.links.send(second.peer, ping(0), bytes(300_000))  # more than a relay's default limit
        await a.wait_for(messages=1)
        assert a.links._outgoing[second.peer].is_relayed
        stream = a.links._outgoing[second.peer]._stream
        assert stream is not None
        carrier = next(
            relay for relay in there.relays.values() if f"/p2p/{relay.peer}/" in stream.remote
        )
        await carrier.close()
        for nonce in range(1, 20):
            a.links.send(second.peer, ping(nonce), bytes(8192))
        await a.wait_for(messages=20)
        assert [nonce for _, nonce, _ in a.got] == list(range(20))


async def test_observers_tell_each_kind_of_nat(lab: natlab.Lab, tmp_path: Path) -> None:
    async with internet(lab, tmp_path, 2) as there, asyncio.TaskGroup() as tasks:
        tried: list[tuple[str, int]] = []

        async def dial(host: str, port: int) -> bool:
            tried.append((host, port))
            return False  # this process is outside the lab, and reaches none of it

        for relay in there.relays.values():
            await Observer(relay, tasks, dial).start()
        peers = [relay.peer for relay in there.relays.values()]
        for host, kind in (("cone1", Nat.CONE), ("far", Nat.SYMMETRIC)):
            node = await there.at_home(host)
            seen = await ask_observers(node, peers, node.port)
            assert nat_kind(seen, [lab.home_address(host)]) is kind
            assert {sighting.seen[0] for sighting in seen} == {lab.address(host)}
            assert {sighting.dialled for sighting in seen} == {Dialled.NOT_REACHED}
        assert set(tried) == {(lab.address(host), PORT) for host in ("cone1", "far")}
