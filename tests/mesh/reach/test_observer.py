"""Observers on real daemons: what they see, whom they dial, and whom they leave alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from gennode.errors import NetworkError, RemoteError
from gennode.mesh.memory import MemoryNetwork
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.mesh.reach.observer import PROTOCOL, Observer, ask_observer, ask_observers, dial
from gennode.mesh.reach.reach import Dialled
from gennode.wire.ids import PeerId
from gennode.wire.signing import Key
from tests.mesh.ends import Raw


@dataclass
class Pair:
    """One who asks, and one who observes."""

    asker: P2pdTransport
    observer: P2pdTransport
    dialled: list[tuple[str, int]] = field(default_factory=list)
    banned: set[PeerId] = field(default_factory=set)

    async def dial(self, host: str, port: int) -> bool:
        """Really, and written down."""
        self.dialled.append((host, port))
        return await dial(host, port)

    async def raw(self) -> Raw:
        """A stream of the protocol, without manners."""
        return Raw(await self.asker.open(self.observer.peer, PROTOCOL, timeout_s=5))


@asynccontextmanager
async def pair(clock_s: float = 0.0) -> AsyncIterator[Pair]:
    asker = await P2pdTransport.start(Key(bytes([1]) * 32))
    observer = await P2pdTransport.start(Key(bytes([2]) * 32))
    both = Pair(asker, observer)
    try:
        async with asyncio.TaskGroup() as tasks:
            await Observer(
                observer,
                tasks,
                both.dial,
                lambda: time.time() + clock_s,
                both.banned.__contains__,
            ).start()
            await asker.connect(observer.addresses()[0], timeout_s=5)
            yield both
    finally:
        await asker.close()
        await observer.close()


async def test_an_observer_tells_what_it_sees_and_dials_back() -> None:
    async with pair(clock_s=300.0) as both:
        seen = await ask_observer(both.asker, both.observer.peer, both.asker.port)
        assert seen.observer == ("127.0.0.1", both.observer.port)
        assert seen.seen == ("127.0.0.1", both.asker.port)  # dials leave from the listening port
        assert seen.dialled is Dialled.REACHED
        assert both.dialled == [("127.0.0.1", both.asker.port)]
        assert seen.clock_skew_s == pytest.approx(300.0, abs=5.0)
        assert seen.round_trip_s > 0


async def test_it_dials_one_peer_seldom_and_only_where_it_sees_it() -> None:
    async with pair() as both:
        nobody = both.asker.port - 1 if both.asker.port > 2000 else both.asker.port + 1
        first = await ask_observer(both.asker, both.observer.peer, nobody)
        assert first.dialled is Dialled.NOT_REACHED
        again = await ask_observer(both.asker, both.observer.peer, both.asker.port)
        assert again.dialled is Dialled.NOT_TRIED
        assert both.dialled == [("127.0.0.1", nobody)]


async def test_only_a_libp2p_node_counts_as_reached() -> None:
    def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP, at your service")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        assert not await dial("127.0.0.1", server.sockets[0].getsockname()[1])


@pytest.mark.parametrize("request_bytes", [b"\x00\x16", b"\x00\x00and more"])
async def test_a_request_that_makes_no_sense_ends_the_stream(request_bytes: bytes) -> None:
    async with pair() as both:
        stream = await both.raw()
        stream.stream.write(request_bytes)
        await stream.wait_for(closed=True)
        assert not both.dialled


async def test_a_banned_peer_is_not_answered() -> None:
    async with pair() as both:
        both.banned.add(both.asker.peer)
        with pytest.raises((NetworkError, RemoteError)):
            await ask_observer(both.asker, both.observer.peer, 0)
        assert await ask_observers(both.asker, [both.observer.peer], 0) == ()


async def test_who_answers_nonsense_or_not_at_all_is_left_out() -> None:
    network = MemoryNetwork()
    asker, liar = network.join(PeerId("asker")), network.join(PeerId("liar"))
    await liar.accept(PROTOCOL, _lie)
    silent = network.join(PeerId("silent"))
    assert await ask_observers(asker, [liar.peer, silent.peer, PeerId("gone")], 0) == ()
    with pytest.raises(RemoteError, match="malformed"):
        await ask_observer(asker, liar.peer, 0)


def _lie(stream: object) -> None:
    liar = Raw(stream)  # type: ignore[arg-type]
    liar.stream.write(bytes(10_000))
    liar.stream.close()
