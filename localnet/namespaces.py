"""Network namespaces of this machine: run commands in them, and take them away with all in them."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from gennode.errors import NetworkError

_NAMESPACES = Path("/run/netns")
_NEEDS = {"ip": "iproute2", "iptables-restore": "iptables", "sysctl": "procps"}
_GRACE_S = 2.0  # from SIGTERM to SIGKILL, for what still runs when its namespace goes
_LOOK_EVERY_S = 0.01

# The rule that asks most of a kernel: NAT, connection tracking, and random ports.
_TRIAL = """*filter
-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
COMMIT
*nat
-A POSTROUTING -o wan0 -j MASQUERADE --random-fully
COMMIT
"""


@functools.cache
def available() -> str:
    """Why this machine can't have namespaces, NAT and devices of our own; empty if it can."""
    if sys.platform != "linux":
        return "only Linux has network namespaces"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    missing = [package for tool, package in _NEEDS.items() if shutil.which(tool) is None]
    if missing:
        return f"to install first: {', '.join(missing)}"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    trial = f"natlab-{owner(os.getpid())}-trial-available"
    try:
        batch("", [f"netns add {trial}"])
        run(within(trial, ["iptables-restore"]), _TRIAL)
    except NetworkError as error:
        return str(error)
    finally:
        remove([trial])
    return ""


def owner(pid: int) -> str:
    """A name that no other process has had or will have; empty if `pid` is none or has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # proc(5): the state is the third field and the start the 22nd; the second, in brackets, may
    # hold spaces and brackets.
    state, *more = status.rpartition(")")[2].split()
    return "" if state in "ZX" else f"{pid}.{more[18]}"


def names(prefix: str) -> list[str]:
    """The namespaces that begin with `prefix`, in order."""
    folder = _NAMESPACES.iterdir() if _NAMESPACES.is_dir() else ()
    return sorted(path.name for path in folder if path.name.startswith(prefix))


def within(namespace: str, command: Sequence[str]) -> list[str]:
    """`command`, as to be run in `namespace`; the process that this starts becomes the command."""
    return ["ip", "netns", "exec", namespace, *command]


def run(command: Sequence[str], input_text: str = "") -> str:
    """What `command` prints. NetworkError with what it complains about, if it fails."""
    done = subprocess.run(command, input=input_text, capture_output=True, text=True, check=False)
    if done.returncode:
        complaint = done.stderr.strip() or f"exit code {done.returncode}"
        raise NetworkError(f"{' '.join(command)}: {complaint}")
    return done.stdout


def batch(namespace: str, lines: Iterable[str]) -> None:
    """Run lines of `ip` in a namespace, or in ours if that is empty: a process for all of them."""
    place = ["-n", namespace] if namespace else []
    run(["ip", *place, "-batch", "-"], "".join(f"{line}\n" for line in lines))


def end_processes(namespaces: Sequence[str]) -> None:
    """End all that runs in `namespaces`: ask, wait a little, kill."""
    if not _signal_all(namespaces, signal.SIGTERM):
        return
    deadline_s = time.monotonic() + _GRACE_S
    while _signal_all(namespaces, 0):
        if time.monotonic() > deadline_s:
            _signal_all(namespaces, signal.SIGKILL)
        time.sleep(_LOOK_EVERY_S)


def remove(namespaces: Sequence[str]) -> None:
    """End all that runs in `namespaces`, and remove those of them that exist."""
    end_processes(_existing(namespaces))
    for name in _existing(namespaces):
        try:
            run(["ip", "netns", "del", name])
        except NetworkError:
            time.sleep(_LOOK_EVERY_S)  # somebody else may be sweeping it
            if _existing([name]):
                raise


def _existing(namespaces: Sequence[str]) -> list[str]:
    return [name for name in namespaces if (_NAMESPACES / name).exists()]


def _signal_all(namespaces: Sequence[str], number: int) -> bool:
    """Send a signal to every process in `namespaces` (0: none); whether there was any."""
    inodes = {_inode(_NAMESPACES / name) for name in namespaces} - {0}
    found = False
    for process in Path("/proc").iterdir():
        if inodes and process.name.isdigit() and _inode(process / "ns/net") in inodes:
            found = True
            with suppress(ProcessLookupError):
                os.kill(int(process.name), number)
    return found


def _inode(path: Path) -> int:
    """What tells one namespace from another; 0 if `path` is gone, as a zombie's is."""
    try:
        return path.stat().st_ino
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
