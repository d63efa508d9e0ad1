"""Two nodes with one key: both notice, the later one ends, the other goes on."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from gennode.engine.toy import ToyShard, toy_manifest
from gennode.mesh.directory.netgroup import LOCAL
from gennode.node.actions import Send
from gennode.node.peer import PeerAction, PeerMachine
from gennode.node.worker import Worker
from gennode.wire.ids import PeerId, Span
from gennode.wire.messages import Announcements
from gennode.wire.signing import Key

KEY, OTHER = Key(bytes([1]) * 32), Key(bytes([2]) * 32)


def serving(key: Key, instance: int) -> PeerMachine:
    machine = PeerMachine(key, rng=Random(instance), instance=instance)
    engine = ToyShard(toy_manifest(6))
    engine.load(Span(0, 2))
    worker = Worker(engine, 6, capacity_layers=2)
    machine.serve(worker.terms(), worker.hosting())
    return machine


class Between:
    """A third peer through which the twins hear of each other; what it is told, both get."""

    def __init__(self, *twins: PeerMachine) -> None:
        self.twins = twins
        self.machine = serving(OTHER, 5)

    def run(self, until_s: float) -> None:
        now_s = 0.0
        while now_s < until_s:
            for twin in self.twins:
                self._carry(twin, twin.tick(now_s, {OTHER.peer: LOCAL}), now_s)
            for action in self.machine.tick(now_s, {KEY.peer: LOCAL}):
                for twin in self.twins:
                    self._deliver(twin, OTHER.peer, action, now_s)
            now_s += 0.25

    def _carry(self, twin: PeerMachine, actions: Sequence[PeerAction], now_s: float) -> None:
        for action in actions:
            assert isinstance(action, Send)
            answers = self.machine.receive(KEY.peer, action.message, b"", now_s)
            for answer in answers:
                self._deliver(twin, OTHER.peer, answer, now_s)

    def _deliver(self, twin: PeerMachine, sender: PeerId, action: PeerAction, now_s: float) -> None:
        assert isinstance(action, Send)
        self._carry(twin, twin.receive(sender, action.message, b"", now_s), now_s)


@pytest.mark.parametrize("older_first", [True, False])
def test_both_notice_and_the_later_one_gives_way(older_first: bool) -> None:
    older, newer = serving(KEY, 1000), serving(KEY, 2000)
    between = Between(*((older, newer) if older_first else (newer, older)))
    between.run(10.0)
    assert not older.is_superseded
    assert older.rival is not None
    assert older.rival.instance == 2000
    assert newer.is_superseded
    assert newer.rival is not None
    assert newer.rival.instance == 1000
    assert newer.leave(10.0, {}) == []  # no goodbye in the name of the other
    [seen] = [seen for seen in between.machine.live(10.0) if seen.peer == KEY.peer]
    assert seen.instance == 1000


def test_a_restarted_node_is_no_twin_of_its_past_however_often_it_is_replayed() -> None:
    past = serving(KEY, 1000)
    told = [
        action.message for action in past.tick(0.0, {OTHER.peer: LOCAL}) if isinstance(action, Send)
    ]
    now = serving(KEY, 2000)
    now.tick(0.0, {OTHER.peer: LOCAL})
    for second in range(60):
        for message in told:
            if isinstance(message, Announcements):
                now.receive(OTHER.peer, message, b"", float(second))
        now.tick(float(second), {OTHER.peer: LOCAL})
    assert not now.is_superseded
    assert now.rival is None
