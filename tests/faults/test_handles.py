"""A worker runs short of file handles: who is served stays served, and it says how short it is."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from gennode.mesh.links.incoming import MAX_STREAMS_PER_PEER
from gennode.mesh.links.outgoing import PROTOCOL
from gennode.mesh.multiaddr import split_peers
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.mesh.reach.reach import endpoint
from gennode.node.control import ask_status
from gennode.wire.ids import Span
from gennode.wire.signing import Key
from tests.faults.stage import ROOT, Asker, Worker, measured, without

NO_PRLIMIT = without("prlimit", "--nofile=64:64", "true")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(NO_PRLIMIT), reason=f"HANDLES DON'T RUN OUT HERE: {NO_PRLIMIT}"),
]

HANDLES = 64
WHOLE = Span(0, 3)
OPEN_TIMEOUT_S = 10.0


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    """One that hosts all, with few handles for itself, its daemon and what computes."""
    started = Worker(
        tmp_path / "worker", WHOLE, prefix=("prlimit", f"--nofile={HANDLES}:{HANDLES}")
    )
    started.start()
    yield started
    started.stop()


def uses(worker: Worker) -> dict[str, dict[str, int]]:
    """What `gennode status` says of its limits."""
    command = [sys.executable, "-m", "gennode", "status", "--state", str(worker.folder), "--json"]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {one["name"]: one for one in json.loads(told)["limits"]}


async def crowd(address: str, streams: int, stack: AsyncExitStack) -> None:
    """Strangers open streams to a worker, as many as each may, and say nothing."""
    peer, _ = split_peers([address])
    for number in range(-(-streams // MAX_STREAMS_PER_PEER)):
        stranger = await P2pdTransport.start(Key(bytes([100 + number]) * 32))
        stack.push_async_callback(stranger.close)
        await stranger.connect(address, timeout_s=OPEN_TIMEOUT_S)
        for _ in range(MAX_STREAMS_PER_PEER):
            await stranger.open(peer, PROTOCOL, timeout_s=OPEN_TIMEOUT_S)


async def test_who_is_served_stays_served(worker: Worker, tmp_path: Path) -> None:
    card = await asyncio.to_thread(worker.ready)
    address = card.addresses[0]
    where = endpoint(address)
    assert where is not None
    asker = Asker((), [address], tmp_path / "asker")
    asker.ask()
    truth = asker.answer()["tokens"]
    asker.ask(pause_at=[8, 16])
    asker.paused()
    with ExitStack() as dials:
        dials.callback(asker.kill)
        limits = (await ask_status(card.control)).limits
        [limit] = [use.limit for use in limits if use.name == "inbound streams"]
        assert 0 < limit < HANDLES // 2
        async with AsyncExitStack() as strangers:
            await crowd(address, limit, strangers)
            other = await asyncio.to_thread(Asker, (), [address], tmp_path / "other")
            dials.callback(other.kill)
            other.ask()
            assert other.answer()["tokens"] == truth  # the greedy make way
            asker.go()
            asker.paused()
        for _ in range(2 * HANDLES):  # more than its daemon has handles for
            dials.enter_context(socket.create_connection(where, OPEN_TIMEOUT_S))
        asker.go()
        assert asker.answer()["tokens"] == truth
        assert worker.runs
        files = uses(worker)["open files"]
    assert files["limit"] == HANDLES
    assert 0 < files["used"] <= files["highest"] <= HANDLES
    asker = await asyncio.to_thread(Asker, (), [address], tmp_path / "last")
    asker.ask()
    assert asker.answer()["tokens"] == truth
    asker.kill()
    seen = f"same; at most {files['highest']} of {HANDLES} used; a new owner is answered later"
    measured(f"{HANDLES} handles, strangers hold all", "who is served stays served", seen)
