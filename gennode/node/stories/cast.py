"""Who plays in a story: workers, owners, and the shell that they run in."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from gennode.engine.seam import ShardEngine
from gennode.engine.toy import toy_manifest
from gennode.node.hops.spill import MemoryStore
from gennode.node.stories.chance import Chances
from gennode.node.stories.swarm import Clock, SimulatedSwarm
from gennode.node.worker import Worker
from gennode.wire.ids import PeerId, Span
from gennode.wire.manifest import Manifest

LAYERS = 6
THIRDS = (Span(0, 2), Span(2, 4), Span(4, 6))
MANIFEST = toy_manifest(LAYERS)
DAY_S = 86_400.0
OFTEN_RIGHT = 0.5  # of the clocks run at the rate of time itself
DRIFT = 0.01  # more than any quartz: what holds with it holds with less

MakeEngine = Callable[[Manifest], ShardEngine]


@dataclass
class Cast:
    """The peers of one story. A worker that is revived hosts what it hosted before."""

    swarm: SimulatedSwarm
    rng: random.Random
    chances: Chances
    make_engine: MakeEngine
    workers: list[PeerId] = field(default_factory=list)
    owners: list[PeerId] = field(default_factory=list)
    spans: dict[PeerId, Span] = field(default_factory=dict)
    stores: dict[PeerId, MemoryStore] = field(default_factory=dict)
    """Each worker's disk. It begins anew with its process."""
    _capacities: dict[PeerId, int] = field(default_factory=dict)

    def add_worker(self, span: Span) -> None:
        """One more that hosts these layers, and some of which may load others as well."""
        capacity_layers = self.rng.choice([span.layers, LAYERS])
        worker, store = self._worker(span, capacity_layers), self._store()
        limits = self.chances.limits
        peer = self.swarm.add(worker, limits=limits, store=store, clock=self._clock())
        self.workers.append(peer)
        self.stores[peer] = store
        self.spans[peer], self._capacities[peer] = span, capacity_layers

    def add_owner(self) -> None:
        """One more who asks."""
        self.owners.append(self.swarm.add(clock=self._clock()))

    def revive(self, peer: PeerId) -> None:
        """Start a worker's process again, unless it runs."""
        if not self.swarm.peers[peer].alive:
            worker = self._worker(self.spans[peer], self._capacities[peer])
            store = self.stores[peer] = self._store()
            self.swarm.restart(peer, worker, limits=self.chances.limits, store=store)

    def name(self, peer: PeerId) -> str:
        """As people read of it."""
        if peer in self.spans:
            return f"worker {self.workers.index(peer) + 1} [{self.spans[peer]}]"
        return f"owner {self.owners.index(peer) + 1}"

    def _worker(self, span: Span, capacity_layers: int) -> Worker:
        engine = self.make_engine(MANIFEST)
        engine.load(span)
        return Worker(engine, LAYERS, capacity_layers)

    def _store(self) -> MemoryStore:
        return MemoryStore(self.chances.disk_bytes, loses=self.chances.disk_loses)

    def _clock(self) -> Clock:
        is_right = self.rng.random() < OFTEN_RIGHT
        rate = 1.0 if is_right else self.rng.uniform(1 - DRIFT, 1 + DRIFT)
        return Clock(self.rng.uniform(0.0, DAY_S), rate)
