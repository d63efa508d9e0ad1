"""`gennode doctor` behind real routers of every kind: it says what they are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localnet.natlab import Home, Lab, Link, Nat, available

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(available()), reason=f"NO NAT LAB HERE: {available()}"),
]
RELAYS = ("relay1", "relay2", "relay3", "relay4")
OTHERS = ("plain5", "plain6")  # that observe and do not relay

_OBSERVER = """
import asyncio, sys
from gennode.mesh.reach.observer import Observer
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.mesh.p2pd.roles import Role
from gennode.wire.signing import Key

async def main(number, host, role):
    key = Key(bytes([int(number)]) * 32)
    transport = await P2pdTransport.start(key, host=host, port=4001, role=Role(role))
    async with asyncio.TaskGroup() as tasks:
        await Observer(transport, tasks).start()
        print(*transport.addresses(), flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    homes = {str(nat): Home(nat, Link(delay_ms=10)) for nat in Nat}
    with Lab(homes, dict.fromkeys((*RELAYS, *OTHERS), Link(delay_ms=20))) as lab:
        yield lab


@pytest.fixture(scope="module")
def relays(lab: Lab) -> list[str]:
    return [option for name in RELAYS for option in observer(lab, name, "relay")]


@pytest.fixture(scope="module")
def others(lab: Lab) -> list[str]:
    return [option for name in OTHERS for option in observer(lab, name, "public")]


def observer(lab: Lab, name: str, role: str) -> tuple[str, str]:
    """Start one; how to meet it."""
    command = [sys.executable, "-c", _OBSERVER, name[-1], lab.address(name), role]
    output = lab.popen(name, command, stdout=subprocess.PIPE, text=True).stdout
    assert output is not None
    with output:
        return "--bootstrap", output.readline().strip()


def examined(lab: Lab, home: str, state: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the findings of a home, by check; of the relays the last."""
    command = [sys.executable, "-m", "gennode", "doctor", "--json", "--model", "gennode-small"]
    where = ["--state", str(state), "--port", "4001"]
    ended = lab.run(home, [*command, *where, *options], check=False)
    told = json.loads(ended.stdout)
    return ended.returncode, {finding["check"]: finding for finding in told["findings"]}


@pytest.mark.parametrize(
    ("home", "nat", "reach", "level"),
    [
        (Nat.OPEN, "none", "direct", "ok"),
        (Nat.FULL_CONE, "cone", "direct", "ok"),
        (Nat.CONE, "cone", "punchable", "ok"),
        (Nat.SYMMETRIC, "symmetric", "relay only", "warn"),
    ],
)
def test_a_home_is_told_what_its_router_does(
    home: str, nat: str, reach: str, level: str, lab: Lab, relays: list[str], tmp_path: Path
) -> None:
    code, findings = examined(lab, home, tmp_path, *relays)
    assert code == 0
    assert findings["nat"]["words"].startswith(nat)
    assert findings["reachability"]["words"].startswith(reach)
    assert findings["reachability"]["level"] == level
    assert findings["clock"]["level"] == findings["observers"]["level"] == "ok"


def test_a_home_that_nobody_carries_for_is_unreachable(
    lab: Lab, others: list[str], tmp_path: Path
) -> None:
    code, findings = examined(lab, Nat.SYMMETRIC, tmp_path, *others)
    assert code == 4
    assert findings["reachability"]["words"].startswith("unreachable")
    assert "router" in findings["reachability"]["fix"]
    assert findings["relay"]["level"] == "fail"
    assert findings["bootstrap"]["level"] == "ok"


def test_a_home_without_internet_is_told_so(lab: Lab, relays: list[str], tmp_path: Path) -> None:
    lab.unplug(Nat.CONE)
    code, findings = examined(lab, Nat.CONE, tmp_path, *relays)
    lab.plug(Nat.CONE)
    assert code == 4
    assert findings["bootstrap"]["level"] == "fail"
    assert "unreachable" in findings["bootstrap"]["words"]
