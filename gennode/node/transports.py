"""Which transport a node runs on."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from gennode.errors import UsageError
from gennode.mesh.p2pd.roles import Role, usable_relays
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.mesh.reach.reach import endpoint
from gennode.mesh.transport import Transport
from gennode.wire.signing import Key

TransportName = Literal["p2pd", "pylibp2p"]

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Listening:
    """Where a node listens, whom it meets first, and what it is to others.

    `host`: an IP address of this machine; None for the one that leads to the first of
    `bootstrap`, which is loopback if they are on this machine or there are none. `port`: 0 for
    any free one. `relay`: carry traffic for peers behind NATs.
    """

    bootstrap: tuple[str, ...] = ()
    host: str | None = None
    port: int = 0
    relay: bool = False
    transport_name: TransportName = "p2pd"

    def where(self) -> str:
        """The IP address to listen on."""
        return self.host or interface_towards(self.bootstrap)

    def role(self, host: str) -> Role:
        """The role to start in: behind a NAT, until somebody has dialled us back."""
        if self.relay:
            return Role.RELAY
        if host.startswith("127.") or host == "::1":
            return Role.LOCAL
        return Role.PRIVATE if self.bootstrap else Role.PUBLIC


def interface_towards(addresses: Sequence[str]) -> str:
    """The address of this machine from which packets to the first of `addresses` would leave.

    Loopback if none of them names a host that there is a way to.
    """
    for address in addresses:
        where = endpoint(address)
        if where is None:
            continue
        family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(where)  # of a datagram socket: sends nothing
            except OSError:
                continue
            return str(probe.getsockname()[0])
    return LOOPBACK


class NodeTransport(Transport, Protocol):
    """A transport with a private folder for the node's own sockets."""

    @property
    def folder(self) -> Path:
        """Gone when the transport is closed."""


async def start_transport(
    key: Key, listening: Listening, *, on_exit: Callable[[str], None]
) -> NodeTransport:
    """Start a transport; UsageError if it is not installed, NetworkError if it can't listen."""
    host, port = listening.where(), listening.port
    if listening.transport_name == "p2pd":
        return await P2pdTransport.start(
            key,
            host=host,
            port=port,
            role=listening.role(host),
            relays=usable_relays(listening.bootstrap),
            on_exit=on_exit,
        )
    if listening.relay:
        raise UsageError("only p2pd relays", hint="leave --transport or --relay out")
    try:
        from gennode.mesh.pylibp2p.transport import PyLibp2pTransport
    except ModuleNotFoundError as error:
        hint = "pip install 'gennode[pylibp2p]'"
        raise UsageError(f"py-libp2p is not installed: {error}", hint=hint) from error
    return await PyLibp2pTransport.start(key, host=host, port=port, on_exit=on_exit)
