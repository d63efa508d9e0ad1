"""Links are cut in the middle of an answer, one way or both, for some or all; and packets lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from localnet import namespaces
from localnet.natlab import Lab, Link
from tests.faults.stage import ASKER, Stage, Worker, measured

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        bool(namespaces.available()),
        reason=f"NO NAMESPACES, so links are not cut: {namespaces.available()}",
    ),
]

SAME = "the same tokens"
FAR = Link(delay_ms=50.0, loss=0.0253)  # on both ends: 200 ms there and back, 5 % lost each way
FAR_TOKENS = 8

CUTS = {  # what the last hop of a route drops
    "the last hop hears all and says nothing": ["OUTPUT -o wan0"],
    "the last hop says what it can and hears nothing": ["INPUT -i wan0"],
    "the owner and the last hop are parted": ["INPUT -s {owner}", "OUTPUT -d {owner}"],
    "both hops are parted, and see the owner": ["INPUT -s {before}", "OUTPUT -d {before}"],
}


def lab_of(stage: Stage) -> Lab:
    """The lab in which the swarm's hosts are."""
    assert stage.lab is not None
    return stage.lab


def host(worker: Worker) -> str:
    """A worker's host in the lab."""
    return worker.folder.name


@contextmanager
def dropping(lab: Lab, name: str, rules: list[str]) -> Iterator[None]:
    """Have a host drop packets meanwhile."""
    for rule in rules:
        lab.run(name, ["iptables", "-A", *rule.split(), "-j", "DROP"])
    try:
        yield
    finally:
        lab.run(name, ["iptables", "-F"])


@contextmanager
def cut_off(lab: Lab, name: str) -> Iterator[None]:
    """Part a host from all others meanwhile."""
    lab.partition(name)
    try:
        yield
    finally:
        lab.heal(name)


def test_a_worker_is_cut_off_and_comes_back(stage: Stage) -> None:
    lab = lab_of(stage)
    stage.asker.ask(pause_at=[8])
    path = stage.asker.paused()
    victim = stage.on(path)[-1]
    [spare] = [one for one in stage.others(path) if one.span == victim.span]
    with cut_off(lab, host(victim)):
        stage.asker.go()
        answer = stage.asker.answer()
    assert answer["tokens"] == stage.truth
    measured("the last hop is cut off", SAME, f"same; gap {answer['longest_gap_s']:.2f} s")

    with cut_off(lab, host(spare)):
        stage.asker.ask(pause_at=[8])
        assert victim in stage.on(stage.asker.paused())
        stage.asker.go()
        assert stage.asker.answer()["tokens"] == stage.truth
    measured("it is back, and its replica cut off", "it serves again", SAME)


@pytest.mark.parametrize("fault", CUTS)
def test_some_links_carry_nothing_or_carry_one_way(stage: Stage, fault: str) -> None:
    lab = lab_of(stage)
    stage.asker.ask(pause_at=[8])
    before, victim = stage.on(stage.asker.paused())
    places = {"owner": lab.address(ASKER), "before": lab.address(host(before))}
    with dropping(lab, host(victim), [rule.format(**places) for rule in CUTS[fault]]):
        stage.asker.go()
        answer = stage.asker.answer()
    assert answer["tokens"] == stage.truth
    measured(fault, SAME, f"same; gap {answer['longest_gap_s']:.2f} s")


def test_a_link_flaps(stage: Stage) -> None:
    """Cut at one pause, healed at the next, whoever is the last hop by then."""
    lab = lab_of(stage)
    stage.asker.ask(pause_at=[8, 16, 24, 32])
    for _ in range(2):
        with cut_off(lab, host(stage.on(stage.asker.paused())[-1])):
            stage.asker.go()
            stage.asker.paused()
        stage.asker.go()
    answer = stage.asker.answer()
    assert answer["tokens"] == stage.truth
    gap = f"same; {len(answer['repairs'])} repairs; longest gap {answer['longest_gap_s']:.2f} s"
    measured("a link is cut, healed, cut, healed", SAME, gap)


def test_far_away_with_losses(stage: Stage) -> None:
    """It takes its time; the tokens are right."""
    lab = lab_of(stage)
    hosts = (ASKER, *map(host, stage.workers))
    for name in hosts:
        lab.set_link(name, FAR)
    try:
        stage.asker.ask(tokens=FAR_TOKENS)
        answer = stage.asker.answer()
    finally:
        for name in hosts:
            lab.set_link(name, Link())
    assert answer["tokens"] == stage.truth[:FAR_TOKENS]
    gap = f"same; {len(answer['repairs'])} repairs; longest gap {answer['longest_gap_s']:.2f} s"
    measured("200 ms there and back, 5 % of packets lost", SAME, gap)
