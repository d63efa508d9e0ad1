"""The lab's routers are what they say, its links do what they should, and nothing is left of it."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from gennode.errors import NetworkError, UsageError
from localnet import namespaces
from localnet.natlab import Home, Lab, Link, Nat, available

PROBE = [sys.executable, str(Path(__file__).with_name("probe.py"))]
ROOT = Path(__file__).resolve().parents[2]
HOMES = {str(nat): Home(nat) for nat in Nat} | {
    "cone": Home(Nat.CONE, mates=("mate",)),
    "cone-too": Home(Nat.CONE),
}
SILENCE = "TimeoutError"

needs_lab = pytest.mark.skipif(bool(available()), reason=f"NO NAT LAB HERE: {available()}")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(HOMES, {"near": Link(), "far": Link(delay_ms=20)}) as lab:
        for name in lab.hosts:
            serve(lab, name)
        yield lab


def serve(lab: Lab, name: str) -> None:
    output = lab.popen(name, [*PROBE, "serve"], stdout=subprocess.PIPE, text=True).stdout
    assert output is not None
    assert output.readline() == "ready\n"
    output.close()


def asked(lab: Lab, name: str, *question: object) -> str:
    return lab.run(name, [*PROBE, *map(str, question)]).stdout.strip()


def asked_at_once(lab: Lab, questions: Sequence[tuple[object, ...]]) -> list[str]:
    running = [
        lab.popen(str(name), [*PROBE, *map(str, question)], stdout=subprocess.PIPE, text=True)
        for name, *question in questions
    ]
    return [process.communicate()[0].strip() for process in running]


@needs_lab
def test_everyone_gets_out_and_only_open_routers_let_in(lab: Lab) -> None:
    out = asked_at_once(lab, [(home, "dial", lab.address("near")) for home in HOMES])
    assert [answer.split()[0] for answer in out] == [lab.address(home) for home in HOMES]
    into = asked_at_once(lab, [("near", "dial", lab.address(home)) for home in HOMES])
    reached = {home for home, answer in zip(HOMES, into, strict=True) if answer != SILENCE}
    assert reached == {"open", "full_cone"}


@needs_lab
def test_only_symmetric_routers_change_the_port_with_the_destination(lab: Lab) -> None:
    for home in HOMES:
        seen = [
            asked(lab, home, "dial", lab.address(public), 5000).split()[1]
            for public in ("near", "far")
        ]
        if home == "symmetric":
            assert "5000" not in seen
            assert len(set(seen)) == 2
        else:
            assert seen == ["5000", "5000"]


@needs_lab
def test_holes_are_punched_between_cones_and_through_no_symmetric_router(lab: Lab) -> None:
    pairs = [("cone", "cone-too", 6001), ("cone", "symmetric", 6002), ("cone-too", "no_udp", 6003)]
    calls = [
        (caller, "punch", lab.address(called), port)
        for one, other, port in pairs
        for caller, called in ((one, other), (other, one))
    ]
    assert asked_at_once(lab, calls) == [
        *("through", "through"),
        *(SILENCE, SILENCE),
        *("through", "through"),
    ]
    assert ("cone", "cone-too") in lab.flows()


@needs_lab
def test_udp_passes_all_but_one(lab: Lab) -> None:
    answers = asked_at_once(lab, [(home, "ask", lab.address("near")) for home in HOMES])
    silent = {home for home, answer in zip(HOMES, answers, strict=True) if answer == SILENCE}
    assert silent == {"no_udp"}


@needs_lab
def test_mates_share_a_router_and_reach_each_other_within(lab: Lab) -> None:
    assert lab.address("mate") == lab.address("cone")
    assert lab.home_address("mate") != lab.home_address("cone")
    before = lab.flows()
    seen = asked(lab, "mate", "dial", lab.home_address("cone")).split()[0]
    assert seen == lab.home_address("mate")
    assert lab.flows() == before
    assert asked(lab, "mate", "dial", lab.address("near")).split()[0] == lab.address("cone")


@needs_lab
def test_links_delay_as_long_as_they_should_and_change_at_once(lab: Lab) -> None:
    assert float(asked(lab, "cone", "ping", lab.address("far"))) >= 2 * 20
    lab.set_link("cone", Link(delay_ms=15))
    assert float(asked(lab, "cone", "ping", lab.address("far"))) >= 2 * (20 + 15)
    lab.set_link("cone", Link())


@needs_lab
def test_links_lose_as_much_as_they_should(lab: Lab) -> None:
    assert asked(lab, "open", "count", lab.address("near"), 2000) == "2000"
    lab.set_link("open", Link(loss=0.3))
    arrived = int(asked(lab, "open", "count", lab.address("near"), 2000))
    lab.set_link("open", Link())
    assert 0.6 < arrived / 2000 < 0.8
    assert lab.flows()["open", "near"].lost >= 2000 - arrived


@needs_lab
def test_links_are_no_faster_than_they_should(lab: Lab) -> None:
    lab.set_link("symmetric", Link(rate_mbit=8))
    took_s = float(asked(lab, "symmetric", "send", lab.address("near"), 500_000))
    lab.set_link("symmetric", Link())
    assert took_s >= 0.3  # 0.5 s less what a queue holds


@needs_lab
def test_a_partition_is_silent_and_a_pulled_plug_is_not(lab: Lab) -> None:
    near = lab.address("near")
    lab.partition("cone-too")
    assert asked(lab, "cone-too", "ask", near) == SILENCE
    lab.heal("cone-too")
    assert asked(lab, "cone-too", "ask", near).split()[0] == lab.address("cone-too")
    for name in ("cone-too", "far"):
        lab.unplug(name)
        assert asked(lab, name, "ask", near) == f"OSError {errno.ENETUNREACH}"
        lab.plug(name)
        assert asked(lab, name, "ask", near).split()[0] == lab.address(name)


@needs_lab
def test_unknown_names_are_refused(lab: Lab) -> None:
    for name in ("nobody", "mate.router", ""):
        with pytest.raises(UsageError, match="the lab has no"):
            lab.prefix(name)
    assert lab.run("cone.router", ["true"]).returncode == 0


PAIR = ({"a": Home()}, {"b": Link(delay_ms=1)})
HOLD = """
import sys, time
from localnet.natlab import Home, Lab, Link
with Lab({"a": Home()}, {"b": Link()}) as lab:
    script = "print(flush=True); input()"
    process = lab.popen("a", [sys.executable, "-c", script], stdin=-1, stdout=-1)
    process.stdout.readline()
    print(lab.family, process.pid, flush=True)
    while True:  # a signal that comes just before signal.pause() would not end that
        time.sleep(0.01)
"""


def left_of(lab: Lab) -> list[str]:
    """The lab's namespaces that still exist."""
    return namespaces.names(lab.family)


@needs_lab
def test_nothing_is_left_of_a_lab() -> None:
    with ExitStack() as stack, Lab(*PAIR) as lab:
        assert len(left_of(lab)) == 3
        command = [sys.executable, "-c", "print(flush=True); input()"]
        pipe = subprocess.PIPE
        child = stack.enter_context(lab.popen("a", command, stdin=pipe, stdout=pipe))
        assert child.stdout is not None
        child.stdout.readline()  # before that it may not have reached its namespace
    assert left_of(lab) == []
    assert child.returncode == -signal.SIGTERM
    with pytest.raises(UsageError, match="isn't up"):
        lab.flows()


@needs_lab
def test_nothing_is_left_after_an_error_or_of_a_stubborn_process() -> None:
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True)"
    command = [sys.executable, "-c", f"{ignore}; signal.pause()"]
    lab = Lab(*PAIR)
    with suppress(ZeroDivisionError), lab:
        child = lab.popen("b", command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()
        raise ZeroDivisionError
    assert left_of(lab) == []
    assert child.returncode == -signal.SIGKILL


@needs_lab
def test_nothing_is_left_of_a_lab_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(*PAIR)
    monkeypatch.setattr("localnet.natlab.rules", lambda *_: "nonsense")
    with pytest.raises(NetworkError, match="iptables-restore"), lab:
        pass
    assert left_of(lab) == []


@needs_lab
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_lab_whose_process_is_ended(number: signal.Signals) -> None:
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        family, child = holder.stdout.readline().split()
        there = namespaces.names(family)
        holder.send_signal(number)
        code = holder.wait()
    assert len(there) == 3
    assert code == -number
    if number == signal.SIGKILL:
        Lab.sweep()  # as the next lab would; one of another process may do it first
    assert namespaces.names(family) == []
    assert namespaces.owner(int(child)) == ""


@needs_lab
def test_labs_live_side_by_side() -> None:
    with Lab(*PAIR) as one, Lab(*PAIR) as other:
        for lab in (one, other):
            serve(lab, "b")
        assert one.prefix("a") != other.prefix("a")
        Lab.sweep()
        assert asked(one, "a", "ask", one.address("b")) != SILENCE
        assert ("a", "b") in one.flows()
        assert other.flows() == {}


@needs_lab
def test_the_same_seed_loses_the_same() -> None:
    def lost() -> str:
        with Lab({}, {"a": Link(loss=0.5), "b": Link()}, seed=5) as lab:
            serve(lab, "b")
            return asked(lab, "a", "count", lab.address("b"), 500)

    assert lost() == lost()


@pytest.mark.parametrize(
    ("homes", "public"),
    [
        ({"a": Home()}, {"a": Link()}),
        ({"a": Home(mates=("b",)), "b": Home()}, {}),
        ({"a": Home(mates=("a",))}, {}),
        ({"../a": Home()}, {}),
        ({}, {f"p{number}": Link() for number in range(101)}),
    ],
)
def test_names_and_numbers_that_cannot_be_served(
    homes: dict[str, Home], public: dict[str, Link]
) -> None:
    with pytest.raises(UsageError):
        Lab(homes, public)
