"""Peers that are alone for long, or asleep, and then are not: they go on being known."""

from __future__ import annotations

from gennode.mesh.directory.netgroup import LOCAL
from gennode.wire.messages import Announcements
from tests.mesh.announcing import make, numbers, publish


def test_a_peer_that_is_alone_lives_on_and_is_told_of_when_somebody_comes() -> None:
    lone, newcomer = make(0), make(1)
    publish(lone, 0, 0.0)
    for second in range(1, 121):
        lone.tick(float(second), {})
    assert numbers(lone, 120.0) == [0]
    sent = lone.tick(121.0, {newcomer.peer: LOCAL})
    for _, message in sent:
        newcomer.receive(lone.peer, message, 121.0)
    assert numbers(newcomer, 121.0) == [0]


def test_a_peer_that_slept_is_known_again_with_its_first_tick() -> None:
    sleeper, awake = make(0), make(1)
    publish(sleeper, 0, 0.0)
    for _, message in sleeper.tick(0.0, {awake.peer: LOCAL}):
        awake.receive(sleeper.peer, message, 0.0)
    assert numbers(awake, 0.0) == [0]
    for second in range(1, 101):
        awake.tick(float(second), {})
    assert numbers(awake, 100.0) == []
    woken = sleeper.tick(100.0, {awake.peer: LOCAL})
    told = [message for _, message in woken if isinstance(message, Announcements)]
    assert told
    for message in told:
        awake.receive(sleeper.peer, message, 100.0)
    assert numbers(awake, 100.0) == [0]
    assert numbers(sleeper, 100.0) == [0]
