"""File handles: how many this process may have, how many it has, how many streams may take."""

from __future__ import annotations

import os
import resource
import sys

SPARE = 32
"""Kept for all but streams: a node at rest has 16, and to tell its status, read weights and
start a process or the daemon anew takes a few more."""


OPEN_MAX = 10_240
"""What macOS grants, where it names no limit and yet refuses more."""


def raise_limit() -> None:
    """Have as many as the system lets us: programs begin with few, for the sake of old ones."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_MAX if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most() -> int:
    """How many the system lets us have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def used() -> int:
    """How many are open."""
    return len(os.listdir("/dev/fd")) - 1  # one was for looking


def for_streams(wanted: int) -> int:
    """So many of the streams that are wanted there is room for."""
    return max(0, min(wanted, most() - SPARE))
