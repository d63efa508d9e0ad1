"""Five real worker processes of different speed that find their places, lose one and gain one."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench._random_model import random_llama
from gennode.engine.checkpoint.weights import open_model
from gennode.engine.engines import owner_engine
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.sample import Sampling
from gennode.engine.seam import OwnerEngine
from gennode.errors import GennodeError
from gennode.node.alone import Alone
from gennode.node.ask import Asker, asking
from gennode.node.prompt import Swarm, answer
from gennode.node.state import NodeCard
from gennode.node.testnet import Testnet, WorkerOptions
from gennode.sharding.plan.plan import plan
from gennode.sharding.rebalance import uncovered
from gennode.sharding.replan import decide
from gennode.sharding.snapshots import snapshot_of
from gennode.wire.ids import PeerId, Span
from gennode.wire.manifest import ModelShape
from gennode.wire.snapshot import Candidate, Snapshot

# Layers that weigh much more than their caches, so that memory for weights is what forces one
# pipeline, and every worker has room for all the sessions that it takes.
SHAPE = ModelShape(
    architecture="LlamaForCausalLM",
    layers=24,
    dim=256,
    heads=4,
    kv_heads=1,
    head_dim=64,
    ffn_dim=688,
    vocab=300,
    max_positions=128,
)
MEMORY = "28M"  # nine layers: five workers hold the model, but not twice
ROOMY_MEMORY = "52M"  # seventeen layers
SHARES = (1.0, 1.0, 0.5, 0.5, 0.25)
PROMPT_TOKENS = 40
LOOK_S = 0.2
STEADY_S = 10.0  # nobody has moved for so long

Say = Callable[[str], None]


@dataclass
class Asked:
    """What came of the prompts that were asked all the while."""

    right: int = 0
    wrong: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What was seen. `off_by_layers`: how far a worker's part is from its share of the speed, at
    worst. `moved_by_join`: workers other than the newcomer that moved for it."""

    settle_s: float
    off_by_layers: float
    moved_by_join: int
    newcomer_layers: int
    recover_s: float
    asked: Asked


class Flexible:
    """A testnet whose workers find their places, and somebody who watches."""

    def __init__(self, testnet: Testnet, options: WorkerOptions, asker: Asker, say: Say) -> None:
        self._testnet = testnet
        self._node, self._model = asker.node, asker.owner.model
        self._options = options
        self._say = say
        self._killed: set[PeerId] = set()

    def look(self) -> Snapshot:
        """The pool as the owner knows it, without workers that were killed."""
        live = [one for one in self._node.live() if one.peer not in self._killed]
        return snapshot_of(live, model=self._model, shape=SHAPE, epoch=0)

    def is_covered(self, _snapshot: Snapshot) -> bool:
        """Whether live workers announce every layer, be it for a plan or for a session's sake: a
        snapshot tells of each worker's longest span alone."""
        hosted = {
            layer
            for one in self._node.live()
            if one.peer not in self._killed and (hosting := one.hosting_of(self._model))
            for span in hosting.spans
            for layer in range(span.start, span.end)
        }
        return len(hosted) == SHAPE.layers

    async def until(self, what: str, holds: Callable[[Snapshot], bool], limit_s: float) -> float:
        """Wait for a state of the pool; how long that took."""
        start_s = time.monotonic()
        while not holds(snapshot := self.look()):
            if time.monotonic() - start_s > limit_s:
                raise AssertionError(f"{what}: not within {limit_s:.0f} s, but {held(snapshot)}")
            await asyncio.sleep(LOOK_S)
        self._say(f"{what}: {time.monotonic() - start_s:.1f} s, {held(snapshot)}")
        return time.monotonic() - start_s

    async def until_steady(self, limit_s: float) -> Snapshot:
        """Wait until nobody has moved for `STEADY_S`."""
        start_s = since_s = time.monotonic()
        snapshot = self.look()
        while time.monotonic() - since_s < STEADY_S:
            if time.monotonic() - start_s > limit_s:
                raise AssertionError(f"workers still move after {limit_s:.0f} s")
            await asyncio.sleep(LOOK_S)
            after = self.look()
            if held(after) != held(snapshot):
                since_s = time.monotonic()
            snapshot = after
        return snapshot

    def add(self) -> PeerId:
        """One more worker."""
        [card] = self._testnet.add(self._options).values()
        return card.peer

    def kill_who_is_missed_most(self) -> None:
        """End a worker's process without a word: who has most layers that nobody else holds."""
        peers = self.look().peers

        def missed(one: Candidate) -> int:
            others = [other.held for other in peers if other is not one]
            return sum(
                not any(span.start <= layer < span.end for span in others)
                for layer in range(one.held.start, one.held.end)
            )

        peer = max(peers, key=missed).peer
        self._killed.add(peer)
        for name, card in self._testnet.cards().items():
            if card.peer == peer:
                self._testnet.send_signal(name, signal.SIGKILL)


def held(snapshot: Snapshot) -> dict[str, str]:
    """Who holds what."""
    return {one.peer[-6:]: str(one.held) for one in snapshot.peers}


def parts(snapshot: Snapshot) -> dict[PeerId, int]:
    """How many layers each worker computes by the plan for the pool."""
    made = plan(snapshot)
    return {hop.peer: hop.span.layers for pipeline in made.pipelines for hop in pipeline}


def is_settled() -> Callable[[Snapshot], bool]:
    """Whether every layer is held, and each worker holds as many as a plan would give it, or no
    plan would be worth its moves. Decides anew only when somebody has moved."""
    known: dict[str, bool] = {}

    def settled(snapshot: Snapshot) -> bool:
        if uncovered(snapshot):
            return False
        placed = str(held(snapshot))
        if placed not in known:
            wanted = {hop.peer: hop.span.layers for hop in plan(snapshot).hosts}
            follows = all(one.held.layers == wanted.get(one.peer) for one in snapshot.peers)
            known[placed] = follows or decide(snapshot).plan is None
        return known[placed]

    return settled


def proportional(peers: tuple[Candidate, ...], layers: int) -> dict[PeerId, float]:
    """Layers in proportion to speed, within what each holds at most."""
    speed = {one.peer: 1 / one.cost.pass_s(1) for one in peers}
    full: dict[PeerId, float] = {}
    while True:
        open_peers = [one for one in peers if one.peer not in full]
        unit = (layers - sum(full.values())) / sum(speed[one.peer] for one in open_peers)
        over = {
            one.peer: float(one.capacity_layers)
            for one in open_peers
            if unit * speed[one.peer] > one.capacity_layers
        }
        if not over:
            return full | {one.peer: unit * speed[one.peer] for one in open_peers}
        full |= over


@asynccontextmanager
async def asked_all_the_while(
    model: Path, cards: dict[str, NodeCard]
) -> AsyncIterator[tuple[Asker, Asked]]:
    """Ask one prompt after the other as long as the context lasts, and check every token."""
    folder = open_model(model)
    engine, whole = LlamaShard(folder), Span(0, SHAPE.layers)
    engine.load(whole)
    owner, asked = owner_engine(folder), Asked()
    bootstrap = tuple(card.addresses[0] for card in cards.values())
    async with asking(str(model), bootstrap, codec_name="raw") as asker:

        async def ask() -> None:
            for number in itertools.count():
                prompt = f"prompt {number}"
                truth = await _tokens(prompt, owner, Alone(engine, [whole]))
                try:
                    given = await _tokens(prompt, asker.owner, asker.node)
                except GennodeError as error:
                    asked.failures.append(str(error))
                    continue
                asked.right += given == truth
                asked.wrong += given != truth

        task = asyncio.create_task(ask())
        try:
            yield asker, asked
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error


async def _tokens(prompt: str, owner: OwnerEngine, swarm: Swarm) -> list[int]:
    sampling = Sampling(max_tokens=PROMPT_TOKENS)
    async with aclosing(answer(prompt, owner, swarm, sampling)) as stream:
        return [token async for token in stream]


async def watch_a_kill(folder: Path, say: Say) -> tuple[float, Asked]:
    """Three workers that can hold the model, one of them killed: seconds to cover it again."""
    model = folder / "model"
    random_llama(model, SHAPE, seed=4)
    options = WorkerOptions(
        str(model), memory=ROOMY_MEMORY, threads=1, leash=True, precision="fp32"
    )
    testnet = Testnet(folder / "testnet")
    cards = testnet.up([None] * 3, options)
    try:
        async with asked_all_the_while(model, cards) as (asker, asked):
            flexible = Flexible(testnet, options, asker, say)
            await flexible.until("the first answer is here", lambda _: asked.right > 0, 60.0)
            flexible.kill_who_is_missed_most()
            recover_s = await flexible.until(
                "after a kill all layers are hosted", flexible.is_covered, 60.0
            )
            known = asked.right
            await flexible.until("another answer is here", lambda _: asked.right > known, 60.0)
        return recover_s, asked
    finally:
        testnet.down()


async def watch(folder: Path, say: Say) -> Outcome:
    """The whole story: five workers settle, one more comes, one is killed."""
    model = folder / "model"
    random_llama(model, SHAPE, seed=4)
    options = WorkerOptions(
        str(model), memory=MEMORY, threads=1, leash=True, shares=SHARES, precision="fp32"
    )
    testnet = Testnet(folder / "testnet")
    cards = testnet.up([None] * len(SHARES), options)
    try:
        async with asked_all_the_while(model, cards) as (asker, asked):
            flexible = Flexible(testnet, options, asker, say)
            settle_s = await flexible.until("all have found their places", is_settled(), 240.0)
            before = await flexible.until_steady(120.0)
            share = proportional(before.peers, SHAPE.layers)
            part = parts(before)
            off = max(abs(part.get(peer, 0) - layers) for peer, layers in share.items())
            newcomer = await asyncio.to_thread(flexible.add)
            after = await flexible.until_steady(120.0)
            moved = {one.peer: one.held for one in before.peers}
            others = [one for one in after.peers if one.peer != newcomer]
            [new] = [one for one in after.peers if one.peer == newcomer]
            flexible.kill_who_is_missed_most()
            recover_s = await flexible.until(
                "after a kill all layers are hosted", flexible.is_covered, 60.0
            )
        return Outcome(
            settle_s=settle_s,
            off_by_layers=off,
            moved_by_join=sum(moved[one.peer] != one.held for one in others),
            newcomer_layers=new.held.layers,
            recover_s=recover_s,
            asked=asked,
        )
    finally:
        testnet.down()
