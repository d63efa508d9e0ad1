"""Landlock: what of the file system a process may open, and that it opens no connections.

Source: the kernel's Documentation/userspace-api/landlock.rst. It binds the thread that asks and
those that it starts later, so it is asked for before there are others.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gennode.engine.child.system import RefusedError, allow_no_new_privileges, call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same for all processors
_VERSION_FLAG = 1
_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
_OF_FILES = 1 | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE

# ABI by ABI, the bits of the file system's rights that it knows: 1 to 4 and 5.
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_NET_ABI, _NET_RIGHTS = 4, 0b11  # bind and connect of TCP
_SCOPE_ABI, _SCOPES = 6, 0b11  # abstract unix sockets, and signals


@dataclass(frozen=True)
class Openings:
    """What may be opened: folders and files to read, devices also to write and to control.

    `listed`: folders whose names, and those of all below, may be read, but no file.
    """

    readable: tuple[Path, ...]
    devices: tuple[Path, ...]
    listed: tuple[Path, ...] = ()


def landlock_abi() -> int:
    """The version that this kernel has; 0 if it has none, or it is switched off."""
    try:
        return call(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    except RefusedError:
        return 0


def confine(openings: Openings) -> int:
    """Let this thread, and those it starts, open nothing else. The ABI in force, 0 if none.

    Nothing can be made, removed, renamed or executed any more; TCP, abstract sockets and signals
    to others are refused where the ABI can. What is open stays so. Raises RefusedError if the
    kernel has landlock and refuses all the same.
    """
    abi = landlock_abi()
    if abi == 0:
        return 0
    handled = _RIGHTS[max(known for known in _RIGHTS if known <= abi)]
    attributes = struct.pack(
        "=QQQ", handled, _NET_RIGHTS * (abi >= _NET_ABI), _SCOPES * (abi >= _SCOPE_ABI)
    )
    size_bytes = 24 if abi >= _SCOPE_ABI else 16 if abi >= _NET_ABI else 8
    ruleset = call(_CREATE_RULESET, ctypes.create_string_buffer(attributes, 24), size_bytes, 0)
    try:
        _allow(ruleset, openings.readable, (_READ_FILE | _READ_DIR) & handled)
        _allow(ruleset, openings.listed, _READ_DIR)
        everything = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _IOCTL_DEVICE
        _allow(ruleset, openings.devices, everything & handled)
        allow_no_new_privileges()
        call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return abi


def _allow(ruleset: int, paths: Iterable[Path], rights: int) -> None:
    """Add rules; a path that is not there needs none."""
    for path in dict.fromkeys(paths):
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            is_folder = path.is_dir()
            fitting = rights if is_folder else rights & _OF_FILES
            rule = ctypes.create_string_buffer(struct.pack("=Qi", fitting, opened), 12)
            call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
        finally:
            os.close(opened)
