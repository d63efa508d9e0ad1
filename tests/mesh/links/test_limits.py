"""Allowances: floods wait, others don't; nothing is remembered for ever."""

from __future__ import annotations

from gennode.mesh.links import limits
from gennode.mesh.links.limits import Allowances, Gauges, Use, cost
from gennode.wire.ids import PeerId, SessionId
from gennode.wire.messages import Step
from gennode.wire.signing import Key
from tests.mesh.ends import ping

A, B = Key(bytes(32)).peer, Key(bytes([1]) * 32).peer
STEP = Step(SessionId(bytes(16)), 0, 0, 0, 0, 1, 1, "raw", rebuild=False)


def test_a_step_costs_less_than_what_makes_work() -> None:
    assert cost(STEP) < cost(ping(1))


def test_a_burst_is_free_and_a_flood_waits_for_as_long_as_it_takes() -> None:
    allowances = Allowances(0.0)
    assert allowances.work(A, limits.MESSAGES_BURST, 0.0) == 0.0
    assert allowances.work(A, limits.MESSAGES_PER_S, 0.0) == 1.0
    assert allowances.work(A, 0.0, 1.0) == 0.0
    assert allowances.work(A, limits.MESSAGES_PER_S, 2.0) == 0.0


def test_many_floods_wait_and_whoever_asks_for_little_does_not() -> None:
    allowances = Allowances(0.0)
    floods = [Key(bytes([7, number]) + bytes(30)).peer for number in range(16)]
    for flood in floods:
        waited_s = allowances.work(flood, limits.MESSAGES_BURST, 0.0)
    assert waited_s > 0.0  # within its own burst, but all are over theirs together
    assert allowances.work(A, 100.0, 0.0) == 0.0


def test_streams_are_counted_for_each_peer() -> None:
    allowances = Allowances(0.0)
    opened = sum(allowances.may_open(A, 0.0) for _ in range(1000))
    assert opened == limits.STREAMS_BURST
    assert allowances.may_open(B, 0.0)
    assert allowances.may_open(A, 1.0 / limits.STREAMS_PER_S)
    assert not allowances.may_open(A, 1.0 / limits.STREAMS_PER_S)


def test_the_peers_that_are_remembered_are_limited() -> None:
    allowances = Allowances(0.0)
    for number in range(limits.MAX_METERED + 10):
        allowances.work(PeerId(f"peer{number}"), 1.0, 0.0)
    assert len(allowances._messages) == limits.MAX_METERED


def test_gauges_know_the_highest() -> None:
    gauges = Gauges({"a": 10, "b": 2})
    gauges.set("a", 7)
    gauges.set("a", 3)
    assert list(gauges.uses()) == [Use("a", 10, 3, 7), Use("b", 2, 0, 0)]
