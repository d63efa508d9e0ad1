"""Which transport a node runs on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from gennode.errors import UsageError
from gennode.mesh.p2pd import P2pdTransport
from gennode.mesh.transport import Transport
from gennode.wire.signing import Key

TransportName = Literal["p2pd", "pylibp2p"]


class NodeTransport(Transport, Protocol):
    """A transport with a private folder for the node's own sockets."""

    @property
    def folder(self) -> Path:
        """Gone when the transport is closed."""


async def start_transport(
    name: TransportName, key: Key, *, host: str, port: int, on_exit: Callable[[str], None]
) -> NodeTransport:
    """Start `name`; UsageError if it is not installed, NetworkError if it can't listen."""
    if name == "p2pd":
        return await P2pdTransport.start(key, host=host, port=port, on_exit=on_exit)
    try:
        from gennode.mesh.pylibp2p import PyLibp2pTransport
    except ModuleNotFoundError as error:
        hint = "pip install 'gennode[pylibp2p]'"
        raise UsageError(f"py-libp2p is not installed: {error}", hint=hint) from error
    return await PyLibp2pTransport.start(key, host=host, port=port, on_exit=on_exit)
