"""From inside the jail: the model can be read, and nothing else can be reached."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from gennode.engine.child.landlock import landlock_abi
from gennode.engine.child.system import machine

ROOT = Path(__file__).resolve().parents[3]

_PRISONER = """
import ctypes, errno, json, os, signal, socket, sys, threading
from pathlib import Path
from gennode.engine.child.jail import confine_calls, confine_files, prefer_to_end_this

folder, outside, parent = Path(sys.argv[1]), Path(sys.argv[2]), os.getppid()
taken = socket.socketpair()
prefer_to_end_this()
landlock = confine_files(folder, "cpu")
early = {}
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[3])))
except OSError as error:
    early["connect"] = error.errno
threads = len(os.listdir("/proc/self/task"))
jail = confine_calls(landlock)
library = ctypes.CDLL(None, use_errno=True)

def call(*numbers):
    if library.syscall(*numbers) < 0:
        raise OSError(ctypes.get_errno(), "")

acts = {
    "read the model": lambda: (folder / "weights").read_bytes(),
    "read a blob": lambda: (folder / "linked").read_bytes(),
    "read what is open": lambda: taken[0].send(b"x"),
    "import": lambda: __import__("numpy").ones(3).sum(),
    "start a thread": lambda: threading.Thread(target=int).start(),
    "read /dev/urandom": lambda: os.close(os.open("/dev/urandom", os.O_RDONLY)),
    "read its own state": lambda: Path("/proc/self/status").read_text(),
    "read a password": lambda: open("/etc/shadow").read(),
    "read a host name": lambda: open("/etc/hostname").read(),
    "read beside the model": lambda: (outside / "secret").read_text(),
    "read beside a blob": lambda: (folder.parent.parent / "blobs" / "other").read_bytes(),
    "read the checkout": lambda: Path(sys.argv[4]).read_text(),
    "list others": lambda: os.listdir("/proc"),
    "read another's environment": lambda: open(f"/proc/{parent}/environ").read(),
    "write to the model": lambda: (folder / "weights").write_bytes(b""),
    "make a file": lambda: (outside / "made").write_text("x"),
    "remove": lambda: (outside / "secret").unlink(),
    "allow": lambda: os.chmod(outside / "secret", 0o777),
    "open a socket": lambda: socket.socket(),
    "open a unix socket": lambda: socket.socket(socket.AF_UNIX),
    "pair sockets": lambda: socket.socketpair(),
    "fork": lambda: os.fork() or os._exit(0),
    "run a program": lambda: os.execv("/bin/true", ["true"]),
    "start a program": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "signal its parent": lambda: os.kill(parent, 0),
    "trace": lambda: call(101 if sys.argv[5] == "x86_64" else 117, 16, parent, 0, 0),
    "ring": lambda: call(425, 4, ctypes.create_string_buffer(256)),
    "load into the kernel": lambda: call(321 if sys.argv[5] == "x86_64" else 280, 0, 0, 0),
    "mount": lambda: call(165 if sys.argv[5] == "x86_64" else 40, None, b"/", b"tmpfs", 0, None),
    "leave": lambda: call(272 if sys.argv[5] == "x86_64" else 97, 0x10000000),
}
done = {}
for name, act in acts.items():
    try:
        act()
        done[name] = 0
    except OSError as error:
        done[name] = error.errno
done["connect before"] = early.get("connect", 0)
score = Path("/proc/self/oom_score_adj").read_text().strip()
print(json.dumps({"jail": [jail.landlock, jail.seccomp], "score": score, "threads": threads,
                  "done": done}))
"""

ALLOWED = frozenset(
    {"read the model", "read a blob", "read what is open", "import", "start a thread"}
    | {"read /dev/urandom", "read its own state"}
)


class Report(msgspec.Struct):
    """What the prisoner tells: the error number of each act, 0 where it succeeded."""

    jail: tuple[int, bool]
    score: str
    threads: int
    done: dict[str, int]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One process that enters the jail and tries everything."""
    family = machine()
    if family is None or not landlock_abi():
        pytest.skip("this system has no landlock")
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text("secret")
    hub = tmp_path_factory.mktemp("hub")
    folder = hub / "snapshots" / "1"
    folder.mkdir(parents=True)
    (hub / "blobs").mkdir()
    for name in ("this", "other"):
        (hub / "blobs" / name).write_text(name)
    (folder / "weights").write_text("w")
    (folder / "linked").symlink_to(hub / "blobs" / "this")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        ran = subprocess.run(
            [sys.executable, "-P", "-c", _PRISONER, str(folder), str(outside), port,
             str(ROOT / "README.md"), family],
            env={"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "PATH": os.environ["PATH"]},
            capture_output=True, timeout=100, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr.decode()
    assert (outside / "secret").read_text() == "secret"
    return msgspec.json.decode(ran.stdout, type=Report)


def test_what_computing_needs_still_works(report: Report) -> None:
    assert {name for name in ALLOWED if report.done[name]} == set()


def test_nothing_else_can_be_reached(report: Report) -> None:
    assert {name for name, error in report.done.items() if not error} <= ALLOWED
    assert len(report.done) > len(ALLOWED) + 20


def test_it_says_what_holds_it(report: Report) -> None:
    assert report.jail == (landlock_abi(), True)
    assert report.threads == 1


def test_out_of_memory_it_is_the_first_to_go(report: Report) -> None:
    assert report.score == "1000"
