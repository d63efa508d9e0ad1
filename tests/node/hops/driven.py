"""A hop machine between its neighbours, driven by hand: wide frames, so that windows fill."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from gennode.node.actions import Action, Job, Outcome, Run, Send, StepJob
from gennode.node.hops.admission import HopLimits, HostedModel
from gennode.node.hops.hop import HopMachine
from gennode.node.hops.spill import FrameStore
from gennode.wire.ids import Hop, PeerId
from gennode.wire.messages import CREDIT_BYTES, Feed, Message, Open, Step, ToHop
from tests.node.conftest import (
    FIRST,
    LAYERS,
    MODEL,
    OWNER,
    PATH,
    SECOND,
    SESSION,
    SPARE,
    frame,
    opening,
    step,
)

DIM = 8192
ROWS = CREDIT_BYTES // (4 * DIM)  # of a frame that is worth a credit: 128
FRAME = bytes(CREDIT_BYTES)
POSITION_BYTES = CREDIT_BYTES // ROWS  # of a cache


def wide(
    index: int,
    *,
    attempt: int = 0,
    donor: PeerId | None = None,
    path: tuple[Hop, ...] = PATH,
    **fields: int,
) -> Open:
    """The owner's opening of a long session."""
    message = opening(index, attempt=attempt, path=path, **fields)
    replay_from = fields.get("replay_from", 0)
    return msgspec.structs.replace(
        message, max_positions=8192, donor=donor, replay_from=replay_from
    )


def feed(*, cache: bool, attempt: int = 7, from_position: int = 0, peer: PeerId = SPARE) -> Feed:
    """The owner's request that the second hop feed a stand-in."""
    return Feed(SESSION, 2, peer, attempt, from_position, cache)


def job(actions: list[Action]) -> Job:
    """The one job among what is to be done."""
    [run] = [action for action in actions if isinstance(action, Run)]
    return run.job


def sends(actions: list[Action]) -> list[Send]:
    """What is to be sent."""
    return [action for action in actions if isinstance(action, Send)]


def told(actions: list[Action]) -> list[Message]:
    """The messages among it."""
    return [send.message for send in sends(actions)]


def payloads(actions: list[Action]) -> list[bytes]:
    """The payloads of the steps that are sent."""
    return [bytes(send.payload) for send in sends(actions) if isinstance(send.message, Step)]


def numbers(actions: list[Action]) -> list[int]:
    """The numbers of the steps that are sent."""
    return [message.number for message in told(actions) if isinstance(message, Step)]


def open_hop(machine: HopMachine, message: Open | None = None) -> list[Action]:
    """Have the second hop of a short session opened, and the engine do what it has to."""
    return machine.computed(job(machine.receive(OWNER, message or opening(1), b"", 0.0)), b"", 0.0)


def pass_one(machine: HopMachine, number: int, position: int, attempt: int = 0) -> list[Action]:
    """Have it compute a step of one row."""
    message = step(number, position, attempt=attempt)
    taken = job(machine.receive(FIRST, message, frame(), 0.0))
    return machine.computed(taken, frame(value=number), 0.0)


@dataclass
class Driven:
    """The second of three hops (or another), and its neighbours' side of the talk."""

    own: PeerId = SECOND
    sender: PeerId = FIRST
    layer: int = 2
    limits: HopLimits = field(default_factory=HopLimits)
    store: FrameStore | None = None
    strangers: frozenset[PeerId] = frozenset()
    now_s: float = 0.0
    attempt: int = 0

    def __post_init__(self) -> None:
        self.machine = HopMachine(
            self.own, self.limits, store=self.store, knows=lambda peer: peer not in self.strangers
        )
        model = HostedModel(
            MODEL, LAYERS, DIM, 32_768, lambda _span: True,
            cache_position_bytes=lambda _span: POSITION_BYTES,
        )  # fmt: skip
        self.machine.host(model)

    def hears(self, sender: PeerId, message: ToHop, payload: bytes = b"") -> list[Action]:
        """A message comes in."""
        return self.machine.receive(sender, message, payload, self.now_s)

    def does(self, done: Job, outcome: Outcome = b"") -> list[Action]:
        """The engine is done with a job."""
        return self.machine.computed(done, outcome, self.now_s)

    def opens(self, message: Open) -> list[Action]:
        """The owner opens the hop, and the engine does what it has to."""
        self.attempt = message.attempt
        actions = self.hears(OWNER, message)
        return self.does(job(actions)) if isinstance(actions[0], Run) else actions

    def takes(
        self, number: int, position: int | None = None, *, rows: int = ROWS, rebuild: bool = False
    ) -> StepJob:
        """A step comes in; what the engine is to do."""
        at = number * ROWS if position is None else position
        message = step(
            number, at, layer=self.layer, rows=rows, attempt=self.attempt, rebuild=rebuild
        )
        taken = job(self.hears(self.sender, message, FRAME[: rows * 4 * DIM]))
        assert isinstance(taken, StepJob)
        return taken

    def passes(
        self, number: int, position: int | None = None, *, rows: int = ROWS, rebuild: bool = False
    ) -> list[Action]:
        """A step comes in and is computed."""
        taken = self.takes(number, position, rows=rows, rebuild=rebuild)
        return self.does(taken, bytes([number % 256]) * len(taken.payload))

    def fills(self, count: int) -> list[Action]:
        """So many steps, each worth a credit."""
        return [action for number in range(count) for action in self.passes(number)]


def opened(**options: object) -> Driven:
    """The second hop of an open session."""
    driven = Driven(**options)  # type: ignore[arg-type]
    driven.opens(wide(1))
    return driven
