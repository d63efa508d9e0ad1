"""Gathering the facts for a diagnosis: in parallel, in bounded time, changing nothing."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import os
import platform
import resource
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageMetadata, PackageNotFoundError
from pathlib import Path
from typing import TypeVar

import platformdirs
import psutil
from packaging.requirements import Requirement

from gennode.engine.checkpoint.weights import find_model
from gennode.engine.child.jail import expected_jail
from gennode.engine.devices import check_device
from gennode.engine.folders import open_folder, read_folder_shape
from gennode.errors import GennodeError, LocalError, ResourceError, UsageError
from gennode.mesh.listening import MAX_SOCKET_PATH_BYTES, check_free
from gennode.mesh.p2pd.daemon import find_binary
from gennode.node.control import ask_status
from gennode.node.doctor.diagnosis_network import stays_on_loopback
from gennode.node.doctor.examine_compute import examine_compute
from gennode.node.doctor.examine_network import probe
from gennode.node.doctor.facts import (
    Binary,
    Disk,
    Facts,
    Failure,
    Memory,
    Model,
    Network,
    OpenFiles,
    OwnNode,
    Package,
    State,
    Temporary,
    Wanted,
)
from gennode.node.fetch import is_model_id
from gennode.node.progress import ShowProgress, unwatched
from gennode.node.state import StateFolder, hash_cache
from gennode.sharding.capacity import account
from gennode.wire.signing import Key

HASHING_S = 8.0  # some 10 GB from a fast disk; `gennode join` hashes what is larger

T = TypeVar("T")


async def examine(
    wanted: Wanted,
    *,
    binary: Path | None = None,
    is_measured: bool = True,
    progress: ShowProgress = unwatched,
) -> Facts:
    """Measure what a node that is started as `wanted` says would meet.

    `binary`: another daemon than the one installed. `is_measured`: with a compute process, and
    figures of its device. `progress` counts the checks, and then the steps of measuring.
    """
    with progress("examining this machine and its network", unit="checks") as report:
        tasks: list[asyncio.Task[object]] = []

        def count(_ended: object) -> None:
            report(sum(task.done() for task in tasks), len(tasks))

        async with asyncio.TaskGroup() as group:

            def look(at: Callable[[], T]) -> asyncio.Task[T | Failure]:
                task = group.create_task(asyncio.to_thread(attempt, at))
                tasks.append(task)
                task.add_done_callback(count)
                return task

            python = look(_python)
            packages = look(_packages)
            program = look(lambda: _binary(binary))
            temporary = look(_temporary)
            open_files = look(_open_files)
            state_disk = look(lambda: _disk(Path(wanted.state)))
            cache_disk = look(lambda: _disk(platformdirs.user_cache_path("gennode")))
            memory = look(lambda: _memory(wanted))
            model = look(lambda: _model(wanted))
            gpu = look(lambda: check_device("gpu"))
            tasks.append(mesh := group.create_task(_mesh(wanted, binary)))
            mesh.add_done_callback(count)
    state, listening, network = mesh.result()
    compute = None
    if is_measured:  # not sooner: hashing would take the cores, and the memory's speed
        compute = await attempt_waiting(examine_compute(wanted.device, progress))
    return Facts(
        wanted=wanted,
        python=python.result(),
        packages=packages.result(),
        binary=program.result(),
        temporary=temporary.result(),
        open_files=open_files.result(),
        state=state,
        state_disk=state_disk.result(),
        cache_disk=cache_disk.result(),
        memory=memory.result(),
        model=model.result(),
        gpu=gpu.result(),
        jail=expected_jail(),
        compute=compute,
        listening=listening,
        network=network,
    )


def attempt(look: Callable[[], T]) -> T | Failure:
    """What `look` finds, or why it can't."""
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - task root: a broken check must not end the others
        return _failure(error)


async def attempt_waiting(look: Awaitable[T]) -> T | Failure:
    """The same for what waits, such as for the network."""
    try:
        return await look
    except Exception as error:  # noqa: BLE001 - task root: a broken check must not end the others
        return _failure(error)


def _failure(error: Exception) -> Failure:
    if isinstance(error, GennodeError):
        return Failure.of(error)
    if isinstance(error, OSError):
        return Failure.of(ResourceError(str(error), hint="look at what the system says there"))
    words = f"this check broke: {type(error).__name__}: {error}"
    return Failure.of(LocalError(words, hint="report this"))


# -- the machine ------------------------------------------------------------------------------


def _own_metadata() -> PackageMetadata:
    try:
        return importlib.metadata.metadata("gennode")
    except PackageNotFoundError as error:
        hint = "pip install the folder that it lies in"
        raise UsageError("gennode runs without being installed", hint=hint) from error


def _python() -> Package:
    wanted = _own_metadata()["Requires-Python"]
    return Package("python", platform.python_version(), wanted)


def _packages() -> tuple[Package, ...]:
    """What gennode requires, extras aside, and what is installed of it."""
    found = []
    for text in _own_metadata().get_all("Requires-Dist") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = importlib.metadata.version(requirement.name)
        except PackageNotFoundError:
            installed = None
        found.append(Package(requirement.name, installed, str(requirement.specifier)))
    return tuple(found)


def _binary(binary: Path | None) -> Binary:
    path = binary or find_binary()
    with path.open("rb") as file:
        return Binary(str(path), hashlib.file_digest(file, "sha256").hexdigest())


def _temporary() -> Temporary:
    folder = tempfile.mkdtemp(prefix="gennode-")
    os.rmdir(folder)
    return Temporary(tempfile.gettempdir(), len(os.fsencode(folder)), MAX_SOCKET_PATH_BYTES)


def _open_files() -> OpenFiles:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OpenFiles(*(sys.maxsize if each == resource.RLIM_INFINITY else each for each in limits))


def _disk(path: Path) -> Disk:
    return Disk(str(path), shutil.disk_usage(_nearest(path)).free)


def _nearest(path: Path) -> Path:
    """The path itself, or the closest folder above it that exists."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def _memory(wanted: Wanted) -> Memory:
    memory = psutil.virtual_memory()
    allowed = wanted.memory_bytes or memory.available // 2
    return Memory(memory.total, memory.available, allowed)


class _OutOfTimeError(Exception):
    """Hashing takes too long."""


def _model(wanted: Wanted) -> Model | None:
    if is_model_id(wanted.model):
        return None
    path = find_model(wanted.model)
    deadline_s = time.monotonic() + HASHING_S

    def report(done_bytes: int, total_bytes: int) -> None:
        if done_bytes < total_bytes and time.monotonic() > deadline_s:
            raise _OutOfTimeError

    try:
        shape = open_folder(path, progress=report, cache=hash_cache()).manifest.shape
        is_hashed = True
    except _OutOfTimeError:
        shape, is_hashed = read_folder_shape(path), False
    found = account(shape, _memory(wanted).allowed_bytes)
    return Model(str(path), shape.layers, found.layer_bytes, found.fitting_layers, is_hashed)


# -- the node ---------------------------------------------------------------------------------


async def _mesh(
    wanted: Wanted, binary: Path | None
) -> tuple[State | Failure, Failure | None, Network | Failure | None]:
    """The node that runs, whether we can listen, and what the network then says.

    Where the port is taken, by the node that runs or by another program, any free one will do
    to look at the rest.
    """
    state = await attempt_waiting(_state(Path(wanted.state)))
    listening = _listening(wanted.host, wanted.port)
    if listening is not None and _listening(wanted.host, 0) is not None:
        return state, listening, None
    node = None if isinstance(state, Failure) else state.node
    network = await attempt_waiting(
        probe(
            wanted.host,
            wanted.port if listening is None else 0,
            bootstrap=wanted.bootstrap,
            dialled_port=_port_of(node),
            may_need_relay=not stays_on_loopback(wanted, state),
            binary=binary,
        )
    )
    return state, listening, network


def _listening(host: str, port: int) -> Failure | None:
    tried = attempt(lambda: check_free(host, port))
    return tried if isinstance(tried, Failure) else None


def _port_of(node: OwnNode | Failure | None) -> int | None:
    """The port of the node that runs."""
    found = node.endpoints if isinstance(node, OwnNode) else ()
    return next((port for _, port in found), None)


async def _state(path: Path) -> State:
    folder, nearest = StateFolder(path), _nearest(path)
    if nearest == path.absolute() and not path.is_dir():
        raise ResourceError(f"{path} is no folder", hint="choose another with --state")
    key = attempt(folder.known_key)
    return State(
        path=str(path),
        mode=stat.S_IMODE(path.stat().st_mode) if path.exists() else None,
        is_writable=nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
        key=key.peer if isinstance(key, Key) else key,
        node=await attempt_waiting(_own_node(folder)),
    )


async def _own_node(folder: StateFolder) -> OwnNode | None:
    if not folder.is_running():
        return None
    card = folder.card()
    if card is None:
        hint = "wait until it is, or stop it"
        raise UsageError(f"the node that runs from {folder.path} is not ready", hint=hint)
    status = await ask_status(card.control)
    return OwnNode(status.peer, status.addresses, len(status.workers), status.rival)
