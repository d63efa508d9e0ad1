"""Strangers at a py-libp2p node: impostors are refused, floods cost them their connection."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import psutil
import pytest
import trio
from libp2p.abc import ISecureTransport
from libp2p.crypto.ed25519 import Ed25519PublicKey, create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.rsa import create_new_key_pair as rsa_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.security.secio.transport import ID as SECIO
from libp2p.security.secio.transport import Transport as Secio
from libp2p.security.tls.transport import PROTOCOL_ID as TLS
from libp2p.security.tls.transport import TLSTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.transport.upgrader import TransportUpgrader

from gennode.errors import NetworkError
from gennode.mesh.multiaddr import peer_to_bytes
from gennode.mesh.pylibp2p.limits import MAX_CONNECTIONS, MAX_INBOUND, MAX_INBOUND_STREAMS
from gennode.mesh.pylibp2p.transport import PyLibp2pTransport
from gennode.mesh.transport import Stream
from gennode.wire.ids import public_key_of
from gennode.wire.signing import Key
from tests.mesh.ends import Raw, steady

VICTIM, HONEST, EVIL = (Key(bytes([number]) * 32) for number in (1, 2, 3))
PROTOCOL = "/x"
FLOOD_BYTES = 256 * 1024 * 1024
MAX_GROWTH_BYTES = 64 * 1024 * 1024
WAIT_S = 30.0
ENDS = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError, EOFError)


class Accepted:
    """What a node that never reads was sent."""

    def __init__(self) -> None:
        self.streams: list[Raw] = []
        self._any = asyncio.Event()

    async def first(self) -> Raw:
        """The first stream, once it is here."""
        await self._any.wait()
        return self.streams[0]

    def take(self, stream: Stream) -> None:
        """Accept, and read nothing."""
        stream.pause(True)
        self.streams.append(Raw(stream))
        self._any.set()


@asynccontextmanager
async def victim() -> AsyncIterator[tuple[PyLibp2pTransport, Accepted]]:
    transport = await PyLibp2pTransport.start(VICTIM)
    try:
        accepted = Accepted()
        await transport.accept(PROTOCOL, accepted.take)
        yield transport, accepted
        await serves(transport)
    finally:
        await transport.close()


async def serves(transport: PyLibp2pTransport) -> None:
    """An honest peer is served, whatever went on before."""
    honest = await PyLibp2pTransport.start(HONEST)
    try:
        await transport.accept("/hello", lambda stream: Raw(stream).stream.write(b"hello"))
        await honest.connect(transport.addresses()[0], timeout_s=WAIT_S)
        await Raw(await honest.open(VICTIM.peer, "/hello", timeout_s=WAIT_S)).wait_for(5)
    finally:
        await honest.close()


def pair(key: Key) -> KeyPair:
    return create_new_key_pair(key.to_libp2p()[4:36])


def noise(identity: KeyPair) -> dict[TProtocol, ISecureTransport]:
    return {NOISE: Noise(identity, x25519_key_pair().private_key)}


def impostors() -> dict[str, dict[TProtocol, ISecureTransport]]:
    """Other ways to say who one is. In plain text the honest peer's public key is all it takes."""
    stolen = KeyPair(
        pair(EVIL).private_key, Ed25519PublicKey.from_bytes(public_key_of(HONEST.peer))
    )
    return {
        "plaintext": {TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(stolen)},
        "secio": {TProtocol(SECIO): Secio(pair(EVIL))},
        "tls": {TLS: TLSTransport(pair(EVIL))},
    }


async def dial(transport: PyLibp2pTransport, security: dict[TProtocol, ISecureTransport]) -> Yamux:
    """A connection of the attacker's, multiplexed and not yet started."""
    port = int(transport.addresses()[0].split("/")[4])
    tcp = TrioTCPStream(await trio.open_tcp_stream("127.0.0.1", port))
    upgrader = TransportUpgrader(security, {TProtocol(YAMUX): Yamux})
    target = ID(peer_to_bytes(VICTIM.peer))
    try:
        secured = await upgrader.upgrade_security(RawConnection(tcp, True), True, target)
        muxed = await upgrader.upgrade_connection(secured, target)
    except BaseException:
        await tcp.close()
        raise
    assert isinstance(muxed, Yamux)
    return muxed


async def attack(
    act: Callable[[Yamux], Awaitable[None]],
    transport: PyLibp2pTransport,
    security: dict[TProtocol, ISecureTransport] | None = None,
) -> None:
    """Run `act` on a connection that is as honest as py-libp2p makes it, in another thread."""

    async def run() -> None:
        with trio.move_on_after(WAIT_S), suppress(*ENDS):
            muxed = await dial(transport, security or noise(pair(EVIL)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(muxed.start)
                await muxed.event_started.wait()
                with suppress(*ENDS):
                    await act(muxed)
                await muxed.secured_conn.close()
                nursery.cancel_scope.cancel()

    await asyncio.to_thread(trio.run, run)


async def chosen(muxed: Yamux) -> YamuxStream:
    """A stream that the victim's handler has taken."""
    stream = await muxed.open_stream()
    await MultiselectClient().select_one_of(
        [TProtocol(PROTOCOL)], MultiselectCommunicator(stream), 10
    )
    return stream


@pytest.mark.parametrize("way", ["plaintext", "secio", "tls"])
async def test_only_noise_says_who_a_peer_is(way: str) -> None:
    async with victim() as (transport, accepted):

        async def impersonate() -> None:
            await dial(transport, impostors()[way])

        with pytest.raises(ENDS):
            await asyncio.to_thread(trio.run, impersonate)
        assert not accepted.streams


async def test_a_peer_with_another_kind_of_key_is_none_of_ours() -> None:
    async with victim() as (transport, accepted):
        served = False

        async def join(muxed: Yamux) -> None:
            nonlocal served
            await chosen(muxed)
            served = True

        await attack(join, transport, noise(rsa_key_pair()))
        assert not served
        assert not accepted.streams
        assert await transport.direct_peers() == frozenset()


async def test_a_dialler_offers_nothing_but_noise() -> None:
    heard: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Multistream-select, saying no to whatever is proposed."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                line = await reader.readexactly((await reader.readexactly(1))[0])
                heard.append(line)
                answer = line if line.startswith(b"/multistream/") else b"na\n"
                writer.write(bytes([len(answer)]) + answer)
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with victim() as (transport, _), server:
        port = server.sockets[0].getsockname()[1]
        address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{HONEST.peer}"
        with pytest.raises(NetworkError):
            await transport.connect(address, timeout_s=WAIT_S)
    assert heard == [b"/multistream/1.0.0\n", b"/noise\n"]


async def test_a_flood_past_the_window_ends_the_connection() -> None:
    async with victim() as (transport, accepted):
        sent_bytes = 0

        async def flood(muxed: Yamux) -> None:
            nonlocal sent_bytes
            stream, block = await chosen(muxed), bytes(64 * 1024)
            while sent_bytes < FLOOD_BYTES:
                stream.send_window = len(block)  # whatever was granted
                await stream.write(block)
                sent_bytes += len(block)

        before_bytes = psutil.Process().memory_info().rss
        await attack(flood, transport)
        assert psutil.Process().memory_info().rss - before_bytes < MAX_GROWTH_BYTES
        assert sent_bytes < MAX_GROWTH_BYTES
        (stream,) = accepted.streams
        stream.stream.pause(False)
        await stream.wait_for(closed=True)


async def test_a_line_without_end_before_the_handshake_costs_nothing() -> None:
    async with victim() as (transport, _):
        port = int(transport.addresses()[0].split("/")[4])
        before_bytes = psutil.Process().memory_info().rss
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x80\x80\x80\x80\x04")  # 1 GiB follows, it says
        sent_bytes = 0
        with suppress(ConnectionError):
            async with asyncio.timeout(WAIT_S):
                while sent_bytes < FLOOD_BYTES:
                    writer.write(bytes(1024 * 1024))
                    await writer.drain()
                    sent_bytes += 1024 * 1024
        assert sent_bytes < MAX_GROWTH_BYTES
        writer.transport.abort()
        del reader
        assert psutil.Process().memory_info().rss - before_bytes < MAX_GROWTH_BYTES


async def test_whoever_reads_nothing_can_t_keep_us_from_closing() -> None:
    accepted, deaf, over = Accepted(), threading.Event(), threading.Event()
    transport = await PyLibp2pTransport.start(VICTIM)

    async def gape(muxed: Yamux) -> None:
        await chosen(muxed)
        if muxed._nursery is not None:
            muxed._nursery.cancel_scope.cancel()  # which was reading
        deaf.set()
        await trio.to_thread.run_sync(over.wait)

    await transport.accept(PROTOCOL, accepted.take)
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        group.create_task(attack(gape, transport))
        try:
            await asyncio.to_thread(deaf.wait, WAIT_S)
            stream = (await accepted.first()).stream
            stream.write(bytes(MAX_GROWTH_BYTES))
            await steady(stream)
            assert stream.unsent_bytes()
        finally:
            await transport.close()
            over.set()


async def test_streams_without_number_are_reset() -> None:
    async with victim() as (transport, accepted):
        taken = 0

        async def crowd(muxed: Yamux) -> None:
            nonlocal taken
            for _ in range(4 * MAX_INBOUND_STREAMS):
                with suppress(*ENDS):
                    await chosen(muxed)
                    taken += 1

        await attack(crowd, transport)
        assert 0 < taken <= MAX_INBOUND_STREAMS
        assert len(accepted.streams) <= MAX_INBOUND_STREAMS


async def test_whoever_comes_and_goes_takes_nobody_s_place() -> None:
    async with victim() as (transport, _):
        port = int(transport.addresses()[0].split("/")[4])
        for _ in range(2 * MAX_INBOUND):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(os.urandom(64))
            with suppress(OSError):
                writer.write_eof()
                await reader.read()
            writer.transport.abort()

        async def greet(muxed: Yamux) -> None:
            await chosen(muxed)

        for _ in range(MAX_CONNECTIONS + 4):
            await attack(greet, transport)
