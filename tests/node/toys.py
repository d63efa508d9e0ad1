"""Live toy swarms on one memory network, and the answers that they must give."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field

from gennode.engine.sample import Sampling
from gennode.engine.seam import OwnerEngine
from gennode.engine.toy import ToyOwner, ToyShard, toy_manifest
from gennode.mesh.memory import MemoryNetwork
from gennode.node.actions import Opened, Rerouted
from gennode.node.alone import Alone
from gennode.node.live import LiveNode
from gennode.node.prompt import Swarm, answer
from gennode.node.worker import Worker
from gennode.wire.fields import CodecName
from gennode.wire.ids import Span
from gennode.wire.signing import Key

LAYERS = 6
MANIFEST = toy_manifest(LAYERS)
THIRDS = (Span(0, 2), Span(2, 4), Span(4, 6))
WAIT_S = 20.0
SAMPLING = Sampling(max_tokens=32)
OWNER_SEED, ATTACKER_SEED = 200, 201


async def tokens_of(
    prompt: str,
    owner: OwnerEngine,
    swarm: Swarm,
    sampling: Sampling = SAMPLING,
    *,
    at_token: Callable[[int], None] = lambda _count: None,
) -> list[int]:
    """A whole answer; `at_token` is told how many tokens there are by now."""
    tokens: list[int] = []
    async with aclosing(answer(prompt, owner, swarm, sampling)) as stream:
        async for token in stream:
            tokens.append(token)
            at_token(len(tokens))
    return tokens


async def truth(prompt: str, sampling: Sampling = SAMPLING) -> list[int]:
    """The toy's answer on one machine that never fails, uncoded."""
    return await tokens_of(prompt, ToyOwner(MANIFEST), toy_alone(), sampling)


def toy_alone() -> Alone:
    """All layers of the toy in this process."""
    engine, whole = ToyShard(MANIFEST), Span(0, LAYERS)
    engine.load(whole)
    return Alone(engine, [whole])


@dataclass
class Cast:
    """A running swarm: workers in the order in which they were asked for, and the owner."""

    network: MemoryNetwork
    owner: LiveNode
    workers: list[LiveNode] = field(default_factory=list)
    events: list[Opened | Rerouted] = field(default_factory=list)
    engine: ToyOwner = field(default_factory=lambda: ToyOwner(MANIFEST))

    async def ask(
        self, prompt: str, *, at_token: Callable[[int], None] = lambda _count: None
    ) -> list[int]:
        """A whole answer of the swarm, within the time that a test may take."""
        async with asyncio.timeout(WAIT_S):
            return await tokens_of(prompt, self.engine, self.owner, at_token=at_token)

    def crash(self, index: int) -> None:
        """Take a worker away without a word."""
        self.network.crash(self.workers[index].machine.peer)

    @property
    def repairs(self) -> list[Rerouted]:
        """What the owner was told of repairs."""
        return [event for event in self.events if isinstance(event, Rerouted)]

    def on_route(self) -> list[int]:
        """Indices of the workers that the last route goes through."""
        last = self.events[-1]
        hops = last.route if isinstance(last, Opened) else last.after
        order = [worker.machine.peer for worker in self.workers]
        return [order.index(hop.peer) for hop in hops]


def toy_worker(span: Span, engine: ToyShard | None = None) -> Worker:
    """A worker that hosts one span and no more."""
    engine = engine or ToyShard(MANIFEST)
    engine.load(span)
    return Worker(engine, LAYERS, capacity_layers=span.layers)


@asynccontextmanager
async def staged(
    workers: Sequence[Worker], *, codec_name: CodecName = "raw"
) -> AsyncIterator[Cast]:
    """A live swarm on a memory network whose owner knows every worker.

    No callback of the event loop may fail while it runs: nobody but the loop's own handler
    would hear of it.
    """
    failures: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(
        lambda _loop, told: failures.append(told.get("exception") or told["message"])
    )
    async with AsyncExitStack() as stack:
        network = MemoryNetwork()
        key = Key(bytes([OWNER_SEED]) * 32)
        events: list[Opened | Rerouted] = []
        transport = network.join(key.peer)
        stack.push_async_callback(transport.close)
        owner = LiveNode(transport, key, codec_name=codec_name, on_event=events.append)
        cast = Cast(network, await stack.enter_async_context(owner), events=events)
        for number, worker in enumerate(workers, start=1):
            await _add(cast, stack, number, worker)
        async with asyncio.timeout(WAIT_S):
            while len(owner.live()) < len(workers):
                owner._directory_changed.clear()
                await owner._directory_changed.wait()
        yield cast
    assert failures == []


async def _add(cast: Cast, stack: AsyncExitStack, number: int, worker: Worker) -> None:
    key = Key(bytes([number]) * 32)
    transport = cast.network.join(key.peer)
    stack.push_async_callback(transport.close)
    node = await stack.enter_async_context(LiveNode(transport, key))
    await node.bootstrap(cast.owner.transport.addresses())
    await node.serve(worker)
    cast.workers.append(node)
