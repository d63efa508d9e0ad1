"""Sessions whose frames fill windows: somebody is slow, dies or leaves, and nothing is lost.

Real hops and a real session, with engines that only hash, on links that keep their order and
take any time. A failure prints its seed.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from gennode.node.actions import (
    Action,
    Arrived,
    CloseJob,
    Exported,
    ExportJob,
    HopKey,
    Job,
    Lost,
    OpenJob,
    Outcome,
    RestoreJob,
    Run,
    Send,
    StepJob,
)
from gennode.node.hops.admission import HopLimits, HostedModel
from gennode.node.hops.hop import HopMachine
from gennode.node.hops.spill import MemoryStore
from gennode.node.sessions.session import SessionMachine
from gennode.wire.ids import PeerId, Span
from gennode.wire.messages import CREDIT_BYTES, WINDOW_BYTES, CachePart, Message, Probe, Step
from tests.node.conftest import FIRST, LAYERS, MODEL, OWNER, PATH, SECOND, SPARE, THIRD, peer
from tests.node.sessions.scouts import TERMS, Directory, spares

ROW = 1024 * 1024  # bytes: a prompt of so few rows fills several windows
DIM = ROW // 4
PROMPT = [4] * 10  # rows of each step
TOKENS = 12
OTHER = peer(9)
EVENT_S = 0.001
EVENTS = 40_000  # ten times as many as any seed takes
ROOMY = HopLimits()
SCARCE = HopLimits(retained_bytes=12 * ROW)


def rows_of(tags: list[int]) -> bytes:
    """States that say no more than one number per row."""
    payload = bytearray(len(tags) * ROW)
    for place, tag in enumerate(tags):
        struct.pack_into("<f", payload, place * ROW, tag)
    return bytes(payload)


def tags_of(payload: bytes) -> list[int]:
    """Those numbers."""
    return [int(struct.unpack_from("<f", payload, at)[0]) for at in range(0, len(payload), ROW)]


def computed(cache: list[int], span: Span, position: int, tags: list[int]) -> list[int]:
    """What layers make of rows, and of all that is cached before them."""
    assert position <= len(cache), "a step came behind a gap"
    del cache[position:]
    outputs = []
    for tag in tags:
        cache.append(tag)
        outputs.append((31 * tag + 7 * sum(cache) + span.start) % 65_521)
    return outputs


class Engine:
    """Sequences, each a list of what it was given."""

    def __init__(self) -> None:
        self.sequences: dict[HopKey, tuple[Span, list[int]]] = {}

    def do(self, job: Job) -> Outcome:
        """Compute a job."""
        match job:
            case OpenJob():
                self.sequences[job.key] = (job.span, [])
            case CloseJob():
                self.sequences.pop(job.key, None)
            case StepJob():
                span, cache = self.sequences[job.key]
                return rows_of(computed(cache, span, job.position, tags_of(job.payload)))
            case ExportJob():
                _, cache = self.sequences[job.key]
                end = min(len(cache), job.start + job.max_bytes // ROW)
                return Exported("tags", job.start, end, rows_of(cache[job.start : end]))
            case RestoreJob():
                span, cache = self.sequences[job.key]
                computed(cache, span, job.start, tags_of(job.payload))
        return b""


class Chain:
    """An owner, three hops and two spares; who is `slow` does little of what it could."""

    def __init__(self, seed: int, *, is_quick: bool = True, limits: HopLimits = ROOMY) -> None:
        self.rng = Random(seed)
        self.now_s = 0.0
        model = HostedModel(
            MODEL, LAYERS, DIM, 4096, lambda _span: True,
            cache_position_bytes=lambda _span: ROW * is_quick,
        )  # fmt: skip
        workers = (FIRST, SECOND, THIRD, SPARE, OTHER)
        self.stores = {one: MemoryStore(1 << 30) for one in workers}
        self.hops = {one: HopMachine(one, limits, store=self.stores[one]) for one in workers}
        for hop in self.hops.values():
            hop.host(model)
        self.engines = {one: Engine() for one in workers}
        self.jobs: dict[PeerId, deque[Job]] = {one: deque() for one in workers}
        self.links: dict[tuple[PeerId, PeerId], deque[tuple[Message, bytes]]] = {}
        self.slow: set[PeerId] = set()
        self.dead: set[PeerId] = set()
        self.answers: dict[int, int] = {}
        self.truth: dict[int, int] = {}
        self.caches = [list[int]() for _ in PATH]
        self.end = 0
        self.most_bytes = 0
        directory = Directory(spares(SPARE, OTHER), is_quick=is_quick)
        self.owner = SessionMachine(replace(TERMS, dim=DIM), PATH, directory)
        self.act(OWNER, self.owner.start(0.0))

    def submit(self, rows: int) -> None:
        """Send a step, and know what will come of it."""
        tags = [self.rng.randrange(65_521) for _ in range(rows)]
        number, actions = self.owner.submit(self.end, rows, 1, rows_of(tags), self.now_s)
        for hop, cache in zip(PATH, self.caches, strict=True):
            tags = computed(cache, hop.span, self.end, tags)
        self.truth[number] = tags[-1]
        self.end += rows
        self.act(OWNER, actions)

    def act(self, who: PeerId, actions: list[Action]) -> None:
        """Do what a machine decided."""
        for action in actions:
            match action:
                case Send(to, message, payload):
                    self.links.setdefault((who, to), deque()).append((message, bytes(payload)))
                case Run(job):
                    self.jobs[who].append(job)
                case Arrived():
                    assert action.number not in self.answers, "a step was answered twice"
                    [tag] = np.asarray(action.states)[:, 0]
                    self.answers[action.number] = int(tag)
                case Lost():
                    raise action.error

    def step(self) -> bool:
        """One thing happens; whether there was any."""
        self.now_s += EVENT_S
        ready = [link for link, letters in self.links.items() if letters]
        busy = [one for one, jobs in self.jobs.items() if jobs and one not in self.dead]
        eager = [one for one in busy if one not in self.slow or self.rng.random() < 0.05]
        if not ready and not busy:
            return False
        place = self.rng.randrange(len(ready) + len(eager)) if ready or eager else -1
        if 0 <= place < len(ready):
            self._deliver(*ready[place])
        else:
            self._compute(eager[place - len(ready)] if eager else busy[0])
        return True

    def _compute(self, who: PeerId) -> None:
        job = self.jobs[who].popleft()
        outcome = self.engines[who].do(job)
        self.act(who, self.hops[who].computed(job, outcome, self.now_s))

    def _deliver(self, source: PeerId, target: PeerId) -> None:
        message, payload = self.links[source, target].popleft()
        if target in self.dead or isinstance(message, Probe):
            return
        machine = self.owner if target == OWNER else self.hops[target]
        done = machine.receive(source, message, payload, self.now_s)  # type: ignore[arg-type]
        self.act(target, done)
        self._check(target)

    def _check(self, who: PeerId) -> None:
        """No receiver has more before it than a window of each flow."""
        if who == OWNER:
            return
        incoming = [letters for (_, to), letters in self.links.items() if to == who]
        waiting_bytes = self.hops[who].queued_bytes + sum(
            len(payload)
            for letters in incoming
            for message, payload in letters
            if isinstance(message, Step | CachePart)
        )
        self.most_bytes = max(self.most_bytes, waiting_bytes)

    def tick(self) -> None:
        """Let everybody know the time."""
        self.act(OWNER, self.owner.tick(self.now_s))
        for one, hop in self.hops.items():
            if one not in self.dead:
                self.act(one, hop.tick(self.now_s))

    def run(self, *, until: int) -> None:
        """Let things happen until so many steps are answered."""
        for event in range(EVENTS):
            if len(self.answers) >= until:
                return
            if not self.step() or event % 50 == 0:
                self.tick()
        raise AssertionError(f"{len(self.answers)} of {until} steps are answered")

    def lose(self, lost: PeerId) -> None:
        """A worker dies, and all hear of it."""
        self.dead.add(lost)
        self.jobs[lost].clear()
        for link in [link for link in self.links if lost in link]:
            del self.links[link]
        self.act(OWNER, self.owner.peer_down(lost, "gone", self.now_s))
        for one, hop in self.hops.items():
            if one not in self.dead:
                self.act(one, hop.peer_down(lost, self.now_s))

    def ask(self) -> None:
        """A whole prompt at once, then one token after the other."""
        for rows in PROMPT:
            self.submit(rows)

    def check(self) -> None:
        """The answers are those of one machine that never fails."""
        assert self.answers == self.truth


def tokens(chain: Chain, count: int = TOKENS) -> None:
    """Single rows, each when the one before is answered."""
    for _ in range(count):
        chain.submit(1)
        chain.run(until=len(chain.truth))


@pytest.mark.parametrize("slow", [FIRST, SECOND, THIRD, None])
def test_who_is_slow_has_no_more_than_a_window_before_it(slow: PeerId | None) -> None:
    chain = Chain(seed=1)
    chain.slow = {slow} if slow else set()
    chain.ask()
    chain.run(until=len(PROMPT))
    tokens(chain, 3)
    chain.check()
    assert CREDIT_BYTES < chain.most_bytes <= WINDOW_BYTES


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lost", [FIRST, SECOND, THIRD])
def test_a_hop_that_dies_amid_a_long_prompt_costs_no_token(lost: PeerId, seed: int) -> None:
    chain = Chain(seed, limits=SCARCE)
    chain.slow = {chain.rng.choice([FIRST, SECOND, THIRD, SPARE])}
    chain.ask()
    chain.run(until=chain.rng.randrange(1, len(PROMPT)))
    chain.lose(lost)
    chain.run(until=len(PROMPT))
    tokens(chain)
    chain.check()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("leaver", [FIRST, SECOND, THIRD])
@pytest.mark.parametrize("is_quick", [True, False])
def test_a_hop_that_leaves_amid_a_long_prompt_costs_no_token(
    leaver: PeerId, is_quick: bool, seed: int
) -> None:
    chain = Chain(seed, is_quick=is_quick, limits=SCARCE)
    chain.ask()
    chain.run(until=chain.rng.randrange(1, len(PROMPT)))
    chain.act(leaver, chain.hops[leaver].drain(chain.now_s))
    chain.run(until=len(PROMPT))
    tokens(chain)
    chain.check()
    if chain.hops[leaver].sessions:  # the change may still be due
        chain.now_s += 2.0
        tokens(chain)
        chain.check()
    assert chain.hops[leaver].sessions == 0
    assert chain.stores[leaver].held_bytes == 0
