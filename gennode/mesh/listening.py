"""Where to listen: a port that nobody shares, a folder that sockets fit in."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import tempfile
from pathlib import Path

from gennode.errors import NetworkError, UsageError

MAX_SOCKET_PATH_BYTES = 90  # the shortest limit of any POSIX system is 104, less our file name
MAX_PORT = 65535


def socket_folder() -> Path:
    """A new private folder (0700) whose path is short enough for unix sockets."""
    folder = tempfile.mkdtemp(prefix="gennode-")
    if len(folder) > MAX_SOCKET_PATH_BYTES:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="gennode-", dir="/tmp")
    return Path(folder)


_LISTEN_HINTS = {
    errno.EADDRNOTAVAIL: "give an IP address of this machine, or 0.0.0.0 for all that it has",
    errno.EACCES: "choose a port above 1023: those below are the system's",
}


def check_free(host: str, port: int) -> int:
    """The port, or for 0 one that is free; NetworkError unless we can listen there.

    UsageError if host or port make no sense. To be asked before each start of the daemon, which
    binds with SO_REUSEPORT: it would silently share a port with another daemon.
    """
    if not 0 <= port <= MAX_PORT:
        raise UsageError(f"{port} is no TCP port", hint="use 0 for any free one, or 1 to 65535")
    try:
        version = ipaddress.ip_address(host).version
    except ValueError as error:
        hint = "give an IP address of this machine, such as 127.0.0.1"
        raise UsageError(f"{host!r} is no IP address", hint=hint) from error
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
            return int(probe.getsockname()[1])
        except OSError as error:
            other = "choose another port, or 0 for any free one"
            hint = _LISTEN_HINTS.get(error.errno or 0, other)
            raise NetworkError(f"can't listen on {host} port {port}: {error}", hint=hint) from error
