"""Every kind of fault can be drawn, is told in words, and does what it says."""

from __future__ import annotations

import random

from gennode.engine.toy import ToyShard
from gennode.node.stories.cast import THIRDS, Cast
from gennode.node.stories.chance import Chances
from gennode.node.stories.faults import KINDS, MAX_FAULTS, MAX_LOST, Fault, plan
from gennode.node.stories.swarm import SimulatedSwarm

FINAL = {"crash", "blackout", "leave"}


def cast_of(seed: int) -> Cast:
    cast = Cast(SimulatedSwarm(seed), random.Random(seed), Chances(), ToyShard)
    for span in THIRDS:
        for _ in range(2):
            cast.add_worker(span)
    cast.add_owner()
    cast.add_owner()
    return cast


def drawn(kind: str) -> tuple[Cast, Fault]:
    """A story in which a fault of this kind is the only one."""
    looked_at = cast_of(0)
    for seed in range(3_000):
        if [fault.kind for fault in plan(random.Random(seed), looked_at, 1)] == [kind]:
            cast = cast_of(0)
            [fault] = plan(random.Random(seed), cast, 1)
            return cast, fault
    raise AssertionError(f"no story has {kind} alone")


def alive(cast: Cast) -> int:
    return sum(cast.swarm.peers[peer].alive for peer in cast.workers)


def test_all_kinds_are_drawn_and_few_workers_are_lost_for_good() -> None:
    seen, cast = set(), cast_of(0)
    for seed in range(300):
        faults = plan(random.Random(seed), cast, 3)
        assert len(faults) <= MAX_FAULTS
        assert sum(fault.kind in FINAL for fault in faults) <= MAX_LOST
        assert all(fault.told and fault.lasts_s >= 0 and fault.prompt < 3 for fault in faults)
        seen |= {fault.kind for fault in faults}
    assert seen == set(KINDS)


def test_who_crashes_is_gone_and_who_leaves_says_goodbye_first() -> None:
    for kind in sorted(FINAL):
        cast, fault = drawn(kind)
        cast.swarm.run(5.0)
        fault.strike()
        cast.swarm.run(5.0 + fault.lasts_s + 1.0)
        assert alive(cast) == 5, kind


def test_who_restarts_and_layers_that_were_gone_are_back() -> None:
    for kind, left in (("restart", 5), ("layers gone", 4)):
        cast, fault = drawn(kind)
        cast.swarm.run(5.0)
        fault.strike()
        assert alive(cast) == left
        cast.swarm.run(5.0 + fault.lasts_s + 1.0)
        assert alive(cast) == 6


def test_an_owner_vanishes_and_never_the_last_one() -> None:
    cast, fault = drawn("owner vanishes")
    fault.strike()
    assert [cast.swarm.peers[peer].alive for peer in cast.owners].count(False) == 1
    fault.strike()
    assert [cast.swarm.peers[peer].alive for peer in cast.owners].count(False) == 1


def test_a_clock_jumps_ahead() -> None:
    cast, fault = drawn("clock jump")
    before_s = {peer: cast.swarm.clock_s(peer) for peer in cast.swarm.peers}
    fault.strike()
    jumped_s = [cast.swarm.clock_s(peer) - at_s for peer, at_s in before_s.items()]
    assert sum(jump_s > 0 for jump_s in jumped_s) == 1


def test_disks_fill_and_break_for_a_while() -> None:
    for kind, name in (("disk full", "refuses"), ("disk breaks", "loses")):
        cast, fault = drawn(kind)
        fault.strike()
        assert sum(getattr(store, name) for store in cast.stores.values()) == 1
        cast.swarm.run(fault.lasts_s + 1.0)
        assert not any(getattr(store, name) for store in cast.stores.values())
