"""What facts about a machine and its network mean for a node, and what to do about it. Pure."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from gennode.errors import ResourceError, UsageError
from gennode.mesh.p2pd.daemon import MAX_OPEN_FILES
from gennode.node.doctor.diagnosis_compute import diagnose_compute
from gennode.node.doctor.diagnosis_network import diagnose_network
from gennode.node.doctor.facts import Disk, Facts, Failure, Model, Network, OwnNode, Package
from gennode.node.doctor.finding import Finding, fail, failed, ok, size_text, skip, warn

# A worker holds 14 files and its daemon 8 before the first peer comes. Each peer costs two
# streams or more, and each stream one file in the worker and two in the daemon.
MIN_OPEN_FILES = 128
LOW_OPEN_FILES = 1024

MIN_STATE_BYTES = 16 * 1024 * 1024  # a key, a lock and what is remembered of peers: some MiB
LOW_CACHE_BYTES = 1024**3  # two layers of an 8 B model in bf16, such as peers send

# Of go-libp2p-daemon v0.5.0.hivemind1, as hivemind 1.1.12 ships it (P2P_BINARY_HASH in its
# setup.py): for Linux on x86-64 and arm64, then for macOS on both.
KNOWN_BINARIES = frozenset(
    {
        "42f8f48e62583b97cdba3c31439c08029fb2b9fc506b5bdd82c46b7cc1d279d8",
        "046f18480c785a84bdf139d7486086d379397ca106cb2f0191598da32f81447a",
        "fe00f9d79e8e4e4c007144d19da10b706c84187b3fb84de170f4664c91ecda80",
        "0404981a9c2b7cab5425ead2633d006c61c2c7ec85ac564ef69413ed470e65bd",
    }
)
_OTHERS_MODE = 0o077
_MIB = 1024**2


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Every check in the order in which it would stop a node."""
    return (
        _python(facts.python),
        _packages(facts.packages),
        *_daemon(facts),
        _temporary(facts),
        _open_files(facts),
        *_state(facts),
        _disk(facts.state_disk, "disk (state)", MIN_STATE_BYTES, is_vital=True),
        _disk(facts.cache_disk, "disk (cache)", LOW_CACHE_BYTES, is_vital=False),
        _model(facts),
        _memory(facts),
        *diagnose_compute(facts),
        _port(facts),
        *diagnose_network(facts),
    )


# -- what is installed ------------------------------------------------------------------------


def _fits(package: Package) -> bool:
    if package.installed is None:
        return False
    try:
        version = Version(package.installed)
    except InvalidVersion:
        return True  # a private build, which only whoever made it can judge
    return SpecifierSet(package.wanted).contains(version, prereleases=True)


def _python(python: Package | Failure) -> Finding:
    if isinstance(python, Failure):
        return failed("python", python)
    if _fits(python):
        return ok("python", f"{python.installed}")
    words = f"{python.installed} is not {python.wanted}"
    fix = f"make a virtual environment with a Python {python.wanted}, and install gennode there"
    return fail("python", words, fix, UsageError)


def _packages(packages: tuple[Package, ...] | Failure) -> Finding:
    if isinstance(packages, Failure):
        return failed("packages", packages)
    wrong = [package for package in packages if not _fits(package)]
    if not wrong:
        return ok("packages", f"all {len(packages)} are in the versions wanted")
    words = ", ".join(f"{package.name} is {package.installed or 'missing'}" for package in wrong)
    wanted = (shlex.quote(f"{package.name}{package.wanted}") for package in wrong)
    return fail("packages", words, f"pip install {' '.join(wanted)}", UsageError)


def _daemon(facts: Facts) -> Iterator[Finding]:
    binary, network = facts.binary, facts.network
    if isinstance(binary, Failure):
        yield failed("daemon", binary)
        return
    if isinstance(network, Failure):
        yield failed("daemon", network)
    elif isinstance(network, Network):
        yield ok("daemon", f"the libp2p daemon starts in {network.start_s:.1f} s")
    else:
        yield skip("daemon", "not started: it could not listen, see port")
    if binary.sha256 not in KNOWN_BINARIES:
        yield warn(
            "daemon file",
            f"{binary.path} is none of the programs that gennode was tried with",
            "pip install --force-reinstall --no-deps hivemind==1.1.12",
        )


# -- the machine ------------------------------------------------------------------------------


def _temporary(facts: Facts) -> Finding:
    temporary = facts.temporary
    if isinstance(temporary, Failure):
        return failed("temporary folder", temporary)
    if temporary.socket_path_bytes <= temporary.max_socket_path_bytes:
        return ok("temporary folder", f"{temporary.path} is short enough for sockets")
    return warn(
        "temporary folder",
        f"{temporary.path} is too long for the path of a socket, so they go to /tmp",
        "set TMPDIR to a shorter path",
    )


def _open_files(facts: Facts) -> Finding:
    limits = facts.open_files
    if isinstance(limits, Failure):
        return failed("open files", limits)
    words = "no limit" if limits.soft == sys.maxsize else f"at most {limits.soft} at a time"
    if limits.soft >= LOW_OPEN_FILES:
        return ok("open files", words)
    if limits.hard > limits.soft:
        fix = f"run `ulimit -n {min(limits.hard, MAX_OPEN_FILES)}` before gennode"
    else:
        fix = f"raise the hard limit to {MAX_OPEN_FILES}, such as in /etc/security/limits.conf"
    if limits.soft < MIN_OPEN_FILES:
        return fail("open files", words, fix, ResourceError)
    return warn("open files", f"{words}: too few for many peers", fix)


def _disk(disk: Disk | Failure, check: str, wanted_bytes: int, *, is_vital: bool) -> Finding:
    if isinstance(disk, Failure):
        return failed(check, disk)
    words = f"{size_text(disk.free_bytes)} free for {disk.path}"
    if disk.free_bytes >= wanted_bytes:
        return ok(check, words)
    fix = f"make {size_text(wanted_bytes)} free there"
    if is_vital:
        return fail(check, words, f"{fix}, or choose another folder with --state", ResourceError)
    return warn(check, words, f"{fix}; weights that come from peers need it")


def _memory(facts: Facts) -> Finding:
    memory, model = facts.memory, facts.model
    if isinstance(memory, Failure):
        return failed("memory", memory)
    allowed = size_text(memory.allowed_bytes)
    if not isinstance(model, Model):
        return skip("memory", f"{allowed}; how many layers these hold, the model does not say yet")
    if model.fitting_layers == 0:
        words = (
            f"{allowed} hold no layer: each takes {size_text(model.layer_bytes)} with its caches"
        )
        fix = "choose a smaller model, or a machine with more memory"
        if memory.available_bytes >= model.layer_bytes:
            fix = f"give more with --memory {-(-model.layer_bytes // _MIB)}M"
        return fail("memory", words, fix, ResourceError)
    words = f"{allowed} hold {model.fitting_layers} of {model.layers} layers"
    if memory.allowed_bytes > memory.available_bytes:
        free = size_text(memory.available_bytes)
        fix = f"--memory {memory.available_bytes // 2 // _MIB}M, or end other programs"
        return warn("memory", f"{words}, but only {free} are free", fix)
    return ok("memory", words)


def _model(facts: Facts) -> Finding:
    model = facts.model
    if model is None:
        return skip("model", f"{facts.wanted.model[:12]}… comes from peers")
    if isinstance(model, Failure):
        return failed("model", model)
    words = f"{facts.wanted.model} opens: {model.layers} layers"
    if not model.is_hashed:
        return skip("model", f"{words}; too large to be hashed here, `gennode join` will do so")
    return ok("model", words)


# -- the node ---------------------------------------------------------------------------------


def _state(facts: Facts) -> Iterator[Finding]:
    state = facts.state
    if isinstance(state, Failure):
        yield failed("state folder", state)
        return
    if not state.is_writable:
        fix = "choose another folder with --state, or make this one yours with chown"
        yield fail("state folder", f"{state.path} is not ours to write", fix, ResourceError)
    elif state.mode is None:
        yield ok("state folder", f"{state.path} will be made")
    elif state.mode & _OTHERS_MODE:
        words = f"{state.path} is open to others on this machine"
        yield warn("state folder", words, f"chmod 700 {shlex.quote(state.path)}")
    else:
        yield ok("state folder", f"{state.path} is ours alone")
    if isinstance(state.key, Failure):
        yield failed("key", state.key)
    else:
        yield ok("key", state.key or "will be made at the first start")
    if isinstance(state.node, Failure):
        yield failed("node", state.node)
    elif state.node is not None:
        yield _node(state.node)


def _node(node: OwnNode) -> Finding:
    if node.rival is None:
        return ok("node", f"it runs; workers that it knows: {node.workers}")
    where = " or ".join(node.rival) or "an address that nobody knows"
    fix = "stop one of them, or give it a folder of its own with --state: keys are never shared"
    return fail("node", f"another node runs with its key, at {where}", fix, UsageError)


def _port(facts: Facts) -> Finding:
    wanted, taken = facts.wanted, facts.listening
    where = f"{wanted.host} port {wanted.port}" if wanted.port else f"{wanted.host}, any port,"
    if taken is None:
        return ok("port", f"{where} is free")
    node = None if isinstance(facts.state, Failure) else facts.state.node
    if isinstance(node, OwnNode) and wanted.port in [port for _, port in node.endpoints]:
        return ok("port", f"the node that runs holds {where}")
    return failed("port", taken)
