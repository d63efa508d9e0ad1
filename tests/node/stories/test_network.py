"""Simulated links keep their order; what breaks for a moment is late, what stays broken is lost."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from gennode.node.stories.heap import Heap
from gennode.node.stories.network import RESUME_LIMIT_S, Network, Weather
from gennode.node.stories.trace import Trace
from gennode.wire.ids import PeerId, SessionId
from gennode.wire.messages import Close, Message, Pong, Probe

HERE, THERE = PeerId("here"), PeerId("there")
BOTH_WAYS = [(HERE, THERE), (THERE, HERE)]
SESSION = SessionId(bytes(16))


@dataclass
class Wire:
    """A network of two, what arrives at one of them, and who is told that whom is down."""

    weather: Weather = field(default_factory=Weather)
    seed: int = 0
    arrived: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    down: list[tuple[PeerId, PeerId]] = field(default_factory=list)
    frozen_until_s: float = 0.0

    def __post_init__(self) -> None:
        self.heap = Heap()
        self.network = Network(
            self.heap,
            random.Random(self.seed),
            self.weather,
            Trace(),
            self._take,
            lambda source, target: self.down.append((source, target)),
        )

    def _take(self, source: PeerId, target: PeerId, message: Message, payload: bytes) -> float:
        if self.heap.now_s < self.frozen_until_s:
            return self.frozen_until_s
        match message:
            case Probe() | Pong():
                self.arrived.append(message.nonce)
                self.payloads.append(payload)
        return 0.0

    def send(self, *nonces: int) -> None:
        for nonce in nonces:
            self.network.send(HERE, THERE, Probe(nonce), bytes([nonce % 256]))


def test_links_keep_their_order_whatever_the_weather() -> None:
    wire = Wire(Weather(delay_s=(0.0, 1.0), stall_chance=0.5))
    for nonce in range(100):
        wire.heap.after(nonce * 0.01, lambda nonce=nonce: wire.send(nonce))  # type: ignore[misc]
    wire.heap.run(60.0)
    assert wire.arrived == list(range(100))
    assert wire.payloads == [bytes([nonce]) for nonce in range(100)]
    assert not wire.down


def test_a_link_that_breaks_for_a_moment_loses_nothing_and_doubles_nothing() -> None:
    wire = Wire()
    wire.send(0, 1)  # under way when it breaks
    wire.network.cut(BOTH_WAYS, RESUME_LIMIT_S - 1.0)
    wire.send(2)
    wire.heap.run(1.0)
    wire.send(3)
    assert wire.arrived == []
    wire.heap.run(RESUME_LIMIT_S)
    wire.send(4)
    wire.heap.run(20.0)
    assert wire.arrived == [0, 1, 2, 3, 4]
    assert not wire.down


def test_a_link_that_stays_broken_is_given_up_once_and_all_that_waited_is_lost() -> None:
    wire = Wire()
    wire.network.cut(BOTH_WAYS, 10.0)
    wire.send(0, 1)
    wire.heap.run(RESUME_LIMIT_S + 0.1)
    assert wire.down == [(HERE, THERE)]
    wire.send(2)
    wire.heap.run(9.0)
    assert wire.down == [(HERE, THERE)] * 2  # a new link was tried
    wire.heap.run(11.0)
    wire.send(3)
    wire.heap.run(20.0)
    assert wire.arrived == [3]


def test_where_only_acknowledgements_are_lost_messages_arrive_until_the_link_is_given_up() -> None:
    wire = Wire()
    wire.network.cut([(THERE, HERE)], 20.0)
    wire.send(0)
    wire.heap.run(1.0)
    assert wire.arrived == [0]
    wire.heap.run(RESUME_LIMIT_S + 0.1)
    assert wire.down == [(HERE, THERE)]
    wire.send(1)
    wire.heap.run(15.0)
    assert wire.arrived == [0]


def test_cuts_that_overlap_heal_when_the_last_one_is_over() -> None:
    wire = Wire()
    wire.network.cut(BOTH_WAYS, 1.0)
    wire.network.cut([(HERE, THERE)], 2.0)
    wire.send(0)
    wire.heap.run(1.5)
    assert wire.arrived == []
    wire.heap.run(3.0)
    assert wire.arrived == [0]


def test_a_link_to_a_process_that_died_is_given_up_and_what_was_under_way_is_lost() -> None:
    wire = Wire()
    wire.send(0)
    wire.network.gone(THERE, [HERE, THERE], (0.5, 0.6))
    wire.send(1)
    wire.heap.run(0.4)
    assert not wire.down
    wire.heap.run(1.0)
    assert wire.down == [(HERE, THERE)]
    wire.network.back(THERE)
    wire.send(2)
    wire.heap.run(2.0)
    assert wire.arrived == [2]


def test_who_is_frozen_takes_everything_later_and_in_order() -> None:
    wire = Wire(frozen_until_s=5.0)
    wire.send(*range(10))
    wire.heap.run(4.9)
    assert wire.arrived == []
    wire.send(10)
    wire.heap.run(6.0)
    assert wire.arrived == list(range(11))


def test_copies_come_late_and_of_some_messages_alone() -> None:
    wire = Wire(Weather(stray_chance=1.0))
    wire.network.send(HERE, THERE, Pong(SESSION, 1, ()), b"")
    wire.network.send(HERE, THERE, Close(SESSION), b"")
    wire.send(2)
    wire.heap.run(10.0)
    assert sorted(wire.arrived) == [1, 1, 2]
    assert wire.network.strays == 1
