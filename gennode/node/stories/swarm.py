"""The simulated shell: whole swarms on one heap, one seed, no clock, no socket.

The machines, the toy engine's tokens and `prompt.answer` are the product's own; only time and
the network are made up. A run is a pure function of its seed.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gennode.engine.seam import OwnerEngine, States
from gennode.errors import GennodeError, LocalError, RemoteError
from gennode.mesh.directory.netgroup import LOCAL
from gennode.node.actions import Arrived, Job, Lost, Opened, OpenJob, Rerouted, Run, Send
from gennode.node.batches import Batches
from gennode.node.peer import PeerAction, PeerMachine
from gennode.node.worker import Worker
from gennode.wire.activations import codec
from gennode.wire.fields import CodecName
from gennode.wire.frames import FrameDecoder, encode
from gennode.wire.ids import Hop, ModelId, PeerId, SessionId
from gennode.wire.signing import Key

TICK_S = 0.05
RESUME_LIMIT_S = 3.0  # how long a link tries to come back before it calls its peer down


@dataclass(frozen=True)
class Weather:
    """How the simulated network and machines behave."""

    delay_s: tuple[float, float] = (0.001, 0.03)
    stall_chance: float = 0.02  # a link pauses, as one that is reset and resumed does
    stall_s: tuple[float, float] = (0.05, 0.6)
    step_time_s: tuple[float, float] = (0.001, 0.02)
    load_time_s: float = 0.3


class Promise:
    """A result that a simulated coroutine waits for."""

    def __init__(self) -> None:
        self._outcome: States | GennodeError | None = None
        self._waiter: Callable[[], None] | None = None

    def resolve(self, outcome: States | GennodeError) -> None:
        """Give the result and wake whoever waits."""
        self._outcome = outcome
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            waiter()

    def on_resolved(self, waiter: Callable[[], None]) -> None:
        """Call once when the result is there."""
        if self._outcome is not None:
            waiter()
        else:
            self._waiter = waiter

    def __await__(self) -> Generator[Promise, None, States]:
        if self._outcome is None:
            yield self
        if isinstance(self._outcome, GennodeError):
            raise self._outcome
        if self._outcome is None:
            raise LocalError("a promise was resumed before it was kept")
        return self._outcome


@dataclass
class SimulatedPeer:
    """One peer on the heap: its machine, its engine, and whether it lives."""

    machine: PeerMachine
    workers: dict[ModelId, Worker]
    batches: Batches
    alive: bool = True
    frozen_until_s: float = 0.0
    inbox: list[Job] = field(default_factory=list)
    is_computing: bool = False
    events: list[Rerouted] = field(default_factory=list)


class SimulatedSwarm:
    """A network of peers, and the heap of what will happen to them."""

    def __init__(self, seed: int, weather: Weather | None = None) -> None:
        self.rng = random.Random(seed)
        self.weather = weather or Weather()
        self.now_s = 0.0
        self.events = 0
        self.peers: dict[PeerId, SimulatedPeer] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._link_free_s: dict[tuple[PeerId, PeerId], float] = {}
        self._awaited: dict[tuple[SessionId, int], Promise] = {}
        self._opened: dict[SessionId, Promise] = {}

    # -- building -----------------------------------------------------------------------------

    def add(self, worker: Worker | None = None) -> PeerId:
        """A new peer, a worker if it is given one."""
        key = Key(self.rng.randbytes(32))
        machine = PeerMachine(key, rng=random.Random(self.rng.random()), instance=0)
        batches = Batches(lambda: self.now_s)  # a batch takes no time that it could measure
        self.peers[key.peer] = SimulatedPeer(machine, {}, batches)
        if worker is not None:
            self.host(key.peer, worker)
        self.after(self.rng.uniform(0, TICK_S), lambda: self._tick(key.peer))
        return key.peer

    def host(self, peer: PeerId, worker: Worker) -> None:
        """A peer hosts one more model."""
        self.peers[peer].workers[worker.engine.model] = worker
        self.peers[peer].machine.serve(worker.terms(), worker.hosting())

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Have something happen later."""
        heapq.heappush(self._heap, (self.now_s + delay_s, next(self._order), call))

    # -- faults -------------------------------------------------------------------------------

    def crash(self, peer: PeerId) -> None:
        """The process dies: links to it break at once and can't be resumed."""
        self.peers[peer].alive = False
        for other in self.peers:
            self.after(self.rng.uniform(0.001, 0.1), partial(self._down, other, peer))

    def blackout(self, peer: PeerId) -> None:
        """The machine loses power: nobody is told, links time out."""
        self.peers[peer].alive = False
        for other in self.peers:
            self.after(RESUME_LIMIT_S, partial(self._down, other, peer))

    def freeze(self, peer: PeerId, duration_s: float) -> None:
        """The process stops (SIGSTOP) and goes on later with all that waited for it."""
        self.peers[peer].frozen_until_s = self.now_s + duration_s

    # -- running ------------------------------------------------------------------------------

    def run(self, until_s: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let events happen until a time, or until `done`."""
        while self._heap and not done() and self._heap[0][0] <= until_s:
            self.now_s, _, call = heapq.heappop(self._heap)
            self.events += 1
            call()
        if not done():
            self.now_s = max(self.now_s, until_s)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine whose only awaits are promises, such as one that reads an answer."""

        def advance() -> None:
            try:
                promise = coroutine.send(None)
            except StopIteration:
                return
            promise.on_resolved(advance)

        self.after(0.0, advance)

    def _tick(self, peer: PeerId) -> None:
        state = self.peers[peer]
        if not state.alive:
            return
        if state.frozen_until_s <= self.now_s:
            others = dict.fromkeys((other for other in self.peers if other != peer), LOCAL)
            self.act(peer, state.machine.tick(self.now_s, others))
        self.after(TICK_S, lambda: self._tick(peer))

    def act(self, peer: PeerId, actions: Sequence[PeerAction]) -> None:
        """Carry out what a peer's machine asked for."""
        for action in actions:
            match action:
                case Send():
                    self._send(peer, action)
                case Run():
                    self._run(peer, action.job)
                case Arrived():
                    self._awaited.pop((action.session, action.number)).resolve(action.states)
                case Opened():
                    self._opened[action.session].resolve(_NOTHING)
                case Rerouted():
                    self.peers[peer].events.append(action)
                case Lost():
                    self._lose(action)

    def _lose(self, lost: Lost) -> None:
        self._opened[lost.session].resolve(lost.error)
        for key in [key for key in self._awaited if key[0] == lost.session]:
            self._awaited.pop(key).resolve(lost.error)

    def _send(self, source: PeerId, send: Send) -> None:
        header, payload = encode(send.message, send.payload)
        data = header + bytes(payload)
        delay_s = self.rng.uniform(*self.weather.delay_s)
        if self.rng.random() < self.weather.stall_chance:
            delay_s += self.rng.uniform(*self.weather.stall_s)
        edge = (source, send.peer)
        arrival_s = max(self.now_s + delay_s, self._link_free_s.get(edge, 0.0) + 1e-6)
        self._link_free_s[edge] = arrival_s  # links keep their order
        self.after(arrival_s - self.now_s, lambda: self._deliver(source, send.peer, data))

    def _deliver(self, source: PeerId, target: PeerId, data: bytes) -> None:
        state = self.peers[target]
        if not state.alive:
            return
        if state.frozen_until_s > self.now_s:
            wait_s = state.frozen_until_s - self.now_s
            self.after(wait_s, lambda: self._deliver(source, target, data))
            return
        for message, payload in FrameDecoder().feed(data):
            try:
                actions = state.machine.receive(source, message, payload, self.now_s)
            except RemoteError as error:
                raise LocalError(f"an honest peer was blamed: {error}") from error
            self.act(target, actions)

    def _run(self, peer: PeerId, job: Job) -> None:
        self.peers[peer].inbox.append(job)
        self._compute(peer)

    def _compute(self, peer: PeerId) -> None:
        """Have a turn of the engine end later, if none is under way."""
        state = self.peers[peer]
        if not state.is_computing:
            state.is_computing = True
            cost_s = self.rng.uniform(*self.weather.step_time_s)
            if any(isinstance(job, OpenJob) for job in state.inbox):
                cost_s += self.weather.load_time_s * self.rng.random()
            self.after(cost_s, lambda: self._finish(peer))

    def _finish(self, peer: PeerId) -> None:
        state = self.peers[peer]
        if not state.alive:
            return
        if state.frozen_until_s > self.now_s:
            self.after(state.frozen_until_s - self.now_s, lambda: self._finish(peer))
            return
        jobs, state.inbox = state.inbox, []
        spans = {model: worker.engine.spans() for model, worker in state.workers.items()}
        outcomes = []
        for job in jobs:
            if job.model in state.workers:
                outcomes += state.batches.add(state.workers[job.model], job)
        outcomes += state.batches.work()
        state.is_computing = False
        for model, worker in state.workers.items():
            if worker.engine.spans() != spans[model]:
                state.machine.learn(worker.hosting())
        for job, outcome in outcomes:
            if job.model in state.workers:
                self.act(peer, state.machine.computed(job, outcome, self.now_s))
        if state.inbox or not state.batches.is_idle:
            self._compute(peer)

    def _down(self, peer: PeerId, lost: PeerId) -> None:
        state = self.peers[peer]
        if state.alive:
            self.act(peer, state.machine.peer_down(lost, "can't be reached", self.now_s))

    # -- owning -------------------------------------------------------------------------------

    def owner(self, peer: PeerId, codec_name: CodecName = "raw") -> SimulatedOwner:
        """The swarm as `prompt.answer` sees it from one peer."""
        return SimulatedOwner(self, peer, codec_name)


_NOTHING: States = codec("raw").decode(b"", 1)


@dataclass(frozen=True)
class SimulatedOwner:
    """A peer that asks prompts; satisfies `prompt.Swarm`."""

    swarm: SimulatedSwarm
    peer: PeerId
    codec: CodecName

    @asynccontextmanager
    async def open(
        self, owner: OwnerEngine, *, max_positions: int
    ) -> AsyncIterator[SimulatedPipeline]:
        """A session on the best route of the moment."""
        swarm, machine = self.swarm, self.swarm.peers[self.peer].machine
        session, actions = machine.owning.open_session(
            model=owner.model,
            layers=owner.layers,
            dim=owner.dim,
            codec=self.codec,
            max_positions=max_positions,
            now_s=swarm.now_s,
        )
        swarm._opened[session] = Promise()
        swarm.act(self.peer, actions)
        try:
            await swarm._opened[session]
            yield SimulatedPipeline(self, session)
        finally:
            swarm.act(self.peer, machine.owning.close_session(session))
            del swarm._opened[session]


@dataclass(frozen=True)
class SimulatedPipeline:
    """An open session; satisfies `prompt.Pipeline`."""

    owner: SimulatedOwner
    session: SessionId

    def step(self, position: int, states: States, *, reply_rows: int) -> Promise:
        """Send states down the route."""
        swarm, peer = self.owner.swarm, self.owner.peer
        payload = codec(self.owner.codec).encode(states)
        number, actions = swarm.peers[peer].machine.owning.submit(
            self.session, position, len(states), reply_rows, payload, swarm.now_s
        )
        promise = Promise()
        swarm._awaited[self.session, number] = promise
        swarm.act(peer, actions)
        return promise

    @property
    def route(self) -> tuple[Hop, ...]:
        """The hops of the moment."""
        return self.owner.swarm.peers[self.owner.peer].machine.owning.path(self.session)
