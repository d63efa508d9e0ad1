"""Directories made up for sessions' tests: who is there, and what each asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gennode.engine.toy import TOY_DIM
from gennode.node.actions import Action, Opened, Send
from gennode.node.sessions.course import SessionTerms
from gennode.node.sessions.repair import FindHops
from gennode.node.sessions.session import SessionMachine
from gennode.wire.ids import Hop, PeerId, Span
from gennode.wire.messages import Accept, Message, Open, Step
from tests.node.conftest import LAYERS, MODEL, OWNER, PATH, SESSION, SPARE, THIRD, frame

TERMS = SessionTerms(SESSION, OWNER, MODEL, LAYERS, TOY_DIM, "raw", 4096)


def spare(span: Span, _entry: PeerId, avoid: frozenset[PeerId]) -> tuple[Hop, ...] | str:
    """One more worker that has every layer."""
    return f"layers {span} have no live worker" if SPARE in avoid else (Hop(SPARE, span),)


def nobody(span: Span, _entry: PeerId, _avoid: frozenset[PeerId]) -> tuple[Hop, ...] | str:
    """No worker beside those of the path."""
    return f"layers {span} have no live worker"


def spares(*peers: PeerId) -> FindHops:
    """Further workers that have every layer; the first that need not be avoided is best."""

    def find(span: Span, _entry: PeerId, avoid: frozenset[PeerId]) -> tuple[Hop, ...] | str:
        free = [peer for peer in peers if peer not in avoid]
        return (Hop(free[0], span),) if free else f"layers {span} have no live worker"

    return find


@dataclass
class Directory:
    """Satisfies `Scout`. `stands_in`: whether anybody is a stand-in before it is needed."""

    find: FindHops = spare
    stands_in: bool = True
    gone: set[PeerId] = field(default_factory=set)
    same_class: bool = True
    is_quick: bool = True
    searches: int = 0

    def find_hops(
        self, span: Span, entry: PeerId, avoid: frozenset[PeerId]
    ) -> tuple[Hop, ...] | str:
        """As the test has it."""
        self.searches += 1
        return self.find(span, entry, avoid | self.gone)

    def find_standin(self, hop: Hop, entry: PeerId, avoid: frozenset[PeerId]) -> tuple[Hop, ...]:
        """The same workers, if any stands in."""
        found = self.find_hops(hop.span, entry, avoid) if self.stands_in else ""
        return () if isinstance(found, str) else found

    def is_present(self, hop: Hop) -> bool:
        """Everybody but those who are gone."""
        return hop.peer not in self.gone

    def takes_cache(self, donor: Hop, taker: Hop) -> bool:
        """As the test has it."""
        return self.same_class and donor.span == taker.span

    def is_cache_quicker(self, donor: Hop, taker: Hop, positions: int, cache_bytes: int) -> bool:
        """As the test has it."""
        return self.is_quick and positions > 0 and cache_bytes > 0 and donor != taker


def session(find: FindHops = spare, *, terms: SessionTerms = TERMS) -> SessionMachine:
    """A session in which nobody stands in beforehand."""
    return SessionMachine(terms, PATH, Directory(find, stands_in=False))


def sent(actions: Iterable[Action], kind: type[Message]) -> list[tuple[PeerId, Message]]:
    """The messages of one kind, each with whom it goes to."""
    return [
        (a.peer, a.message) for a in actions if isinstance(a, Send) and isinstance(a.message, kind)
    ]


def opens(actions: Iterable[Action]) -> list[tuple[PeerId, Open]]:
    """Who is asked to take part, and how."""
    return [(peer, m) for peer, m in sent(actions, Open) if isinstance(m, Open)]


def accept_all(
    machine: SessionMachine,
    actions: list[Action],
    now_s: float,
    *,
    holds: Callable[[PeerId], int] = lambda _peer: 0,
) -> list[Action]:
    """Let every hop that is asked accept, until nothing is asked any more. Hops of the path that
    the tests begin with hold as much as any may, others what `holds` says."""
    told: list[Action] = []
    first = {hop.peer for hop in PATH}
    while asked := opens(actions):
        told += [action for action in actions if not isinstance(action, Send)]
        actions = []
        for peer, message in asked:
            positions = 4096 if peer in first else holds(peer)
            accept = Accept(SESSION, message.attempt, message.index, positions)
            actions += machine.receive(peer, accept, b"", now_s)
    return [*told, *actions]


def ready(find: FindHops = spare) -> SessionMachine:
    """A session whose hops have all accepted."""
    machine = session(find)
    opened = accept_all(machine, machine.start(0.0), 0.0)
    assert opened == [Opened(SESSION, PATH)]
    return machine


def result(number: int, attempt: int = 0, rows: int = 1) -> Step:
    """What the last hop says of a step."""
    return Step(SESSION, attempt, number, LAYERS, number, rows, rows, "raw", False)


def answer(machine: SessionMachine, steps: int) -> None:
    """Have so many single rows sent and answered."""
    for number in range(steps):
        machine.submit(number, 1, 1, frame(value=number), 0.1)
        machine.receive(THIRD, result(number), frame(), 0.1)
