"""A session of one owner with real hops around it, all in one queue of messages and jobs.

Engines are toys. What a hop hands over as its cache are the inputs that it was given, which a
toy of the same layers computes again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from gennode.engine.seam import States, StepInput
from gennode.engine.toy import TOY_DIM, ToyShard, toy_manifest
from gennode.node.actions import (
    Action,
    Arrived,
    CloseJob,
    Event,
    Exported,
    ExportJob,
    HopKey,
    Job,
    OpenJob,
    Outcome,
    Rerouted,
    RestoreJob,
    Run,
    Send,
    StepJob,
)
from gennode.node.hops.admission import HopLimits, HostedModel
from gennode.node.hops.hop import HopMachine
from gennode.node.sessions.course import SessionTerms
from gennode.node.sessions.session import SessionMachine
from gennode.wire.activations import codec
from gennode.wire.ids import PeerId, Span
from gennode.wire.messages import CachePart, Message, Probe
from tests.node.conftest import FIRST, LAYERS, MODEL, OWNER, PATH, SECOND, SPARE, THIRD, peer
from tests.node.sessions.scouts import TERMS, Directory, spares

ROWS = 32  # of a part of a cache
OTHER = peer(9)  # one more spare

Letter = tuple[PeerId, PeerId, Message, bytes]
"""From, to, what."""


class Engine:
    """All layers of a toy, and the inputs of every sequence."""

    def __init__(self) -> None:
        self.shard = ToyShard(toy_manifest(LAYERS))
        self.shard.load(Span(0, LAYERS))
        self.inputs: dict[HopKey, States] = {}
        self.rows = 0

    def do(self, job: Job) -> Outcome:
        """Compute a job at once."""
        match job:
            case OpenJob():
                self.shard.open(job.key, job.span, job.max_positions)
                self.inputs[job.key] = np.zeros((0, TOY_DIM), np.float32)
            case CloseJob():
                self.shard.close(job.key)
                self.inputs.pop(job.key, None)
            case StepJob():
                states = codec(job.codec).decode(job.payload, TOY_DIM, job.rows)
                return codec(job.codec).encode(self._step(job.key, job.position, states))
            case ExportJob():
                end = min(job.start + ROWS, len(self.inputs[job.key]))
                payload = self.inputs[job.key][job.start : end].tobytes()
                return Exported("inputs", job.start, end, payload)
            case RestoreJob():
                rows = job.end - job.start
                self._step(job.key, job.start, codec("raw").decode(job.payload, TOY_DIM, rows))
        return b""

    def _step(self, key: HopKey, position: int, states: States) -> States:
        self.rows += len(states)
        self.inputs[key] = np.concatenate([self.inputs[key][:position], states])
        return self.shard.step([StepInput(key, position, states)])[0]


@dataclass
class Company:
    """Everybody who takes part. `directory`: whom the owner finds beside the path."""

    directory: Directory = field(default_factory=lambda: Directory(spares(SPARE, OTHER)))
    terms: SessionTerms = TERMS
    gives_caches: bool = True
    scarce: frozenset[PeerId] = frozenset()
    """Who has no memory for frames."""
    now_s: float = 0.0
    dead: set[PeerId] = field(default_factory=set)
    held: Callable[[Letter], bool] = lambda _letter: False
    """Which messages are kept back, in `kept`."""
    kept: list[Letter] = field(default_factory=list)
    letters: deque[Letter] = field(default_factory=deque)
    log: list[Letter] = field(default_factory=list)
    """All that was delivered."""
    events: list[Event] = field(default_factory=list)
    answers: dict[int, States] = field(default_factory=dict)

    job_s: dict[PeerId, float] = field(default_factory=dict)
    """How long a worker takes for any job; everybody waits for it."""

    def __post_init__(self) -> None:
        model = HostedModel(
            MODEL, LAYERS, TOY_DIM, 32_768, lambda _span: True,
            cache_position_bytes=lambda _span: 4 * TOY_DIM * self.gives_caches,
        )  # fmt: skip
        self.hops: dict[PeerId, HopMachine] = {}
        self.engines = {one: Engine() for one in (FIRST, SECOND, THIRD, SPARE, OTHER)}
        for one in self.engines:
            limits = HopLimits(retained_bytes=100) if one in self.scarce else HopLimits()
            self.hops[one] = HopMachine(one, limits)
            self.hops[one].host(model)
        self.whole = Engine()
        self.whole.shard.open("truth", Span(0, LAYERS), 4096)
        self.truth: dict[int, States] = {}
        self.end = 0
        self.machine = SessionMachine(self.terms, PATH, self.directory)
        self.act(OWNER, self.machine.start(self.now_s))
        self.settle()

    def submit(self, rows: int = 1) -> int:
        """Send a step of states that nobody sent before."""
        seed = 7 * len(self.truth) + self.end  # of another step at the same place, others
        states = (np.arange(rows * TOY_DIM, dtype=np.float32) + seed).reshape(rows, -1) % 50
        payload = codec("raw").encode(states)
        number, actions = self.machine.submit(self.end, rows, 1, payload, self.now_s)
        self.truth[number] = self.whole.shard.step([StepInput("truth", self.end, states)])[0][-1:]
        self.end += rows
        self.act(OWNER, actions)
        return number

    def say(self, steps: int) -> None:
        """Answer so many single tokens, one after the other."""
        for _ in range(steps):
            self.submit()
            self.settle()

    def take_back(self, positions: int) -> None:
        """Forget the last positions, as one does with drafts that were wrong."""
        self.end -= positions

    def tick(self, seconds: float, *, step_s: float = 0.05) -> None:
        """Let time pass for everybody."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += step_s
            self.act(OWNER, self.machine.tick(self.now_s))
            for one, hop in self.hops.items():
                if one not in self.dead:
                    self.act(one, hop.tick(self.now_s))
            self.settle()

    def settle(self) -> None:
        """Deliver and compute until nothing is left to do."""
        while self.letters:
            letter = self.letters.popleft()
            if self.held(letter):
                self.kept.append(letter)
                continue
            self.deliver(letter)

    def deliver(self, letter: Letter) -> None:
        """Have a message arrive, unless its receiver is dead."""
        source, target, message, payload = letter
        if target in self.dead:
            return
        self.log.append(letter)
        if isinstance(message, Probe):
            return  # only there to open a link
        machine = self.machine if target == OWNER else self.hops[target]
        actions = machine.receive(source, message, payload, self.now_s)  # type: ignore[arg-type]
        self.act(target, actions)

    def act(self, who: PeerId, actions: list[Action]) -> None:
        """Do what a machine decided."""
        for action in actions:
            match action:
                case Send():
                    payload = bytes(action.payload)
                    self.letters.append((who, action.peer, action.message, payload))
                case Run():
                    self.now_s += self.job_s.get(who, 0.0)
                    outcome = self.engines[who].do(action.job)
                    done = self.hops[who].computed(action.job, outcome, self.now_s)
                    self.act(who, done)
                case Arrived():
                    assert action.number not in self.answers, "a step was answered twice"
                    self.answers[action.number] = action.states
                case _:
                    self.events.append(action)

    def drain(self, leaver: PeerId) -> None:
        """A worker says that it will leave."""
        self.act(leaver, self.hops[leaver].drain(self.now_s))
        self.settle()

    def lose(self, peer: PeerId) -> None:
        """A worker dies, and everybody hears of it."""
        self.dead.add(peer)
        self.act(OWNER, self.machine.peer_down(peer, "gone", self.now_s))
        self.settle()

    def heard(self, kind: type[Message]) -> list[Letter]:
        """The messages of one kind that were delivered."""
        return [letter for letter in self.log if isinstance(letter[2], kind)]

    def check(self) -> None:
        """No token is lost, doubled or changed."""
        assert self.answers.keys() == self.truth.keys()
        for number, states in self.truth.items():
            np.testing.assert_array_equal(self.answers[number], states)


def reroutes(company: Company) -> list[Rerouted]:
    """What the owner was told of changes."""
    return [event for event in company.events if isinstance(event, Rerouted)]


def stand_in(company: Company, place: int) -> PeerId:
    """Who was chosen to stand in for a hop."""
    chosen = company.machine.standins[place]
    assert chosen is not None
    return chosen[0].peer


def begun(**fields: object) -> Company:
    """A session that has answered a prompt and some tokens."""
    company = Company(**fields)  # type: ignore[arg-type]
    company.submit(100)
    company.submit(40)
    company.settle()
    company.say(10)
    company.tick(0.5)
    return company


def after_two_parts() -> Callable[[Letter], bool]:
    """Keeps back a cache but for its first two parts."""
    parts: list[Letter] = []

    def held(letter: Letter) -> bool:
        if isinstance(letter[2], CachePart):
            parts.append(letter)
        return len(parts) > 2 and isinstance(letter[2], CachePart)

    return held
