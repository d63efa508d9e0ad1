"""Two hundred hostile peers around a node that restarts: two honest links remain, every time."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from gennode.mesh.directory.neighbours import Neighbours
from gennode.mesh.directory.netgroup import net_group
from gennode.mesh.directory.peerstore import PeerStore, Snapshot
from gennode.wire.ids import PeerId

HOSTILE, HONEST = 200, 60
RUMOURS = 300  # of made-up peers, told by the hostile ones
CALLS = 16
NOW_S = 1.8e9
Where = tuple[PeerId, tuple[str, ...]]


def crowd(rng: Random, name: str, count: int, networks: int) -> list[Where]:
    """Peers in so many networks of their own, each with one address."""
    first = 40 if name == "hostile" else 20
    return [
        (
            PeerId(f"{name}-{number}"),
            (f"/ip4/{first + number % networks // 200}.{number % networks % 200}."
             f"{rng.randrange(256)}.{rng.randrange(1, 255)}/tcp/4001",),
        )
        for number in range(count)
    ]  # fmt: skip


def attacked_store(rng: Random, honest: list[Where], hostile: list[Where]) -> PeerStore:
    """Of a node that met the honest first, and then only hostile peers, for long.

    They answer whenever they are called, and tell of each other and of peers that are not there.
    """
    store = PeerStore(rng.randbytes(32))
    for peer, addresses in honest:
        store.heard(peer, addresses, net_group(rng.choice(honest)[1]), NOW_S)
        if rng.random() < 0.5:
            store.answered(peer, addresses, NOW_S)
    for number in range(RUMOURS):
        teller = net_group(rng.choice(hostile)[1])
        invented = f"/ip4/{rng.randrange(60, 90)}.{rng.randrange(200)}.1.1/tcp/1"
        store.heard(PeerId(f"invented-{number}"), (invented,), teller, NOW_S)
        peer, addresses = rng.choice(hostile)
        store.heard(peer, addresses, teller, NOW_S)
        store.answered(peer, addresses, NOW_S)
    return store


def restarted(rng: Random, store: PeerStore, hostile: list[Where], *, answers: set[PeerId]) -> int:
    """Honest neighbours of a node that comes back with this store, without anchors.

    It calls whom the store picks; all hostile peers call on it, and its directory is full of them.
    """
    data = msgspec.msgpack.encode(store.snapshot())
    again = PeerStore.restored(msgspec.msgpack.decode(data, type=Snapshot))
    picks = {one.peer: net_group(one.addresses) for one in again.picks(CALLS, rng)}
    met = {peer: group for peer, group in picks.items() if peer in answers}
    told = {peer: net_group(addresses) for peer, addresses in hostile}
    neighbours = Neighbours(PeerId("victim"), rng)
    neighbours.offer({**told, **met}.items(), 0.0)
    return sum(peer.startswith("honest") for peer in neighbours.chosen)


@pytest.mark.parametrize("networks", [1, 4, 8])
def test_of_a_hundred_victims_each_keeps_two_honest_links(networks: int) -> None:
    fewest = HONEST
    for seed in range(100):
        rng = Random(seed)
        honest = crowd(rng, "honest", HONEST, HONEST)
        hostile = crowd(rng, "hostile", HOSTILE, networks)
        store = attacked_store(rng, honest, hostile)
        answers = {peer for peer, _ in honest + hostile}
        links = restarted(rng, store, hostile, answers=answers)
        assert links >= 2, f"{links} honest links under seed {seed}"
        fewest = min(fewest, links)
    assert fewest >= 2


def test_anchors_hold_where_the_tables_alone_might_not() -> None:
    """With as many networks as it has peers an attacker can take every place but the anchors'."""
    for seed in range(100):
        rng = Random(seed)
        honest = crowd(rng, "honest", HONEST, HONEST)
        store = attacked_store(rng, honest, crowd(rng, "hostile", HOSTILE, HOSTILE))
        tried = [one.peer for one in store.snapshot().tried if one.peer.startswith("honest")]
        store.anchor(tried)
        assert len(store.anchors) >= 2
        again = PeerStore.restored(store.snapshot())
        assert all(one.peer.startswith("honest") for one in again.anchors)
