"""Floods: a full directory gives no network more than it has, and keeps those it worked with."""

from __future__ import annotations

import pytest

from gennode.mesh.directory import admission as limits
from tests.mesh.announcing import STRANGER, announced, key, make, numbers, publish, told


def test_a_full_directory_gives_no_network_more_than_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_PEERS", 10)
    one = make()
    flood = [announced(number, network="8.8") for number in range(20, 40)]
    one.receive(STRANGER, told(*flood), 0.0)
    assert numbers(one, 0.0) == list(range(20, 30))
    for number in (1, 2, 3):
        one.receive(STRANGER, told(announced(number, network=f"9.{number}")), 0.0)
    one.receive(STRANGER, told(*flood), 0.0)
    live = numbers(one, 0.0)
    assert (live[:3], len(live)) == ([1, 2, 3], 10)


def test_a_full_directory_keeps_whom_we_worked_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PEERS", 4)
    one = make()
    publish(one, 0, 0.0)
    one.receive(STRANGER, told(*(announced(number) for number in (1, 2, 3))), 0.0)
    for number in (1, 3):
        one.worked_with(key(number).peer)
    one.receive(STRANGER, told(announced(4, network="8.8")), 0.0)
    assert numbers(one, 0.0) == [0, 1, 3, 4]


def test_announcements_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HELD_BYTES", 4000)
    one = make()
    one.receive(STRANGER, told(*(announced(number) for number in range(1, 30))), 0.0)
    assert 1 < len(numbers(one, 0.0)) < 8


def test_one_network_can_tell_us_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TOLD_BY_GROUP", 3)
    one = make()
    one.receive(STRANGER, told(*(announced(number) for number in range(1, 9))), 0.0)
    one.receive(key(1).peer, told(announced(9)), 0.0)
    assert numbers(one, 0.0) == [1, 2, 3, 9]
