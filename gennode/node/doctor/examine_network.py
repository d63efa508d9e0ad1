"""Measuring the mesh from here, with a daemon and an identity that live only for that."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from gennode.errors import GennodeError, NetworkError
from gennode.mesh.multiaddr import split_peer
from gennode.mesh.p2pd.relay_check import check_relay
from gennode.mesh.p2pd.roles import usable_relays
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.mesh.reach.observer import ask_observer
from gennode.mesh.reach.reach import Sighting, is_dialable
from gennode.node.doctor.facts import Bootstrap, Failure, Network, RelayTrial
from gennode.wire.fields import as_text
from gennode.wire.ids import PeerId
from gennode.wire.signing import SEED_BYTES, Key

# Together they keep the whole examination at a quarter of a minute, without relays.
START_TIMEOUT_S = (
    7.0  # 0.3 s as a rule; a cold start on a loaded machine with a slow disk takes some 5 s
)
CONNECT_TIMEOUT_S = 3.0  # dialling and shaking hands across the world takes 1 s
RELAY_TIMEOUT_S = 8.0  # a place on a relay takes 0.3 to 3 s; only who can't be dialled needs one
MAX_RELAYS_TRIED = 2  # a node holds places on as many; to try one takes two daemons
MAX_OBSERVERS = 8  # two tell a NAT's kind, and four make libp2p punch holes
OBSERVE_TIMEOUT_S = 5.0  # two questions; an observer that can't dial us back notices after 2 s


async def probe(
    host: str,
    port: int,
    *,
    bootstrap: Sequence[str] = (),
    dialled_port: int | None = None,
    may_need_relay: bool = False,
    binary: Path | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
) -> Network:
    """Listen on `host` and `port` (0: any) as nobody in particular, and ask the first peers.

    All that we are connected to by then are asked to dial `dialled_port`, by default the one
    listened on; if none can, and `may_need_relay`, the first peers are tried as relays. Never
    under the node's own identity: a second daemon of one identity would take its connections.
    NetworkError if the daemon (`binary`: another than the one installed) does not start in time.
    """
    start_s = time.monotonic()
    try:
        async with asyncio.timeout(start_timeout_s):
            key = Key(os.urandom(SEED_BYTES))
            transport = await P2pdTransport.start(key, host=host, port=port, binary=binary)
    except TimeoutError as error:
        hint = "is the machine very busy? try again"
        message = f"the libp2p daemon did not come up in {start_timeout_s:g} s"
        raise NetworkError(message, hint=hint) from error
    started_s = time.monotonic() - start_s
    try:
        async with asyncio.TaskGroup() as group:
            meetings = [group.create_task(_meet(transport, address)) for address in bootstrap]
        bootstraps = tuple(meeting.result() for meeting in meetings)
        dialled = dialled_port or transport.port
        reached = [each.address for each in bootstraps if isinstance(each.reached_s, float)]
        met = [split_peer(address)[1] for address in reached]  # then whom the DHT led us to
        peers = dict.fromkeys([*met, *sorted(await transport.direct_peers())])
        async with asyncio.TaskGroup() as group:
            tasks = (_sight(transport, peer, dialled) for peer in list(peers)[:MAX_OBSERVERS])
            asked = [group.create_task(task) for task in tasks]
        sightings = tuple(seen for task in asked if (seen := task.result()) is not None)
    finally:
        await transport.close()
    needs_relay = may_need_relay and not is_dialable(sightings)
    relays = await try_relays(reached) if needs_relay else ()
    return Network(started_s, own_hosts(), dialled, bootstraps, sightings, relays)


async def try_relays(
    addresses: Sequence[str], *, timeout_s: float = RELAY_TIMEOUT_S
) -> tuple[RelayTrial, ...]:
    """Whether the first few of these peers carry for whoever can't be reached directly."""

    async def check(address: str) -> RelayTrial:
        try:
            async with asyncio.timeout(timeout_s):
                return RelayTrial(address, await check_relay(address))
        except GennodeError as error:
            return RelayTrial(address, _failure(address, error))
        except TimeoutError:
            hint = "give the --bootstrap of a relay: `gennode join --relay` makes one"
            words = f"{address} did not relay for us in {timeout_s:g} s"
            return RelayTrial(address, Failure(words, hint, NetworkError.exit_code))

    tried = usable_relays(addresses)[:MAX_RELAYS_TRIED]
    async with asyncio.TaskGroup() as group:
        checks = [group.create_task(check(address)) for address in tried]
    return tuple(each.result() for each in checks)


def own_hosts() -> tuple[str, ...]:
    """IP addresses of this machine, without the interface that IPv6 names after a `%`."""
    every = (each.address for names in psutil.net_if_addrs().values() for each in names)
    return tuple(sorted({host.partition("%")[0] for host in every if ":" in host or "." in host}))


async def _meet(transport: P2pdTransport, address: str) -> Bootstrap:
    start_s = time.monotonic()
    try:
        await transport.connect(address, timeout_s=CONNECT_TIMEOUT_S)
    except GennodeError as error:
        return Bootstrap(address, _failure(address, error))
    return Bootstrap(address, time.monotonic() - start_s)


def _failure(address: str, error: GennodeError) -> Failure:
    """Why an address can't be reached. The daemon says it last, after `* [/ip4/…]`."""
    reason = as_text(str(error).splitlines()[-1].rpartition("] ")[2].rpartition(f"{address}: ")[2])
    hint = error.hint
    if "mismatch" in reason:  # go-libp2p's word for an identity that is not the one dialled
        hint = "another peer lives there now: take the address that it prints when it starts"
    return Failure(f"{address}: {reason}", hint, error.exit_code)


async def _sight(transport: P2pdTransport, peer: PeerId, port: int) -> Sighting | None:
    """How one peer sees us; None if it does not say, as a mere client does not."""
    try:
        async with asyncio.timeout(OBSERVE_TIMEOUT_S):
            return await ask_observer(transport, peer, port)
    except (GennodeError, TimeoutError):
        return None
