"""A memory cgroup for one process, in whichever version of cgroups this machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_FIRST, _SECOND = _ROOT / "memory", _ROOT  # where either version is mounted


def _folder() -> Path | None:
    """Where a memory cgroup can be made; None if nowhere."""
    if (_FIRST / "memory.limit_in_bytes").exists() and os.access(_FIRST, os.W_OK):
        return _FIRST
    controllers = _SECOND / "cgroup.subtree_control"
    if os.access(_SECOND, os.W_OK) and controllers.exists():
        return _SECOND if "memory" in controllers.read_text().split() else None
    return None


def without_cages() -> str:
    """Why no process's memory can be limited here; empty if it can."""
    if os.geteuid() != 0:
        return "only root may make a cgroup"
    return "" if _folder() else "no memory cgroup is mounted where we may write"


@contextmanager
def caged(pid: int) -> Iterator[None]:
    """Let a process keep what memory it has, and be killed as soon as it wants more."""
    root = _folder()
    assert root is not None
    cage = root / f"gennode-test-{pid}"
    cage.mkdir()
    try:
        limit = "memory.limit_in_bytes" if root == _FIRST else "memory.max"
        (cage / limit).write_text("0")
        (cage / "cgroup.procs").write_text(str(pid))  # what it has stays charged to where it was
        yield
    finally:
        for left in (cage / "cgroup.procs").read_text().split():
            (root / "cgroup.procs").write_text(left)
        cage.rmdir()
