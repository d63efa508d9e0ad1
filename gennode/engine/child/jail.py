"""What the compute process may touch: its weights and its libraries, and nobody else.

On Linux landlock bounds the files and a filter the system calls; no rights are needed for that.
Elsewhere, and on kernels without, it runs as any other process of its user, and says so.
"""

from __future__ import annotations

import os
import resource
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import gennode
from gennode.engine.child.landlock import Openings, confine, landlock_abi
from gennode.engine.child.seccomp import filter_calls
from gennode.engine.child.system import RefusedError, machine

FIRST_TO_END = 1000  # the most that oom_score_adj takes: out of memory, the kernel ends this first

_SYSTEM_LIBRARIES = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache",
)  # fmt: skip
_ABOUT_THE_MACHINE = (
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm",
    "/sys/devices/system", "/sys/kernel/mm", "/sys/fs/cgroup",
)  # fmt: skip
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - it has no other place
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", _SHARED_MEMORY)

# Of the drivers for accelerators: what they load, read, and talk to.
_DRIVER_FILES = ("/usr/local/cuda", "/opt/rocm", "/etc/OpenCL", "/proc/driver/nvidia", "/sys")
_DRIVER_DEVICES = ("nvidia*", "dri", "kfd")

MAX_LINKS = 4096  # files of a model's folder, as many as a manifest names


@dataclass(frozen=True)
class Jail:
    """What the system holds the compute process to.

    `landlock`: the ABI in force, 0 without; `seccomp`: whether calls are filtered; `words`: for
    people, such as why there is none.
    """

    landlock: int
    seccomp: bool
    words: str


def prefer_to_end_this() -> None:
    """When the machine runs out of memory, let the kernel end this process before others."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold what people asked
    try:
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_END))
    except OSError:
        return  # no Linux: the system has its own ways


def confine_files(folder: Path, device: str) -> int:
    """Let nothing be opened but the model's folder, read-only, and libraries; landlock's ABI.

    0 where there is none. It binds threads that start later: call it before there are others.
    """
    if machine() is None:
        return 0
    try:
        return confine(_openings(folder, device))
    except RefusedError:
        return 0


def confine_calls(landlock: int) -> Jail:
    """Refuse system calls that computing has no use for; what is in force then."""
    if machine() is None:
        return Jail(0, False, f"{sys.platform} has no way for it that is used here")
    try:
        seccomp = filter_calls()
    except RefusedError:
        seccomp = False
    files = f"landlock abi {landlock}" if landlock else "no landlock"
    calls = "seccomp" if seccomp else "no seccomp"
    return Jail(landlock, seccomp, f"{files}, {calls}")


def expected_jail() -> str:
    """What this system offers, without entering it, in words."""
    if machine() is None:
        return f"{sys.platform} has no way for it that is used here"
    abi = landlock_abi()
    return f"landlock abi {abi}" if abi else "this kernel has no landlock"


def _openings(folder: Path, device: str) -> Openings:
    package = Path(gennode.__file__).resolve().parent
    libraries = [Path(entry).resolve() for entry in sys.path if entry]
    listed = []
    if package.parent in libraries and package.parent.name != "site-packages":
        # A checkout: modules are looked for in it, and the rest of it is nobody's business.
        libraries.remove(package.parent)
        listed.append(package.parent)
    libraries += [package, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platlib"))]
    libraries += [Path(prefix) / "lib" for prefix in (sys.prefix, sys.base_prefix)]
    libraries += [Path(one) for one in os.environ.get("LD_LIBRARY_PATH", "").split(":") if one]
    readable = [*libraries, *map(Path, _SYSTEM_LIBRARIES + _ABOUT_THE_MACHINE), *_files(folder)]
    devices = [Path(one) for one in _DEVICES]
    if device != "cpu":
        readable += [Path(one) for one in _DRIVER_FILES]
        devices += [one for name in _DRIVER_DEVICES for one in Path("/dev").glob(name)]
    return Openings(tuple(readable), tuple(devices), tuple(listed))


def _files(folder: Path) -> list[Path]:
    """A model's folder, and the files elsewhere that links in it stand for.

    The hub's cache keeps each file once, in a folder of blobs, and links to it by name.
    """
    links: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() and len(links) < MAX_LINKS:
                links.append(Path(entry.path).resolve())
    return [folder, *(link for link in links if link.is_file())]
