"""Starting the libp2p daemon as a child that dies with us, and hearing when it dies first."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gennode.errors import GennodeError, NetworkError
from gennode.mesh import multiaddr
from gennode.mesh.p2pd.roles import Role, role_environment, role_flags
from gennode.wire.signing import Key

START_TIMEOUT_S = 15.0  # a cold start on a loaded machine with a slow disk takes some 5 s
STOP_TIMEOUT_S = 3.0
MAX_OUTPUT_BYTES = 8 * 1024  # of what the daemon prints, the end is kept for error messages

# The daemon's own resource manager has no limits, so that it is capped from outside.
MEMORY_BYTES = 1024 * 1024 * 1024  # soft: Go collects harder above; 150 MB seen under load
MAX_ADDRESS_SPACE_BYTES = 3 * 1024**3  # hard: then it dies, and is restarted; 0.7 GiB is usual
MAX_OPEN_FILES = 4096
CONNECTIONS_HIGH = 512  # above this many the daemon closes idle ones down to CONNECTIONS_LOW
CONNECTIONS_LOW = 384

# The guard waits for the daemon. Its watcher reads a pipe that only our process holds open: on
# a line it kills the daemon, for us to start another. When we end, however we end, the pipe
# ends, and the watcher clears up as well.
_GUARD = """
exec 3<&0
ulimit -n "$1" 2>/dev/null
ulimit -v "$2" 2>/dev/null
folder=$3
shift 3
"$@" </dev/null 3<&- &
daemon=$!
( exec >/dev/null 2>&1; read -r _ <&3 || rm -rf -- "$folder"; kill -9 "$daemon" ) &
watcher=$!
wait "$daemon"
status=$?
kill -9 "$watcher" 2>/dev/null
exit "$status"
"""


def find_binary() -> Path:
    """The daemon's path inside the hivemind package, which is never imported."""
    hint = "pip install hivemind==1.1.12 (Linux or macOS), which carries it"
    found = importlib.util.find_spec("hivemind")
    for folder in (found.submodule_search_locations or []) if found else []:
        binary = Path(folder) / "hivemind_cli" / "p2pd"
        if binary.is_file():
            return binary
    raise NetworkError("the libp2p daemon p2pd is not installed", hint=hint)


def write_key(path: Path, key: Key) -> None:
    """Write the daemon's identity, readable by us alone from the first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.to_libp2p())


@dataclass(frozen=True)
class DaemonOptions:
    """How a daemon is to run. `listen`: (IP address, port), port 0 for any free one.

    `announce`: multiaddresses to tell others instead of the ones listened on. `relays`: those
    that a node behind a NAT may use. `binary`: another daemon than the installed one.
    """

    listen: tuple[str, int]
    role: Role = Role.LOCAL
    relays: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    binary: Path | None = None


def arguments(folder: Path, options: DaemonOptions) -> list[str]:
    """The daemon's flags: TCP and Noise only, and what the role asks for."""
    host, port = options.listen
    family = "ip6" if ":" in host else "ip4"
    address = f"/{family}/{host}/tcp/{port}"
    for text in (address, *options.announce, *options.relays):
        multiaddr.to_bytes(text)
    flags = [
        f"-listen=/unix{folder}/control",
        f"-id={folder}/key",
        f"-hostAddrs={address}",
        *role_flags(options.role, options.relays),
        "-bootstrapPeers=",  # by default: the public IPFS network
        "-noise=1", "-tls=0", "-connManager",
        f"-connHi={CONNECTIONS_HIGH}", f"-connLo={CONNECTIONS_LOW}",
    ]  # fmt: skip
    told = options.announce
    return [*flags, f"-announceAddrs={','.join(told)}"] if told else flags


class _Output(asyncio.SubprocessProtocol):
    """Collects what the daemon prints; tells when it is ready and when it has ended."""

    def __init__(self, ready: asyncio.Future[None], ended: asyncio.Future[None]) -> None:
        self._ready = ready
        self._ended = ended
        self.text = bytearray()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.text += data
        del self.text[:-MAX_OUTPUT_BYTES]
        if b"Peer Addrs:" in self.text and not self._ready.done():
            self._ready.set_result(None)

    def process_exited(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


class Daemon:
    """A running daemon. `control` is the path of its control socket, in a private folder.

    The folder outlives the daemon, but not our process.
    """

    def __init__(self, folder: Path, on_exit: Callable[[str], None]) -> None:
        """`on_exit` is called once with the reason, when the daemon dies before `stop`."""
        self._folder = folder
        self.control = str(folder / "control")
        self._on_exit = on_exit
        self._stopping = False
        self._process: asyncio.SubprocessTransport | None = None
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._output = _Output(self._ready, self._ended)

    @classmethod
    async def start(
        cls,
        key: Key,
        folder: Path,
        options: DaemonOptions,
        *,
        on_exit: Callable[[str], None],
    ) -> Daemon:
        """Start a daemon that has its sockets in `folder`.

        NetworkError if it is missing or does not come up in time. It would share a port that is
        taken: see `check_free`.
        """
        program = options.binary or find_binary()
        daemon = cls(folder, on_exit)
        try:
            for left in ("control", "key"):
                (folder / left).unlink(missing_ok=True)
            write_key(folder / "key", key)
            command = [str(program), *arguments(folder, options)]
            await daemon._spawn(command, role_environment(options.role))
        except OSError as error:
            await daemon.stop()
            hint = "is the temporary folder there, with room in it?"
            raise NetworkError(f"the libp2p daemon can't be started: {error}", hint=hint) from error
        except (GennodeError, asyncio.CancelledError):
            await daemon.stop()
            raise
        return daemon

    async def _spawn(self, command: list[str], environment: dict[str, str]) -> None:
        loop = asyncio.get_running_loop()
        spawned: asyncio.Future[None] = loop.create_future()

        async def spawn() -> None:
            try:
                self._process, _ = await loop.subprocess_exec(
                    lambda: self._output,
                    "/bin/sh", "-c", _GUARD, "sh", str(MAX_OPEN_FILES),
                    str(MAX_ADDRESS_SPACE_BYTES // 1024), str(self._folder), *command,
                    start_new_session=True,  # Ctrl-C must reach us first, not the daemon
                    env={**os.environ, "GOMEMLIMIT": str(MEMORY_BYTES), **environment},
                )  # fmt: skip
            finally:
                spawned.set_result(None)

        try:
            await asyncio.shield(spawn())
        except asyncio.CancelledError:
            await spawned  # cancelled in there, Python 3.11 waits for ever; `stop` ends the child
            raise
        waiting = {self._ready, self._ended}
        await asyncio.wait(waiting, timeout=START_TIMEOUT_S, return_when="FIRST_COMPLETED")
        if self._ended.done() or not self._ready.done():
            what = "ended at once" if self._ended.done() else "did not come up in time"
            hint = "look at its own words above; is the binary made for this machine?"
            raise NetworkError(f"the libp2p daemon {what}: {self.last_words()}", hint=hint)
        (self._folder / "key").unlink()  # read once; no copy of the secret stays behind
        self._ended.add_done_callback(lambda _: self._report())

    async def ended(self) -> None:
        """Wait a moment until its end is known: its sockets close a little before."""
        await asyncio.wait({self._ended}, timeout=STOP_TIMEOUT_S)

    def last_words(self) -> str:
        """The last lines that the daemon printed."""
        text = self._output.text.decode(errors="replace").strip()
        return "\n".join(text.splitlines()[-5:]) or "it printed nothing"

    def _report(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._let_go()
            self._on_exit(f"the libp2p daemon died: {self.last_words()}")

    async def stop(self) -> None:
        """End the daemon. Idempotent."""
        self._stopping = True
        if self._process is not None:
            self._tell_watcher()
            await asyncio.wait({self._ended}, timeout=STOP_TIMEOUT_S)
            self._let_go()

    def _tell_watcher(self) -> None:
        """Have the guard's watcher kill the daemon, even where the guard itself is dead."""
        pipe = self._process.get_pipe_transport(0) if self._process is not None else None
        if isinstance(pipe, asyncio.WriteTransport):
            pipe.write(b"stop\n")
            pipe.close()

    def _let_go(self) -> None:
        self._tell_watcher()
        process, self._process = self._process, None
        if process is not None:
            process.close()
