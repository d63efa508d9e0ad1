"""Real faults, seeded one at a time in a machine that is well, and each of them found."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from gennode.engine.checkpoint.weights import find_model
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.node.control import NodeStatus
from gennode.node.doctor.diagnosis import diagnose
from gennode.node.doctor.examine import attempt, attempt_waiting, examine
from gennode.node.doctor.facts import Facts, Failure, Wanted
from gennode.node.doctor.finding import Finding, Level, exit_code
from gennode.node.state import NodeCard, StateFolder
from gennode.wire.ids import ModelId
from gennode.wire.signing import Key

NOBODY = f"/ip4/127.0.0.1/tcp/1/p2p/{Key(bytes(32)).peer}"


@dataclass(frozen=True)
class Machine:
    """What a fault may be seeded in."""

    wanted: Wanted
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    stack: ExitStack
    binary: Path | None = None

    @property
    def state(self) -> StateFolder:
        """The state folder, made and with a key."""
        made = StateFolder(Path(self.wanted.state))
        made.prepare()
        made.key()
        return made

    def but(self, **changes: object) -> Machine:
        """The same machine, asked for something else."""
        return replace(self, wanted=replace(self.wanted, **changes))  # type: ignore[arg-type]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """One that is well."""
    wanted = Wanted(str(tmp_path / "state"), "gennode-small", "127.0.0.1", 0)
    with ExitStack() as stack:
        yield Machine(wanted, tmp_path, monkeypatch, stack)


async def examined(machine: Machine) -> tuple[Facts, tuple[Finding, ...]]:
    facts = await examine(machine.wanted, binary=machine.binary, is_measured=False)
    return facts, diagnose(facts)


async def test_a_healthy_machine_passes_and_nothing_is_changed(machine: Machine) -> None:
    facts, findings = await examined(machine)
    failing = [each for each in findings if each.level is Level.FAIL]
    assert not failing
    assert exit_code(findings) == 0
    assert [each.check for each in findings if each.level is Level.WARN] == ["reachability"]
    assert not Path(machine.wanted.state).exists()
    assert not isinstance(facts.packages, Failure)
    assert {"torch", "hivemind"} <= {package.name for package in facts.packages}
    assert not {"pytest", "ruff"} & {package.name for package in facts.packages}


def taken_port(machine: Machine) -> Machine:
    server = machine.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return machine.but(port=server.getsockname()[1])


def key_for_all(machine: Machine) -> Machine:
    (machine.state.path / "node.key").chmod(0o644)
    return machine


def spoilt_key(machine: Machine) -> Machine:
    (machine.state.path / "node.key").write_bytes(b"\x00" * 68)
    return machine


def state_for_all(machine: Machine) -> Machine:
    machine.state.path.chmod(0o755)
    return machine


def state_is_a_file(machine: Machine) -> Machine:
    Path(machine.wanted.state).write_text("")
    return machine


def state_below_a_file(machine: Machine) -> Machine:
    (machine.folder / "file").write_text("")
    return machine.but(state=str(machine.folder / "file" / "state"))


def silent_node(machine: Machine) -> Machine:
    """A process that holds the folder, and a card that leads nowhere."""
    state = machine.state
    machine.stack.enter_context(state.locked())
    gone = str(machine.folder / "gone")
    state.publish(NodeCard(state.key().peer, os.getpid(), (), gone, ModelId("0" * 64)))
    return machine


def node_without_card(machine: Machine) -> Machine:
    machine.stack.enter_context(machine.state.locked())
    return machine


def no_daemon(machine: Machine) -> Machine:
    machine.monkeypatch.setitem(sys.modules, "hivemind", None)  # as if it were not installed
    return machine


def failing_daemon(machine: Machine) -> Machine:
    binary = machine.folder / "p2pd"
    binary.write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 3\n")
    binary.chmod(0o700)
    return replace(machine, binary=binary)


def long_temporary(machine: Machine) -> Machine:
    deep = machine.folder / ("x" * 90)
    deep.mkdir()
    machine.monkeypatch.setattr("tempfile.tempdir", str(deep))
    return machine


def lost_temporary(machine: Machine) -> Machine:
    machine.monkeypatch.setattr("tempfile.tempdir", str(machine.folder / "gone"))
    return machine


def flipped_bit(machine: Machine) -> Machine:
    model = Path(shutil.copytree(find_model("gennode-small"), machine.folder / "model"))
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    return machine.but(model=str(model))


def changed(**changes: object) -> Callable[[Machine], Machine]:
    """A fault in what is asked for."""
    return lambda machine: machine.but(**changes)


FAULTS: list[tuple[Callable[[Machine], Machine], str, Level, int, str]] = [
    (taken_port, "port", Level.FAIL, 4, "in use"),
    (key_for_all, "key", Level.FAIL, 2, "read by others"),
    (spoilt_key, "key", Level.FAIL, 2, "damaged"),
    (state_for_all, "state folder", Level.WARN, 0, "open to others"),
    (state_is_a_file, "state folder", Level.FAIL, 6, "no folder"),
    (state_below_a_file, "state folder", Level.FAIL, 6, "file/state"),
    (silent_node, "node", Level.FAIL, 4, "does not answer"),
    (node_without_card, "node", Level.FAIL, 2, "not ready"),
    (no_daemon, "daemon", Level.FAIL, 4, "not installed"),
    (failing_daemon, "daemon", Level.FAIL, 4, "no such flag"),
    (failing_daemon, "daemon file", Level.WARN, 0, "none of the programs"),
    (long_temporary, "temporary folder", Level.WARN, 0, "too long"),
    (lost_temporary, "temporary folder", Level.FAIL, 6, "gone"),
    (flipped_bit, "model", Level.FAIL, 3, "chunk 0"),
    (changed(model="/no/such/model"), "model", Level.FAIL, 3, "no model"),
    (changed(memory_bytes=1000), "memory", Level.FAIL, 6, "hold no layer"),
    (changed(memory_bytes=1 << 60), "memory", Level.WARN, 0, "are free"),
    (changed(host="192.0.2.1"), "port", Level.FAIL, 4, "192.0.2.1"),
    (changed(host="localhost"), "port", Level.FAIL, 2, "no IP address"),
    (changed(bootstrap=(NOBODY,)), "bootstrap", Level.FAIL, 4, "refused"),
    (changed(bootstrap=("nonsense",)), "bootstrap", Level.FAIL, 2, "not a multiaddress"),
    (changed(bootstrap=("/ip4/127.0.0.1/tcp/1",)), "bootstrap", Level.FAIL, 2, "which peer"),
]


@pytest.mark.parametrize(("seed", "check", "level", "code", "words"), FAULTS)
async def test_a_seeded_fault_is_found(
    seed: Callable[[Machine], Machine],
    check: str,
    level: Level,
    code: int,
    words: str,
    machine: Machine,
) -> None:
    _, findings = await examined(seed(machine))
    (finding,) = [each for each in findings if each.check == check]
    assert finding.level is level
    assert finding.fix
    assert words in finding.words
    assert finding.exit_code == code
    assert exit_code(findings) == code or level is Level.WARN


@pytest.mark.parametrize(
    ("seed", "words"),
    [
        (changed(host="192.0.2.1"), "IP address of this machine"),
        (taken_port, "another port"),
        (changed(memory_bytes=1000), "--memory"),
        (key_for_all, "chmod 600"),
        (state_for_all, "chmod 700"),
        (no_daemon, "pip install hivemind"),
        (long_temporary, "TMPDIR"),
    ],
)
async def test_the_fix_fits_the_fault(
    seed: Callable[[Machine], Machine], words: str, machine: Machine
) -> None:
    _, findings = await examined(seed(machine))
    assert [each for each in findings if words in each.fix]


async def test_a_missing_device_is_found(machine: Machine) -> None:
    facts = await examine(machine.but(device="cuda:99").wanted)
    findings = diagnose(facts)
    (finding,) = [each for each in findings if each.check == "device"]
    assert (finding.level, finding.exit_code) == (Level.FAIL, 7)
    assert finding.fix


async def test_another_identity_at_a_bootstrap_is_named(machine: Machine) -> None:
    other = await P2pdTransport.start(Key(b"\x01" * 32))
    try:
        wrong = other.addresses()[0].replace(other.peer, Key(bytes(32)).peer)
        _, findings = await examined(machine.but(bootstrap=(wrong, *other.addresses())))
    finally:
        await other.close()
    lost, met = [each for each in findings if each.check == "bootstrap"]
    assert (lost.level, met.level) == (Level.WARN, Level.OK)
    assert "mismatch" in lost.words
    assert "address that it prints" in lost.fix


@pytest.mark.parametrize("rival", [None, ("/ip4/192.0.2.1/tcp/4001/p2p/x",)])
async def test_the_node_that_runs_is_asked(rival: tuple[str, ...] | None, machine: Machine) -> None:
    """Its port is no fault, but another node with its key is."""
    state, taken = machine.state, taken_port(machine)
    own = f"/ip4/127.0.0.1/tcp/{taken.wanted.port}/p2p/{state.key().peer}"
    told = NodeStatus(state.key().peer, (own,), 0, 0, 0.0, 0.0, 0, (), rival)
    control = str(machine.folder / "control")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline()
        writer.write(msgspec.json.encode(told))
        writer.close()
        await writer.wait_closed()

    with state.locked():
        state.publish(NodeCard(state.key().peer, 1, (own,), control, ModelId("0" * 64)))
        async with await asyncio.start_unix_server(answer, control):
            _, findings = await examined(taken)
    said = {each.check: each for each in findings}
    assert said["port"].level is Level.OK
    assert said["node"].level is (Level.FAIL if rival else Level.OK)
    assert not rival or rival[0] in said["node"].words
    assert exit_code(findings) == (2 if rival else 0)


async def test_progress_is_told_of_every_check(machine: Machine) -> None:
    told: list[tuple[int, int]] = []

    @contextmanager
    def progress(title: str, *, unit: str = "") -> Iterator[Callable[[int, int], None]]:
        assert title
        assert unit == "checks"
        yield lambda done, total: told.append((done, total))

    await examine(machine.wanted, is_measured=False, progress=progress)
    done = [count for count, _ in told]
    assert done == sorted(done)
    assert told[-1] == (len(told), len(told))


async def test_a_model_that_peers_have_is_no_fault(machine: Machine) -> None:
    facts, findings = await examined(machine.but(model="0" * 64))
    assert facts.model is None
    assert exit_code(findings) == 0


async def test_a_check_that_breaks_is_a_failure_of_its_own() -> None:
    def broken() -> int:
        return 1 // 0

    async def broken_later() -> int:
        return broken()

    for failure in (attempt(broken), await attempt_waiting(broken_later())):
        assert isinstance(failure, Failure)
        assert "ZeroDivisionError" in failure.words
        assert failure.exit_code == 1
