"""Real daemons, killed in the middle of an answer: the same tokens, from the same workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import psutil
import pytest

from gennode.engine.toy import ToyOwner
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.node.live import LiveNode
from gennode.wire.signing import Key
from tests.node.toys import LAYERS, MANIFEST, THIRDS, tokens_of, toy_worker, truth

PROMPT = "what does not kill us"
WAIT_S = 60.0


@dataclass
class Swarm:
    """Three workers without a replica, and the owner: each with a daemon of its own."""

    owner: LiveNode
    workers: list[LiveNode]

    def nodes(self) -> list[LiveNode]:
        return [self.owner, *self.workers]


@asynccontextmanager
async def swarm() -> AsyncIterator[Swarm]:
    async with asyncio.timeout(WAIT_S), AsyncExitStack() as stack:
        nodes: list[LiveNode] = []
        for number in range(1 + len(THIRDS)):
            key = Key(bytes([number + 1]) * 32)
            transport = await P2pdTransport.start(key)
            stack.push_async_callback(transport.close)
            nodes.append(await stack.enter_async_context(LiveNode(transport, key)))
        owner, *workers = nodes
        for worker, span in zip(workers, THIRDS, strict=True):
            await worker.bootstrap(owner.transport.addresses())
            await worker.serve(toy_worker(span))
        for node in nodes:  # whoever knows an address can call there again
            await node.find_workers(MANIFEST.model, LAYERS, timeout_s=WAIT_S)
        yield Swarm(owner, workers)


def kill_daemon(node: LiveNode) -> None:
    transport = node.transport
    assert isinstance(transport, P2pdTransport)
    control = f"-listen=/unix{transport.folder}/control"
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if control in command and "sh" not in command:
            process.kill()


@pytest.mark.slow  # four daemons start
@pytest.mark.parametrize("victims", [[0], [1], [0, 2], [0, 1, 2, 3]], ids=str)
async def test_the_same_tokens_though_daemons_die(victims: list[int]) -> None:
    expected = await truth(PROMPT)
    async with swarm() as cast:

        def hurt(count: int) -> None:
            if count == 10:
                for victim in victims:
                    kill_daemon(cast.nodes()[victim])

        engine = ToyOwner(MANIFEST)
        assert await tokens_of(PROMPT, engine, cast.owner, at_token=hurt) == expected
        assert await tokens_of(PROMPT, engine, cast.owner) == expected
