"""The in-memory network behaves like a real one, faults included."""

from __future__ import annotations

import pytest

from gennode.errors import NetworkError, UsageError
from gennode.mesh.memory import MemoryNetwork
from gennode.wire.signing import Key
from tests.mesh.ends import Raw, take

A, B = Key(bytes(32)).peer, Key(bytes([1]) * 32).peer


@pytest.mark.parametrize("delay_s", [0.0, 0.005])
async def test_bytes_and_ends_travel_in_order(delay_s: float) -> None:
    network = MemoryNetwork(delay_s=delay_s)
    a, b = network.join(A), network.join(B)
    accepted: list[Raw] = []
    await b.accept("/x", lambda stream: accepted.append(Raw(stream)))
    assert await a.connect(b.addresses()[0], timeout_s=1) == B
    near = Raw(await a.open(B, "/x", timeout_s=1))
    near.stream.write(b"one", memoryview(b"two"))
    near.stream.write(b"three")
    near.stream.close()
    near.stream.write(b"lost")
    (far,) = accepted
    assert far.stream.peer == A
    await far.wait_for(closed=True)
    await near.wait_for(closed=True)
    assert far.data == b"onetwothree"


async def test_an_aborted_stream_loses_what_is_on_its_way() -> None:
    network = MemoryNetwork()
    a, b = network.join(A), network.join(B)
    accepted: list[Raw] = []
    await b.accept("/x", lambda stream: accepted.append(Raw(stream)))
    near = Raw(await a.open(B, "/x", timeout_s=1))
    near.stream.write(b"one")
    near.stream.abort()
    await accepted[0].wait_for(closed=True)
    assert not accepted[0].data


async def test_a_paused_stream_waits() -> None:
    network = MemoryNetwork()
    a, b = network.join(A), network.join(B)
    accepted: list[Raw] = []
    await b.accept("/x", lambda stream: accepted.append(Raw(stream)))
    near = Raw(await a.open(B, "/x", timeout_s=1))
    far = accepted[0]
    far.stream.pause(True)
    near.stream.write(b"one")
    far.stream.write(b"back")
    await near.wait_for(4)
    assert near.stream.unsent_bytes() == 3
    far.stream.pause(False)
    await far.wait_for(3)
    assert near.stream.unsent_bytes() == 0


async def test_a_crashed_peer_is_gone() -> None:
    network = MemoryNetwork()
    a, b = network.join(A), network.join(B)
    await b.accept("/x", take)
    await b.provide(bytes(32))
    assert await a.find_providers(bytes(32), limit=1, timeout_s=1) == [B]
    near = Raw(await a.open(B, "/x", timeout_s=1))
    network.crash(B)
    await near.wait_for(closed=True)
    with pytest.raises(NetworkError):
        await a.open(B, "/x", timeout_s=1)
    with pytest.raises(NetworkError):
        await b.open(A, "/x", timeout_s=1)
    assert await a.find_providers(bytes(32), limit=1, timeout_s=1) == []


async def test_wrong_addresses_and_protocols() -> None:
    network = MemoryNetwork()
    a, _ = network.join(A), network.join(B)
    with pytest.raises(UsageError):
        await a.connect("/ip4/127.0.0.1/tcp/1", timeout_s=1)
    with pytest.raises(NetworkError):
        await a.open(B, "/unknown", timeout_s=1)
    await a.close()
    await a.close()
