"""Calls of the Linux kernel that Python has no name for, by their numbers."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

PR_SET_NO_NEW_PRIVS = 38

MACHINES = ("x86_64", "aarch64")
"""Whose numbers of system calls are known here."""


class RefusedError(OSError):
    """The kernel does not do that."""


def machine() -> str | None:
    """The processor family, if this is Linux on one whose calls are known."""
    family = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine(), platform.machine())
    known = sys.platform == "linux" and family in MACHINES and sys.maxsize > 1 << 32
    return family if known else None


def call(number: int, *arguments: int | ctypes.Array[ctypes.c_char] | None) -> int:
    """A system call. RefusedError where it fails."""
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    passed = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = int(library.syscall(ctypes.c_long(number), *passed))
    if result < 0:
        error = ctypes.get_errno()
        raise RefusedError(error, os.strerror(error))
    return result


def allow_no_new_privileges() -> None:
    """From here on no program that is started gains rights; filters of calls demand it."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        error = ctypes.get_errno()
        raise RefusedError(error, os.strerror(error))
