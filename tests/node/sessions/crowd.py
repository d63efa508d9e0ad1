"""A session whose messages, engines and outcomes all go on in an order of their own.

Hops are real, and so are the queues of their engines: what was begun under one attempt may end
under another.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from gennode.engine.toy import ToyShard, toy_manifest
from gennode.node.actions import Action, Run, Send
from gennode.node.batches import Batches, Done
from gennode.node.sessions.session import AVOID_S
from gennode.node.worker import Worker
from gennode.wire.ids import PeerId, Span
from gennode.wire.messages import Close
from tests.node.conftest import LAYERS, OWNER
from tests.node.sessions.company import Company, Letter
from tests.node.sessions.scouts import Directory, spares


class Machine:
    """A worker's engine, what waits for it, and what it has done that its hop does not know."""

    def __init__(self) -> None:
        shard = ToyShard(toy_manifest(LAYERS))
        shard.load(Span(0, LAYERS))
        self.worker = Worker(shard, LAYERS, LAYERS)
        self.batches = Batches(lambda: 0.0)
        self.done: deque[Done] = deque()


@dataclass
class Crowd(Company):
    """A company in which everything takes time. `chance` says what goes on next; only what goes
    from one peer to another, or through one engine, keeps its order."""

    gives_caches: bool = False
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    deaf: set[PeerId] = field(default_factory=set)
    """Whom no farewell reaches."""
    still: set[tuple[PeerId, PeerId]] = field(default_factory=set)
    """From whom to whom nothing comes through for a while."""

    def __post_init__(self) -> None:
        self.links: defaultdict[tuple[PeerId, PeerId], deque[Letter]] = defaultdict(deque)
        self.machines: defaultdict[PeerId, Machine] = defaultdict(Machine)
        super().__post_init__()

    def act(self, who: PeerId, actions: list[Action]) -> None:
        """Do what a machine decided, some time later."""
        for action in actions:
            if isinstance(action, Send):
                letter = (who, action.peer, action.message, bytes(action.payload))
                self.links[who, action.peer].append(letter)
            elif isinstance(action, Run):
                machine = self.machines[who]
                machine.done += machine.batches.add(machine.worker, action.job)
            else:
                super().act(who, [action])

    def settle(self) -> None:
        """Go on until nothing is left to do."""
        while self.move():
            pass

    def go_on(self, moves: int) -> None:
        """Have so many things happen, if there are as many."""
        for _ in range(moves):
            self.move()

    def move(self) -> bool:
        """Deliver one message, compute one batch or tell of one outcome; False if there is
        nothing to do."""
        moves = list(self._moves())
        if not moves:
            return False
        kind, source, target = self.chance.choice(moves)
        machine = self.machines[source]
        if kind == "deliver":
            letter = self.links[source, target].popleft()
            if not (isinstance(letter[2], Close) and target in self.deaf):
                self.deliver(letter)
        elif kind == "compute":
            machine.done += machine.batches.work()
        else:
            job, outcome = machine.done.popleft()
            self.act(source, self.hops[source].computed(job, outcome, self.now_s))
        return True

    def _moves(self) -> Iterator[tuple[str, PeerId, PeerId]]:
        for ends, letters in self.links.items():
            if letters and ends not in self.still:
                yield "deliver", *ends
        for who, machine in self.machines.items():
            if who not in self.dead and not machine.batches.is_idle:
                yield "compute", who, who
            if who not in self.dead and machine.done:
                yield "tell", who, who

    def miss(self, peer: PeerId) -> None:
        """The owner takes a worker for lost, which knows nothing of that."""
        self.act(OWNER, self.machine.peer_down(peer, "gone", self.now_s))

    def kill(self, peer: PeerId) -> None:
        """A worker dies, and the owner hears of it."""
        self.dead.add(peer)
        self.miss(peer)

    def ends_well(self) -> None:
        """Everything is answered, and some steps more, and no token is changed."""
        self.deaf.clear()
        self.still.clear()
        self.tick(4 * AVOID_S, step_s=1.0)
        self.say(3)
        self.check()


def crowd(seed: int, *others: PeerId) -> Crowd:
    """A session that has answered some steps, and has three more under way."""
    company = Crowd(directory=Directory(spares(*others)), chance=random.Random(seed))
    for rows in (9, 7, 8):
        company.submit(rows)
    company.settle()
    company.say(4)
    for rows in (2, 1, 1):
        company.submit(rows)
    return company
