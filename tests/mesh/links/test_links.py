"""Links over the in-memory network: order, loss, death, breaches, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from gennode.errors import LocalError, RemoteError
from gennode.mesh.links import incoming, outgoing
from gennode.mesh.links.links import Links
from gennode.mesh.links.outgoing import PROTOCOL
from gennode.mesh.links.protocol import Reply, Sender, reply
from gennode.mesh.memory import MemoryNetwork
from gennode.mesh.transport import Stream
from gennode.wire.ids import PeerId
from gennode.wire.messages import Message
from gennode.wire.signing import Key
from tests.mesh.ends import Diary, Raw, ping, take

A, B = Key(bytes(32)).peer, Key(bytes([1]) * 32).peer


@asynccontextmanager
async def two(network: MemoryNetwork) -> AsyncIterator[tuple[Diary, Diary]]:
    a, b = Diary(network.join(A)), Diary(network.join(B), echo=True)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(a.links)
        await stack.enter_async_context(b.links)
        yield a, b


async def test_messages_arrive_in_order_and_come_back() -> None:
    async with two(MemoryNetwork()) as (a, b):
        a.links.learn(B, b.transport.addresses())
        for nonce in range(200):
            a.links.send(B, ping(nonce), bytes(nonce))
        await a.wait_for(messages=200)
        assert a.got == [(B, nonce, bytes(nonce)) for nonce in range(200)]
    assert not a.downs
    assert not b.downs


async def test_to_ourselves_through_the_loop() -> None:
    async with two(MemoryNetwork()) as (a, _):
        a.links.send(A, ping(1), memoryview(b"x"))
        assert not a.got
        await a.wait_for(messages=1)
        assert a.got == [(A, 1, b"x")]


async def test_resets_lose_and_double_nothing() -> None:
    network = MemoryNetwork(delay_s=0.0005)
    async with two(network) as (a, b):
        for nonce in range(300):
            a.links.send(B, ping(nonce), bytes(1000))
            if nonce % 30 == 0:
                await a.wait_for(messages=nonce // 2)
                network.reset_streams(A, B)
        await a.wait_for(messages=300)
        assert [nonce for _, nonce, _ in b.got] == list(range(300))
        assert [nonce for _, nonce, _ in a.got] == list(range(300))
    assert not a.downs
    assert not b.downs


async def test_closing_sends_all_that_is_queued() -> None:
    network = MemoryNetwork(delay_s=0.001)
    b = Diary(network.join(B))
    async with b.links:
        a = Diary(network.join(A))
        async with a.links:
            for nonce in range(100):
                a.links.send(B, ping(nonce), bytes(10_000))
        assert len(b.got) == 100
        with pytest.raises(LocalError):
            a.links.send(B, ping(0))
    assert not a.downs
    assert not b.downs


async def test_a_closed_link_can_be_opened_again() -> None:
    async with two(MemoryNetwork()) as (a, b):
        a.links.send(B, ping(1))
        a.links.close_peer(B)
        await b.wait_for(messages=1)
        a.links.send(B, ping(2))
        await b.wait_for(messages=2)
    assert not a.downs
    assert not b.downs


async def test_a_dead_peer_is_reported_once() -> None:
    network = MemoryNetwork()
    async with two(network) as (a, _):
        a.links.send(B, ping(1))
        await a.wait_for(messages=1)
        network.crash(B)
        await a.wait_for(downs=1)
        await asyncio.sleep(0)
        assert [(peer, breach) for peer, _, breach in a.downs] == [(B, False)]
        a.links.send(B, ping(2))
        await a.wait_for(downs=2)


async def test_an_unknown_peer_is_reported() -> None:
    async with two(MemoryNetwork()) as (a, _):
        stranger = Key(bytes([2]) * 32).peer
        a.links.send(stranger, ping(1))
        await a.wait_for(downs=1)
        assert a.downs[0][0] == stranger


async def test_a_peer_that_is_too_slow_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gennode.mesh.links.protocol.MAX_QUEUED_BYTES", 10_000)
    async with two(MemoryNetwork()) as (a, _):
        for nonce in range(20):
            a.links.send(B, ping(nonce), bytes(1000))
        await a.wait_for(downs=1)
        assert "too slow" in a.downs[0][1]
        assert not a.downs[0][2]


@pytest.mark.parametrize("greet", [True, False])
async def test_garbage_drops_the_peer_and_only_that(greet: bool) -> None:
    network = MemoryNetwork()
    evil = network.join(Key(bytes([3]) * 32).peer)
    async with two(network) as (a, b):
        raw = Raw(await evil.open(B, PROTOCOL, timeout_s=1))
        raw.stream.write(Sender(bytes(16)).hello() if greet else b"", b"\xff" * 5000)
        await raw.wait_for(closed=True)
        await b.wait_for(downs=1)
        assert b.downs[0][0] == evil.peer
        assert b.downs[0][2]
        a.links.send(B, ping(1))
        await a.wait_for(messages=1)
        assert len(b.downs) == 1


async def test_wrong_replies_are_a_breach() -> None:
    network = MemoryNetwork()
    evil = network.join(B)
    await evil.accept(PROTOCOL, lambda stream: Raw(stream).stream.write(b"\xff" * 9))
    a = Diary(network.join(A))
    async with a.links:
        a.links.send(B, ping(1))
        await a.wait_for(downs=1)
        assert a.downs[0][2]


async def test_a_peer_that_keeps_resetting_is_given_up() -> None:
    network = MemoryNetwork()
    opened: list[Raw] = []

    def reset(stream: Stream) -> None:
        opened.append(Raw(stream))
        stream.write(reply(Reply.WELCOME))
        asyncio.get_running_loop().call_later(0.001, stream.abort)

    await network.join(B).accept(PROTOCOL, reset)
    a = Diary(network.join(A))
    async with a.links:
        a.links.send(B, ping(1))
        await a.wait_for(downs=1)
    assert len(opened) == outgoing.MAX_RESETS + 1


async def test_a_message_that_the_node_refuses_is_a_breach() -> None:
    network = MemoryNetwork()
    downs: asyncio.Queue[bool] = asyncio.Queue()

    def refuse(peer: PeerId, message: Message, payload: bytes) -> None:
        raise RemoteError("no such session")

    b = Links(network.join(B), refuse, lambda peer, reason, breach: downs.put_nowait(breach))
    a = Diary(network.join(A))
    async with b, a.links:
        a.links.send(B, ping(1))
        assert await downs.get()


async def test_silence_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gennode.mesh.links.links.SWEEP_S", 0.01)
    monkeypatch.setattr(incoming, "HELLO_TIMEOUT_S", 0.02)
    monkeypatch.setattr(incoming, "FRAME_TIMEOUT_S", 0.02)
    monkeypatch.setattr(outgoing, "WELCOME_TIMEOUT_S", 0.02)
    network = MemoryNetwork()
    mute = network.join(Key(bytes([3]) * 32).peer)
    await mute.accept(PROTOCOL, take)
    async with two(network) as (a, _):
        silent = Raw(await mute.open(B, PROTOCOL, timeout_s=1))
        slow = Raw(await mute.open(B, PROTOCOL, timeout_s=1))
        slow.stream.write(Sender(bytes(16)).hello(), b"\x02")
        await silent.wait_for(closed=True)
        await slow.wait_for(closed=True)
        a.links.send(mute.peer, ping(1))
        await a.wait_for(downs=1)
        assert "welcome" in a.downs[0][1]


async def test_a_link_that_broke_and_stays_away_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gennode.mesh.links.links.SWEEP_S", 0.01)
    monkeypatch.setattr(incoming, "LINK_MEMORY_S", 0.02)
    network = MemoryNetwork()
    b = Diary(network.join(B))
    async with b.links:
        leaver = network.join(A)
        raw = Raw(await leaver.open(B, PROTOCOL, timeout_s=1))
        raw.stream.write(Sender(bytes(16)).hello())
        await raw.wait_for(9)
        network.crash(A)
        await b.wait_for(downs=1)
        assert b.downs[0][0] == A
        assert not b.downs[0][2]


async def test_streams_and_links_of_one_peer_are_limited() -> None:
    network = MemoryNetwork()
    greedy = network.join(A)
    b = Diary(network.join(B))
    async with b.links:
        raws = []
        for index in range(incoming.MAX_STREAMS_PER_PEER + 1):
            raws.append(Raw(await greedy.open(B, PROTOCOL, timeout_s=1)))
            raws[-1].stream.write(Sender(bytes([index]) * 16).hello())
        await raws[-1].wait_for(closed=True)
        await raws[0].wait_for(9)
        assert not raws[0].reason


async def test_many_links_of_one_peer_forget_the_oldest() -> None:
    network = MemoryNetwork()
    b = Diary(network.join(B))
    async with b.links:
        restless = network.join(A)
        for index in range(3 * incoming.MAX_LINKS_PER_PEER):
            raw = Raw(await restless.open(B, PROTOCOL, timeout_s=1))
            raw.stream.write(Sender(bytes([index]) * 16).hello())
            await raw.wait_for(9)
            raw.stream.close()
            await raw.wait_for(closed=True)
        assert not b.downs


async def test_unfinished_frames_share_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "MAX_BUFFERED_BYTES", 100_000)
    monkeypatch.setattr("gennode.mesh.links.links.SWEEP_S", 0.01)
    async with two(MemoryNetwork(delay_s=0.0001)) as (a, b):
        for nonce in range(3):
            a.links.send(B, ping(nonce), bytes(300_000))
        await a.wait_for(messages=3)
        assert len(b.got) == 3


async def test_a_peer_that_restarted_has_forgotten_the_link() -> None:
    network = MemoryNetwork()
    a = Diary(network.join(A))
    async with a.links:
        first = Diary(network.join(B), echo=True)
        async with first.links:
            for nonce in range(100):  # enough for an acknowledgement at once
                a.links.send(B, ping(nonce))
            await a.wait_for(messages=100)
            second = Diary(first.transport, echo=True)
            async with second.links:
                network.reset_streams(A, B)
                await a.wait_for(downs=1)
                assert not a.downs[0][2]
                a.links.send(B, ping(7))
                await second.wait_for(messages=1)
                assert [nonce for _, nonce, _ in second.got] == [7]


async def test_a_link_leaves_its_relay_in_mid_stream() -> None:
    network = MemoryNetwork(delay_s=0.0005)
    network.relay(A, B)
    async with two(network) as (a, b):
        for nonce in range(50):
            a.links.send(B, ping(nonce), bytes(1000))
        await a.wait_for(messages=10)
        assert a.links._outgoing[B].is_relayed
        await a.links._look_for_direct()  # nothing to be had yet
        assert a.links._outgoing[B].is_relayed
        network.relay(A, B, relayed=False)
        for nonce in range(50, 100):
            a.links.send(B, ping(nonce), bytes(1000))
        await a.links._look_for_direct()
        await b.links._look_for_direct()
        for nonce in range(100, 150):
            a.links.send(B, ping(nonce), bytes(1000))
        await a.wait_for(messages=150)
        assert [nonce for _, nonce, _ in a.got] == list(range(150))
        assert not a.links._outgoing[B].is_relayed
    assert not a.downs
    assert not b.downs
