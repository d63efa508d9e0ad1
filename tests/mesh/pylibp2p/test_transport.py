"""py-libp2p alone and beside real daemons: streams, links, rendezvous, back-pressure, the end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
from multiaddr import Multiaddr

from gennode.errors import NetworkError, RemoteError, UsageError
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.mesh.pylibp2p.host import each_interface
from gennode.mesh.pylibp2p.limits import WINDOW_BYTES
from gennode.mesh.pylibp2p.stream import READ_AHEAD_BYTES, READ_BYTES
from gennode.mesh.pylibp2p.transport import PyLibp2pTransport
from gennode.mesh.transport import Stream, Transport
from gennode.wire.signing import Key
from tests.mesh.ends import Diary, Raw, ping, steady, take

WAIT_S = 20.0
KINDS: dict[str, type[P2pdTransport] | type[PyLibp2pTransport]] = {
    "p2pd": P2pdTransport,
    "pylibp2p": PyLibp2pTransport,
}
PAIRS = [("pylibp2p", "pylibp2p"), ("pylibp2p", "p2pd"), ("p2pd", "pylibp2p")]


def key(number: int) -> Key:
    return Key(bytes([number]) * 32)


@asynccontextmanager
async def transports(*kinds: str) -> AsyncIterator[list[Transport]]:
    """Each of its kind, with keys 0, 1, 2 and so on."""
    async with AsyncExitStack() as stack:
        started: list[Transport] = []
        for number, kind in enumerate(kinds):
            transport = await KINDS[kind].start(key(number))
            stack.push_async_callback(transport.close)
            started.append(transport)
        yield started


async def test_identity_addresses_and_no_thread_left_behind() -> None:
    async with transports("pylibp2p") as (a,):
        assert a.peer == key(0).peer
        (address,) = a.addresses()
        assert address.startswith("/ip4/127.0.0.1/tcp/")
        assert address.endswith(f"/p2p/{a.peer}")
        assert "py-libp2p" in {thread.name for thread in threading.enumerate()}
        assert isinstance(a, PyLibp2pTransport)
        folder = a.folder
        assert folder.is_dir()
    assert "py-libp2p" not in {thread.name for thread in threading.enumerate()}
    assert not folder.exists()
    with pytest.raises(NetworkError, match="closed"):
        await a.provide(bytes(32))
    await a.close()


@pytest.mark.parametrize(("dialler", "listener"), PAIRS)
async def test_links_carry_small_and_large_frames(dialler: str, listener: str) -> None:
    async with transports(dialler, listener) as (first, second), AsyncExitStack() as stack:
        a, b = Diary(first), Diary(second, echo=True)
        await stack.enter_async_context(a.links)
        await stack.enter_async_context(b.links)
        a.links.learn(second.peer, second.addresses())
        sizes = [1024, 8192, 1024 * 1024, 0, 8 * 1024 * 1024]
        payloads = [os.urandom(size) for size in sizes]
        for number, payload in enumerate(payloads):
            a.links.send(second.peer, ping(number), payload)
        await a.wait_for(messages=len(sizes))
        assert [payload for _, _, payload in a.got] == payloads
        assert not a.downs
        assert not b.downs


@pytest.mark.parametrize(("dialler", "listener"), PAIRS)
async def test_a_close_delivers_all_and_an_unknown_protocol_is_refused(
    dialler: str, listener: str
) -> None:
    async with transports(dialler, listener) as (a, b):
        arrived: asyncio.Queue[Raw] = asyncio.Queue()
        await b.accept("/known", lambda stream: arrived.put_nowait(Raw(stream)))
        await a.connect(b.addresses()[0], timeout_s=5)
        near = Raw(await a.open(b.peer, "/known", timeout_s=5))
        sent = os.urandom(3 * 1024 * 1024)
        near.stream.write(sent[:1], sent[1:])
        near.stream.close()
        async with asyncio.timeout(WAIT_S):
            far = await arrived.get()
        await far.wait_for(len(sent), closed=True)
        assert far.data == sent
        assert far.stream.peer == a.peer
        await near.wait_for(closed=True)
        near.stream.write(b"too late")
        near.stream.close()
        near.stream.abort()
        with pytest.raises(NetworkError, match="not supported") as caught:
            await a.open(b.peer, "/unknown", timeout_s=5)
        assert caught.value.hint


@pytest.mark.parametrize(("dialler", "listener"), PAIRS)
async def test_a_reset_is_told_to_both_ends(dialler: str, listener: str) -> None:
    async with transports(dialler, listener) as (a, b):
        arrived: asyncio.Queue[Raw] = asyncio.Queue()
        await b.accept("/x", lambda stream: arrived.put_nowait(Raw(stream)))
        await a.connect(b.addresses()[0], timeout_s=5)
        near = Raw(await a.open(b.peer, "/x", timeout_s=5))
        near.stream.write(b"hello")
        async with asyncio.timeout(WAIT_S):
            far = await arrived.get()
        await far.wait_for(5)
        near.stream.abort()
        await near.wait_for(closed=True)
        await far.wait_for(closed=True)


@pytest.mark.parametrize(("sender", "reader"), PAIRS)
async def test_a_paused_reader_stops_the_sender_and_loses_nothing(sender: str, reader: str) -> None:
    async with transports(sender, reader) as (a, b):
        arrived: asyncio.Queue[Raw] = asyncio.Queue()

        def accept(stream: Stream) -> None:
            stream.pause(True)
            arrived.put_nowait(Raw(stream))

        await b.accept("/flood", accept)
        await a.connect(b.addresses()[0], timeout_s=5)
        near = Raw(await a.open(b.peer, "/flood", timeout_s=5))
        sent = os.urandom(32 * 1024 * 1024)
        near.stream.write(sent)
        async with asyncio.timeout(WAIT_S):
            far = await arrived.get()
        await steady(near.stream)
        unsent_bytes = near.stream.unsent_bytes()
        if (sender, reader) == ("pylibp2p", "pylibp2p"):  # else the daemon holds some as well
            assert unsent_bytes > len(sent) - WINDOW_BYTES - READ_AHEAD_BYTES - READ_BYTES
        assert unsent_bytes > 0
        assert not far.data
        far.stream.pause(False)
        await far.wait_for(len(sent))
        assert far.data == sent
        await steady(near.stream)
        assert near.stream.unsent_bytes() == 0


@pytest.mark.parametrize(("one", "other"), PAIRS[:2])
async def test_both_may_dial_at_once(one: str, other: str) -> None:
    async with transports(one, other) as (first, second), AsyncExitStack() as stack:
        a, b = Diary(first), Diary(second)
        await stack.enter_async_context(a.links)
        await stack.enter_async_context(b.links)
        a.links.learn(second.peer, second.addresses())
        b.links.learn(first.peer, first.addresses())
        for number in range(8):
            a.links.send(second.peer, ping(number), os.urandom(8192))
            b.links.send(first.peer, ping(number), os.urandom(8192))
        await a.wait_for(messages=8)
        await b.wait_for(messages=8)
        assert [number for _, number, _ in a.got] == list(range(8))
        assert [number for _, number, _ in b.got] == list(range(8))
        assert not a.downs
        assert not b.downs


async def test_a_peer_that_goes_away_is_reported() -> None:
    async with transports("pylibp2p", "pylibp2p") as (first, second), AsyncExitStack() as stack:
        a, b = Diary(first), Diary(second, echo=True)
        await stack.enter_async_context(a.links)
        await stack.enter_async_context(b.links)
        a.links.learn(second.peer, second.addresses())
        a.links.send(second.peer, ping(1))
        await a.wait_for(messages=1)
        await second.close()
        await a.wait_for(downs=1)
        assert [(peer, breach) for peer, _, breach in a.downs] == [(second.peer, False)]
        await b.wait_for(downs=1)


@pytest.mark.parametrize("middle", ["p2pd", "pylibp2p"])
async def test_providers_are_found_among_daemons(middle: str) -> None:
    """The daemons hold the records: py-libp2p is a client of their DHT."""
    async with transports("p2pd", "p2pd", "pylibp2p", middle) as (hub, other, first, second):
        for peer in (other, first, second):
            await peer.connect(hub.addresses()[0], timeout_s=5)
        name = os.urandom(32)
        assert await second.find_providers(name, limit=3, timeout_s=5) == []
        async with asyncio.timeout(WAIT_S):
            while first.peer not in await second.find_providers(name, limit=3, timeout_s=5):
                with suppress(NetworkError):  # until they find that the others speak DHT
                    await first.provide(name)
        with pytest.raises(UsageError):
            await first.provide(b"short")
        await other.provide(name)
        assert await first.find_providers(name, limit=3, timeout_s=5)
        await other.accept("/hello", lambda stream: Raw(stream).stream.write(b"hello"))
        found = Raw(await first.open(other.peer, "/hello", timeout_s=5))  # by its id alone
        await found.wait_for(5)


async def test_nobody_to_ask_is_no_answer() -> None:
    async with transports("pylibp2p") as (a,):
        assert await a.find_providers(bytes(32), limit=3, timeout_s=5) == []
        with pytest.raises(NetworkError, match="no peer of the DHT"):
            await a.provide(bytes(32))


async def test_what_can_t_be_reached_is_named_and_may_be_dialled_again() -> None:
    async with transports("pylibp2p", "p2pd") as (a, b):
        nobody = f"/ip4/127.0.0.1/tcp/1/p2p/{key(9).peer}"
        wrong_id = b.addresses()[0].replace(b.peer, key(9).peer)
        relayed = f"{b.addresses()[0]}/p2p-circuit/p2p/{key(9).peer}"
        cases = ((nobody, "refused"), (nobody, "refused"), (wrong_id, "does not correspond"))
        for address, reason in (*cases, (relayed, "TCP addresses only")):
            with pytest.raises(NetworkError, match=reason) as caught:
                await a.connect(address, timeout_s=5)
            assert caught.value.hint
        for text in ("nonsense", "/ip4/127.0.0.1/tcp/1"):
            with pytest.raises(UsageError):
                await a.connect(text, timeout_s=5)
        with pytest.raises(NetworkError, match="not connected"):
            await a.open(key(9).peer, "/x", timeout_s=5)
        with pytest.raises(RemoteError):
            await a.open(key(9).peer[:-2], "/x", timeout_s=5)  # type: ignore[arg-type]


def test_all_interfaces_are_told_one_by_one() -> None:
    told = {str(at) for at in each_interface([Multiaddr("/ip4/0.0.0.0/tcp/7")])}
    assert "/ip4/127.0.0.1/tcp/7" in told
    assert "/ip4/0.0.0.0/tcp/7" not in told
    (one,) = each_interface([Multiaddr("/ip6/::1/tcp/7")])
    assert str(one) == "/ip6/::1/tcp/7"


async def test_a_port_in_use_is_named() -> None:
    async with transports("pylibp2p") as (a,):
        port = int(a.addresses()[0].split("/")[4])
        with pytest.raises(NetworkError, match=f"port {port}") as caught:
            await PyLibp2pTransport.start(key(1), port=port)
        assert caught.value.hint


async def test_the_thread_s_death_is_reported() -> None:
    died: asyncio.Queue[str] = asyncio.Queue()
    a = await PyLibp2pTransport.start(key(0), on_exit=died.put_nowait)
    async with transports("p2pd", "pylibp2p") as (_, b):
        await b.accept("/x", take)
        await a.connect(b.addresses()[0], timeout_s=5)
        near = Raw(await a.open(b.peer, "/x", timeout_s=5))
        assert a._host is not None
        a._host._post(a._host._nursery.cancel_scope.cancel)
        async with asyncio.timeout(WAIT_S):
            assert await died.get()
        await near.wait_for(closed=True)
        with pytest.raises(NetworkError):
            await a.open(b.peer, "/x", timeout_s=5)
        await a.close()
        assert died.empty()


@pytest.mark.parametrize("turns", range(8))
async def test_a_start_that_is_cancelled_leaves_no_thread(turns: int) -> None:
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        starting = group.create_task(PyLibp2pTransport.start(key(0)))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
    if not starting.cancelled():  # it was there first
        await starting.result().close()
    assert "py-libp2p" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("turns", range(4))
async def test_an_open_that_is_cancelled_leaves_no_stream(turns: int) -> None:
    async with transports("pylibp2p", "pylibp2p") as (a, b):
        await b.accept("/x", take)
        await a.connect(b.addresses()[0], timeout_s=5)
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
            opening = group.create_task(a.open(b.peer, "/x", timeout_s=5))
            for _ in range(10**turns):
                await asyncio.sleep(0)
            opening.cancel()
        assert opening.cancelled() or opening.done()
        near = Raw(await a.open(b.peer, "/x", timeout_s=5))  # the connection is whole
        near.stream.write(b"hello")
        near.stream.close()
        await near.wait_for(closed=True)
