"""What a node is to the network: the libp2p daemon's flags for relays, NATs and the DHT. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from gennode.mesh.reach.reach import Dialled, Sighting, endpoint, is_dialable, is_public, is_relayed
from gennode.wire.ids import PeerId

# One circuit may carry an hour of a fast session; then it is reset, and links resume.
RELAY_TIME_LIMIT = "60m"
RELAY_DATA_BYTES = 4 * 1024**3  # in each direction
RELAY_BUFFER_BYTES = 128 * 1024  # in each direction; the daemon's own default is 16 MiB
RELAY_CIRCUITS_PER_PEER = 32  # a worker behind a NAT may sit on the routes of so many others
MAX_RELAYS = 8  # that a node behind a NAT is told of; it holds slots on two at a time


class Role(StrEnum):
    """Where a node stands."""

    LOCAL = "local"
    """Others on this machine or this network reach it as it is: no NAT, no relays."""
    PUBLIC = "public"
    """Anybody can dial it: a DHT server, and an observer for the others."""
    RELAY = "relay"
    """Public, and carries traffic for peers behind NATs."""
    PRIVATE = "private"
    """Behind a NAT: a DHT client with slots on relays, which punches holes where it can."""


_NO_SERVICE = ("-relayService=0", "-relayDiscovery=0")
_FLAGS: dict[Role, tuple[str, ...]] = {
    Role.LOCAL: ("-dhtServer", "-relay=1", "-autonat=0", "-autoRelay=0", *_NO_SERVICE),
    Role.PUBLIC: (
        "-dhtServer", "-relay=1", "-autonat=1", "-autoRelay=0", *_NO_SERVICE,
        "-forceReachabilityPublic",
    ),
    Role.RELAY: (
        "-dhtServer", "-relay=1", "-autonat=1", "-autoRelay=0", "-relayDiscovery=0",
        "-forceReachabilityPublic", "-relayService=1",
        f"-relayMaxCircuits={RELAY_CIRCUITS_PER_PEER}", f"-relayBufferSize={RELAY_BUFFER_BYTES}",
        f"-relayDataLimit={RELAY_DATA_BYTES}", f"-relayTimeLimit={RELAY_TIME_LIMIT}",
    ),
    Role.PRIVATE: (
        "-dhtClient", "-relay=1", "-autonat=1", *_NO_SERVICE,
        "-forceReachabilityPrivate",
    ),
}  # fmt: skip


def role_flags(role: Role, relays: Sequence[str]) -> tuple[str, ...]:
    """The daemon's flags; `relays`: multiaddresses of relays for a node behind a NAT.

    `-autonat=1` also switches hole punching on, and lets others ask whether they are public.
    """
    if role is not Role.PRIVATE:
        return _FLAGS[role]
    if not relays:
        return (*_FLAGS[role], "-autoRelay=0")  # the daemon refuses to look for none
    return (*_FLAGS[role], "-autoRelay=1", f"-trustedRelays={','.join(relays)}")


def role_environment(role: Role) -> dict[str, str]:
    """What the daemon must find in its environment.

    A relay's limits are set twice, by two parts of the daemon that run at the same time, and
    the later one wins: with one processor it is nearly always ours and not the default of
    128 KiB (35 of 36 starts, and 2 of 13 without), which is why a relay still has to prove it.
    """
    return {"GOMAXPROCS": "1"} if role is Role.RELAY else {}


def usable_relays(addresses: Iterable[str]) -> tuple[str, ...]:
    """Those of some peers' addresses at which a relay could be: direct ones."""
    found = dict.fromkeys(address for address in addresses if endpoint(address) is not None)
    return tuple(found)[:MAX_RELAYS]


def better_relays(
    own: PeerId, trusted: Sequence[str], announced: Mapping[PeerId, Sequence[str]], *, lost: bool
) -> tuple[str, ...]:
    """Relays to use instead of `trusted`; empty if those may stay.

    `announced`: who says that it relays, and where it is. Any public daemon gives a place, but
    only a relay's is good for more than 128 KiB: so peers that were merely met first are left
    for real ones. `lost`: none of `trusted` has given us an address for a while. Which of many
    is ours is drawn by hash, so that each has its share.
    """
    known = {address for addresses in announced.values() for address in addresses}
    if known.intersection(trusted) and not lost:
        return ()
    drawn = sorted(announced, key=lambda peer: hashlib.sha256(f"{own}{peer}".encode()).digest())
    found = usable_relays(address for peer in drawn for address in announced[peer])
    return () if set(found) == set(trusted) else found


def worth_telling(addresses: Iterable[str], role: Role) -> tuple[str, ...]:
    """Which of our addresses others should hear, best first.

    Whoever is on another machine has no use for our loopback, so it is told only if there is
    nothing else to tell. Whoever is behind our NAT can use a private address, so those stay,
    after the public ones and before those of relays.
    """
    ranked = sorted((_rank(address), address) for address in addresses)
    told = tuple(address for rank, address in ranked if rank < _LOOPBACK)
    if told or role is Role.PRIVATE:
        return told
    return tuple(address for _, address in ranked)


_PUBLIC, _PRIVATE, _RELAYED, _LOOPBACK = range(4)


def _rank(address: str) -> int:
    where = endpoint(address)
    if where is None:
        return _RELAYED
    if where[0].startswith(("127.", "::1")):
        return _LOOPBACK
    return _PUBLIC if is_public(where[0]) else _PRIVATE


def is_reached_by_relay(addresses: Iterable[str]) -> bool:
    """Whether a relay has given us an address."""
    return any(map(is_relayed, addresses))


def next_role(role: Role, sightings: Sequence[Sighting]) -> Role:
    """The role that fits what observers found out.

    Whoever was told to be local or a relay stays it. A public node steps back only when two
    observers at different addresses have tried to dial it in vain.
    """
    if role is Role.PRIVATE and is_dialable(sightings):
        return Role.PUBLIC
    missed = {seen.observer[0] for seen in sightings if seen.dialled is Dialled.NOT_REACHED}
    if role is Role.PUBLIC and len(missed) > 1 and not is_dialable(sightings):
        return Role.PRIVATE
    return role
