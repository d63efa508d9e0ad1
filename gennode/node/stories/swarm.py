"""The simulated shell: whole swarms on one heap, one seed, no clock, no socket.

The machines, the toy engine's tokens and `prompt.answer` are the product's own; only time and
the network are made up. A run is a pure function of its seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from gennode.errors import LocalError, RemoteError
from gennode.mesh.directory.crowd import SharedReader
from gennode.mesh.directory.netgroup import LOCAL
from gennode.node.actions import Arrived, Job, Lost, Opened, OpenJob, Rerouted, Run, Send
from gennode.node.batches import Batches
from gennode.node.hops.admission import HopLimits
from gennode.node.hops.spill import FrameStore
from gennode.node.peer import PeerAction, PeerMachine
from gennode.node.stories.heap import Heap
from gennode.node.stories.network import RESUME_LIMIT_S, Network, Weather
from gennode.node.stories.owner import Awaited, SimulatedOwner
from gennode.node.stories.trace import Trace
from gennode.node.worker import Worker
from gennode.wire.fields import CodecName
from gennode.wire.ids import ModelId, PeerId
from gennode.wire.messages import Message
from gennode.wire.signing import Key

RESET_S = (0.001, 0.1)  # until others see that the links to a process that died are broken
NEVER_S = (RESUME_LIMIT_S, RESUME_LIMIT_S)  # where nobody tells them


@dataclass
class Clock:
    """What one peer takes for the time: none is set right, and none runs as the others do."""

    ahead_s: float = 0.0
    rate: float = 1.0

    def read_s(self, now_s: float) -> float:
        """The time that it shows."""
        return self.ahead_s + self.rate * now_s


@dataclass
class SimulatedPeer:
    """One process on the heap: its machine, its engine, and whether it lives."""

    peer: PeerId
    machine: PeerMachine
    clock: Clock
    batches: Batches
    workers: dict[ModelId, Worker] = field(default_factory=dict)
    alive: bool = True
    frozen_until_s: float = 0.0
    slow_until_s: float = 0.0
    slowness: float = 1.0
    inbox: list[Job] = field(default_factory=list)
    is_computing: bool = False
    events: list[Rerouted] = field(default_factory=list)
    awaited: Awaited = field(default_factory=Awaited)


class SimulatedSwarm(Heap):
    """A network of peers, and the heap of what will happen to them.

    `watch` is called after everything that a peer did; `sees` with every message that is sent.
    """

    def __init__(self, seed: int, weather: Weather | None = None) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.weather = weather or Weather()
        self.trace = Trace()
        self.peers: dict[PeerId, SimulatedPeer] = {}
        self.watch: Callable[[SimulatedPeer], None] = lambda _state: None
        self.sees: Callable[[Message], None] = lambda _message: None
        self.network = Network(self, self.rng, self.weather, self.trace, self._deliver, self._down)
        self._keys: dict[PeerId, Key] = {}
        self._reader = SharedReader()
        self._others: dict[PeerId, dict[PeerId, str]] = {}

    # -- building -----------------------------------------------------------------------------

    def add(
        self,
        worker: Worker | None = None,
        *,
        limits: HopLimits | None = None,
        store: FrameStore | None = None,
        clock: Clock | None = None,
    ) -> PeerId:
        """A new peer, a worker if it is given one."""
        key = Key(self.rng.randbytes(32))
        self._keys[key.peer] = key
        for others in self._others.values():
            others[key.peer] = LOCAL
        self._others[key.peer] = dict.fromkeys(self.peers, LOCAL)
        self._begin(key, worker, limits, store, clock or Clock())
        return key.peer

    def host(self, peer: PeerId, worker: Worker) -> None:
        """A peer hosts one more model."""
        self.peers[peer].workers[worker.engine.model] = worker
        self.peers[peer].machine.serve(worker.terms(), worker.hosting())

    def restart(
        self,
        peer: PeerId,
        worker: Worker | None = None,
        *,
        limits: HopLimits | None = None,
        store: FrameStore | None = None,
    ) -> None:
        """A process that died runs again, with its key and without anything that it knew."""
        state = self.peers[peer]
        if state.alive:
            raise LocalError("only a process that is dead can be started again")
        self.network.back(peer)
        self._begin(self._keys[peer], worker, limits, store, state.clock)

    def _begin(
        self,
        key: Key,
        worker: Worker | None,
        limits: HopLimits | None,
        store: FrameStore | None,
        clock: Clock,
    ) -> None:
        rng, instance = random.Random(self.rng.random()), int(self.now_s * 1000)
        machine = PeerMachine(
            key, rng=rng, instance=instance, limits=limits, store=store, reader=self._reader
        )
        batches = Batches(lambda: self.now_s)  # a batch takes no time that it could measure
        state = self.peers[key.peer] = SimulatedPeer(key.peer, machine, clock, batches)
        if worker is not None:
            self.host(key.peer, worker)
        self.after(self.rng.uniform(0, self.weather.tick_s), lambda: self._tick(state))

    def clock_s(self, peer: PeerId) -> float:
        """What a peer takes for the time."""
        return self.peers[peer].clock.read_s(self.now_s)

    # -- faults -------------------------------------------------------------------------------

    def crash(self, peer: PeerId) -> None:
        """The process dies: links to it break at once and can't be resumed."""
        self.peers[peer].alive = False
        self.network.gone(peer, self.peers, RESET_S)

    def blackout(self, peer: PeerId) -> None:
        """The machine loses power: nobody is told, links time out."""
        self.peers[peer].alive = False
        self.network.gone(peer, self.peers, NEVER_S)

    def freeze(self, peer: PeerId, duration_s: float) -> None:
        """The process stops (SIGSTOP) and goes on later with all that waited for it."""
        state = self.peers[peer]
        state.frozen_until_s = max(state.frozen_until_s, self.now_s + duration_s)

    def slow(self, peer: PeerId, slowness: float, duration_s: float) -> None:
        """Computing takes so many times as long for a while: somebody plays a game there."""
        state = self.peers[peer]
        state.slowness, state.slow_until_s = slowness, self.now_s + duration_s

    # -- running ------------------------------------------------------------------------------

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine whose only awaits are promises, such as one that reads an answer."""

        def advance() -> None:
            try:
                promise = coroutine.send(None)
            except StopIteration:
                return
            promise.on_resolved(advance)

        self.after(0.0, advance)

    def _tick(self, state: SimulatedPeer) -> None:
        if not state.alive:
            return
        if state.frozen_until_s <= self.now_s:
            others = self._others[state.peer]
            actions = state.machine.tick(state.clock.read_s(self.now_s), others)
            self.act(state.peer, actions)
            self.watch(state)
        weather = self.weather
        pause_s = weather.tick_s if state.awaited.opened else weather.idle_tick_s
        self.after(pause_s, lambda: self._tick(state))

    def act(self, peer: PeerId, actions: Sequence[PeerAction]) -> None:
        """Carry out what a peer's machine asked for."""
        for action in actions:
            match action:
                case Send():
                    self.sees(action.message)
                    self.network.send(peer, action.peer, action.message, action.payload)
                case Run():
                    state = self.peers[peer]
                    state.inbox.append(action.job)
                    self._compute(state)
                case Arrived() | Opened() | Lost():
                    self.peers[peer].awaited.hear(action)
                case Rerouted():
                    self.peers[peer].events.append(action)
                    self.trace.tell(self.now_s, f"an owner takes another route: {action.reason}")

    def _deliver(self, source: PeerId, target: PeerId, message: Message, payload: bytes) -> float:
        state = self.peers[target]
        if state.frozen_until_s > self.now_s:
            return state.frozen_until_s
        try:
            actions = state.machine.receive(source, message, payload, self.clock_s(target))
        except RemoteError as error:
            raise LocalError(f"an honest peer was blamed: {error}") from error
        self.trace.note(self.now_s, source.encode(), target.encode())
        self.act(target, actions)
        self.watch(state)
        return 0.0

    def _down(self, peer: PeerId, lost: PeerId) -> None:
        state = self.peers[peer]
        if state.frozen_until_s > self.now_s:
            self.at(state.frozen_until_s, lambda: self._down(peer, lost))
        elif state.alive:
            self.trace.note(self.now_s, peer.encode(), lost.encode(), b"down")
            now_s = self.clock_s(peer)
            self.act(peer, state.machine.peer_down(lost, "can't be reached", now_s))
            self.watch(state)

    # -- computing ----------------------------------------------------------------------------

    def _compute(self, state: SimulatedPeer) -> None:
        """Have a turn of the engine end later, if none is under way."""
        if not state.is_computing:
            state.is_computing = True
            cost_s = self.rng.uniform(*self.weather.step_time_s)
            if any(isinstance(job, OpenJob) for job in state.inbox):
                cost_s += self.weather.load_time_s * self.rng.random()
            if state.slow_until_s > self.now_s:
                cost_s *= state.slowness
            self.after(cost_s, lambda: self._finish(state))

    def _finish(self, state: SimulatedPeer) -> None:
        if not state.alive:
            return
        if state.frozen_until_s > self.now_s:
            self.at(state.frozen_until_s, lambda: self._finish(state))
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
                now_s = state.clock.read_s(self.now_s)
                self.act(state.peer, state.machine.computed(job, outcome, now_s))
        self.watch(state)
        if state.inbox or not state.batches.is_idle:
            self._compute(state)

    # -- owning -------------------------------------------------------------------------------

    def owner(
        self, peer: PeerId, codec_name: CodecName = "raw", *, replicate: bool = False
    ) -> SimulatedOwner:
        """The swarm as `prompt.answer` sees it from one peer."""
        state = self.peers[peer]
        machine = state.machine.owning
        return SimulatedOwner(self, peer, machine, state.awaited, codec_name, replicate)
