"""Every exception of gennode, each with the exit code that the CLI ends with.

GennodeError                 1  anything below; carries a hint: what to do next
├── LocalError               1  this node broke its own rules: a bug, please report it
├── RemoteError              1  another peer broke the protocol: costs it its standing
├── UsageError               2  an argument or setting makes no sense
├── ModelError               3  a model is missing, corrupt, or of a kind we refuse
├── NetworkError             4  a peer, an address or the transport can't be reached
├── NoRouteError             5  no chain of live workers covers the model's layers
├── ResourceError            6  out of disk, memory or file handles
└── DeviceError              7  the accelerator asked for is not here
"""

from __future__ import annotations


class GennodeError(Exception):
    """Root of the tree. `hint` is the next step for the person who reads the message."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class LocalError(GennodeError):
    """This node's own fault: an invariant of ours does not hold."""


class RemoteError(GennodeError):
    """A peer's fault: what it sent can't be right. Never raised for what we did."""


class UsageError(GennodeError):
    """An argument, setting or combination of them that can't be served."""

    exit_code = 2


class ModelError(GennodeError):
    """A model folder or file is missing, damaged, or of a refused kind."""

    exit_code = 3


class NetworkError(GennodeError):
    """A peer or address can't be reached, or the transport can't be started."""

    exit_code = 4


class NoRouteError(GennodeError):
    """Some layers have no live worker."""

    exit_code = 5


class ResourceError(GennodeError):
    """The machine has run out of something: disk, memory, file handles."""

    exit_code = 6


class DeviceError(GennodeError):
    """An accelerator was asked for and there is none that works."""

    exit_code = 7
