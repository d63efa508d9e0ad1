"""How others can reach us: what observers see of our address, and what that says of a NAT. Pure."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gennode.errors import RemoteError, UsageError
from gennode.mesh import multiaddr

MAX_ANSWER_BYTES = 512  # a head and one address
REQUEST_BYTES = 2
_REQUEST = struct.Struct(">H")
_ANSWER = struct.Struct(">BQH")
CIRCUIT = "/p2p-circuit"


class Nat(StrEnum):
    """How the way out maps our port, in the terms of RFC 4787 §4.1."""

    NONE = "none"
    """Observers see an address of this machine."""
    CONE = "cone"
    """Endpoint-independent mapping: one public port towards everybody, so it can be punched."""
    SYMMETRIC = "symmetric"
    """Address-dependent mapping: another public port towards each, so that nobody can guess it."""
    UNKNOWN = "unknown"
    """Fewer than two observers at addresses of their own."""


class Dialled(StrEnum):
    """What came of an observer's attempt to dial us back."""

    NOT_TRIED = "not tried"
    REACHED = "reached"
    NOT_REACHED = "not reached"


@dataclass(frozen=True)
class Answer:
    """What an observer says: our address as it sees it, whether it could dial us, its clock."""

    dialled: Dialled
    clock_ms: int
    address: str


@dataclass(frozen=True)
class Sighting:
    """One observer's answer. `observer` and `seen` are `(IP address, port)`; times in seconds."""

    observer: tuple[str, int]
    seen: tuple[str, int]
    dialled: Dialled
    round_trip_s: float
    clock_skew_s: float
    """The observer's clock less ours, right to half the round trip."""


def is_relayed(address: str) -> bool:
    """Whether a multiaddress leads through a relay."""
    return CIRCUIT in address


def endpoint(address: str) -> tuple[str, int] | None:
    """The IP address and TCP port that a direct multiaddress names; None for any other."""
    pieces = address.split("/")
    if is_relayed(address) or len(pieces) < 5 or pieces[1] not in ("ip4", "ip6"):
        return None
    return (pieces[2], int(pieces[4])) if pieces[3] == "tcp" and pieces[4].isdecimal() else None


def is_public(host: str) -> bool:
    """Whether an IP address means the same machine everywhere."""
    return ipaddress.ip_address(host).is_global


def nat_kind(sightings: Sequence[Sighting], own_hosts: Iterable[str]) -> Nat:
    """What kind of NAT explains the sightings. Only observers at distinct addresses count."""
    own = set(own_hosts)
    by_observer = {sighting.observer[0]: sighting.seen for sighting in sightings}
    seen = set(by_observer.values())
    if seen and all(host in own for host, _ in seen):
        return Nat.NONE
    if len(by_observer) < 2:
        return Nat.UNKNOWN
    return Nat.CONE if len(seen) == 1 else Nat.SYMMETRIC


def is_dialable(sightings: Iterable[Sighting]) -> bool:
    """Whether some observer could open a connection to us of its own accord."""
    return any(sighting.dialled is Dialled.REACHED for sighting in sightings)


def pack_request(port: int) -> bytes:
    """Ask to be dialled back at `port` of the address that the observer sees; 0: only look."""
    return _REQUEST.pack(port)


def unpack_request(data: bytes) -> int:
    """The port to dial; RemoteError if it is one that only the system's services use."""
    (port,) = _REQUEST.unpack(data)
    if 0 < port < 1024:
        raise RemoteError(f"it asks us to dial port {port}, where no node listens")
    return int(port)


def pack_answer(answer: Answer) -> bytes:
    """The answer as bytes; nothing follows it."""
    text = answer.address.encode()
    return _ANSWER.pack(list(Dialled).index(answer.dialled), answer.clock_ms, len(text)) + text


def unpack_answer(data: bytes) -> Answer:
    """RemoteError if it is no answer, or names no address."""
    if len(data) < _ANSWER.size:
        raise RemoteError("an observer's answer is cut off")
    dialled, clock_ms, length = _ANSWER.unpack_from(data)
    if dialled >= len(Dialled) or len(data) != _ANSWER.size + length:
        raise RemoteError("an observer's answer is malformed")
    try:
        address = data[_ANSWER.size :].decode("ascii")
        multiaddr.to_bytes(address)
    except (UnicodeDecodeError, UsageError) as error:
        raise RemoteError("an observer names what is no address") from error
    return Answer(list(Dialled)[dialled], clock_ms, address)
