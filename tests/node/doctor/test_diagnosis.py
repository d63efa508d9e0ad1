"""Each fault that a machine can have is found, at its level, with what helps."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from gennode.node.doctor.diagnosis import diagnose
from gennode.node.doctor.facts import (
    Binary,
    Disk,
    Facts,
    Failure,
    Memory,
    Model,
    OpenFiles,
    OwnNode,
    Package,
    Temporary,
)
from gennode.node.doctor.finding import Finding, Level, exit_code
from gennode.wire.signing import Key
from tests.node.healthy import FACTS, GIB, STATE

REFUSED = Failure("it is refused", "ask for it", 4)
OWN = OwnNode(Key(bytes(32)).peer, ("/ip4/127.0.0.1/tcp/4001/p2p/x",), 3)


def found(facts: Facts, check: str) -> Finding:
    """The one finding of a check."""
    (finding,) = [each for each in diagnose(facts) if each.check == check]
    return finding


def test_nothing_is_wrong_on_a_healthy_machine() -> None:
    findings = diagnose(FACTS)
    assert {each.level for each in findings} == {Level.OK, Level.SKIP}
    assert [each.check for each in findings if each.level is Level.SKIP] == ["relay"]
    assert exit_code(findings) == 0


FAULTS = [
    ("python", replace(FACTS, python=Package("python", "3.10.9", ">=3.11")), Level.FAIL, 2),
    ("packages", replace(FACTS, packages=(Package("torch", "2.1.0", ">=2.10"),)), Level.FAIL, 2),
    ("packages", replace(FACTS, packages=(Package("rich", None, ">=14"),)), Level.FAIL, 2),
    ("packages", replace(FACTS, packages=REFUSED), Level.FAIL, 4),
    ("daemon", replace(FACTS, binary=REFUSED), Level.FAIL, 4),
    ("daemon", replace(FACTS, network=REFUSED), Level.FAIL, 4),
    ("daemon file", replace(FACTS, binary=Binary("/p2pd", "0" * 64)), Level.WARN, 0),
    ("temporary folder", replace(FACTS, temporary=Temporary("/long", 91, 90)), Level.WARN, 0),
    ("temporary folder", replace(FACTS, temporary=REFUSED), Level.FAIL, 4),
    ("open files", replace(FACTS, open_files=OpenFiles(64, 4096)), Level.FAIL, 6),
    ("open files", replace(FACTS, open_files=OpenFiles(256, sys.maxsize)), Level.WARN, 0),
    ("open files", replace(FACTS, open_files=OpenFiles(256, 256)), Level.WARN, 0),
    ("state folder", replace(FACTS, state=REFUSED), Level.FAIL, 4),
    ("state folder", replace(FACTS, state=replace(STATE, is_writable=False)), Level.FAIL, 6),
    ("state folder", replace(FACTS, state=replace(STATE, mode=0o755)), Level.WARN, 0),
    ("key", replace(FACTS, state=replace(STATE, key=REFUSED)), Level.FAIL, 4),
    ("node", replace(FACTS, state=replace(STATE, node=REFUSED)), Level.FAIL, 4),
    ("node", replace(FACTS, state=replace(STATE, node=replace(OWN, rival=()))), Level.FAIL, 2),
    ("disk (state)", replace(FACTS, state_disk=Disk("/state", 1000)), Level.FAIL, 6),
    ("disk (cache)", replace(FACTS, cache_disk=Disk("/cache", 1000)), Level.WARN, 0),
    ("model", replace(FACTS, model=REFUSED), Level.FAIL, 4),
    ("memory", replace(FACTS, model=Model("/model", 22, GIB, 0, True)), Level.FAIL, 6),
    ("memory", replace(FACTS, memory=Memory(16 * GIB, GIB, 6 * GIB)), Level.WARN, 0),
    ("port", replace(FACTS, listening=REFUSED), Level.FAIL, 4),
]


@pytest.mark.parametrize(("check", "facts", "level", "code"), FAULTS)
def test_a_fault_is_found(check: str, facts: Facts, level: Level, code: int) -> None:
    finding = found(facts, check)
    assert finding.level is level
    assert finding.words
    assert finding.fix
    assert finding.exit_code == code
    assert exit_code(diagnose(facts)) == code


@pytest.mark.parametrize(
    ("check", "facts", "words"),
    [
        ("state folder", replace(FACTS, state=replace(STATE, mode=None)), "will be made"),
        ("key", replace(FACTS, state=replace(STATE, key=None)), "will be made"),
        ("node", replace(FACTS, state=replace(STATE, node=OWN)), "workers that it knows: 3"),
        ("open files", replace(FACTS, open_files=OpenFiles(sys.maxsize, sys.maxsize)), "no limit"),
        ("packages", replace(FACTS, packages=(Package("x", "built-by-me", ">=1"),)), "all 1"),
        ("packages", replace(FACTS, packages=(Package("x", "2rc1", ">=1"),)), "all 1"),
        (
            "port",
            replace(FACTS, listening=REFUSED, state=replace(STATE, node=OWN)),
            "the node that runs",
        ),
    ],
)
def test_what_is_well_is_said(check: str, facts: Facts, words: str) -> None:
    finding = found(facts, check)
    assert finding.level is Level.OK
    assert words in finding.words


def test_a_fix_can_be_typed() -> None:
    old = (Package("torch", "2.1.0", ">=2.10"), Package("rich", None, ">=14"))
    assert found(replace(FACTS, packages=old), "packages").fix == (
        "pip install 'torch>=2.10' 'rich>=14'"
    )
    open_to_all = replace(FACTS, state=replace(STATE, path="/my state", mode=0o755))
    assert found(open_to_all, "state folder").fix == "chmod 700 '/my state'"
    too_little = replace(FACTS, model=Model("/model", 22, GIB, 0, True))
    assert found(too_little, "memory").fix == "give more with --memory 1024M"
    never_enough = replace(too_little, memory=Memory(GIB, GIB // 2, GIB // 4))
    assert "smaller model" in found(never_enough, "memory").fix


def test_what_another_fault_hides_is_skipped_with_a_reason() -> None:
    unopened = replace(FACTS, model=REFUSED)
    assert found(unopened, "memory").level is Level.SKIP
    unfetched = replace(FACTS, model=None)
    assert found(unfetched, "model").level is found(unfetched, "memory").level is Level.SKIP
    unheard = replace(FACTS, listening=REFUSED, network=None)
    assert found(unheard, "daemon").level is Level.SKIP
    assert found(unheard, "network").level is Level.SKIP
    large = replace(FACTS, model=Model("/model", 22, GIB, 4, False))
    assert found(large, "model").level is Level.SKIP


def test_a_failure_without_advice_asks_for_a_report() -> None:
    broken = replace(FACTS, packages=Failure("this check broke", "", 1))
    assert "report" in found(broken, "packages").fix
