"""The peer store: floods take a small part of it, what answered stays, and disk brings it back."""

from __future__ import annotations

from collections import Counter
from random import Random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gennode.mesh.directory import peerstore as limits
from gennode.mesh.directory.netgroup import net_group
from gennode.mesh.directory.peerstore import PeerStore, Snapshot
from gennode.wire.ids import PeerId

SECRET = bytes(range(32))
NOW_S = 1.8e9
DAY_S = 24 * 3600.0


def peer(name: str, number: int) -> PeerId:
    return PeerId(f"{name}-{number}")


def at(network: int, number: int = 0) -> tuple[str, ...]:
    """An address in one of many public networks."""
    return (f"/ip4/{20 + network // 200}.{network % 200}.{number // 250}.{1 + number % 250}/tcp/1",)


def make() -> PeerStore:
    return PeerStore(SECRET)


def flood(store: PeerStore, networks: int, count: int, *, answers: bool) -> None:
    """Hostile peers of few networks tell of each other, and answer when called."""
    for number in range(count):
        name, network = peer("hostile", number), 1000 + number % networks
        teller = net_group(at(1000 + (number + 1) % networks))
        store.heard(name, at(network, number), teller, NOW_S)
        if answers:
            store.answered(name, at(network, number), NOW_S)


def honest(store: PeerStore, count: int) -> None:
    for number in range(count):
        store.answered(peer("honest", number), at(number), NOW_S)


def test_a_peer_moves_from_new_to_tried_when_it_answers() -> None:
    store = make()
    store.heard(peer("a", 0), at(0), "somebody", NOW_S)
    assert [one.peer for one in store.snapshot().new] == [peer("a", 0)]
    assert store.feeler(Random(0)) == store.snapshot().new[0]
    store.answered(peer("a", 0), (), NOW_S + 1)
    snapshot = store.snapshot()
    assert (snapshot.new, [one.peer for one in snapshot.tried]) == ((), [peer("a", 0)])
    assert snapshot.tried[0].addresses == at(0)
    assert store.feeler(Random(0)) is None


def test_rumours_do_not_move_a_peer_that_answered() -> None:
    store = make()
    store.answered(peer("a", 0), at(0), NOW_S)
    store.heard(peer("a", 0), at(7), "liar", NOW_S + 1)
    assert store.snapshot().tried[0].addresses == at(0)
    store.answered(peer("a", 0), at(7), NOW_S + 2)  # it moved house
    [known] = store.snapshot().tried
    assert known.addresses == at(7)
    assert len(store) == 1


def test_one_network_fills_a_small_part_of_either_table() -> None:
    store = make()
    flood(store, 1, 20_000, answers=False)
    assert len(store) <= limits.NEW_BUCKETS_PER_TELLER * limits.BUCKET_PEERS
    flood(store, 1, 20_000, answers=True)
    tried = len(store.snapshot().tried)
    assert 0 < tried <= limits.TRIED_BUCKETS_PER_GROUP * limits.BUCKET_PEERS


def test_the_tables_are_bounded() -> None:
    store = make()
    for number in range(30_000):
        store.heard(peer("a", number), at(number % 4000), f"teller {number}", NOW_S)
        store.answered(peer("b", number), at(number % 4000), NOW_S)
    snapshot = store.snapshot()
    assert len(snapshot.new) <= limits.NEW_BUCKETS * limits.BUCKET_PEERS
    assert len(snapshot.tried) <= limits.TRIED_BUCKETS * limits.BUCKET_PEERS
    assert len(msgspec.msgpack.encode(snapshot)) < 1 << 20


def test_what_answered_is_not_pushed_out_until_it_fails() -> None:
    store = make()
    honest(store, 40)
    before = {one.peer for one in store.snapshot().tried}
    flood(store, 500, 20_000, answers=True)
    assert before <= {one.peer for one in store.snapshot().tried}
    for one in before:
        for _ in range(limits.MAX_FAILURES):
            store.failed(one)
    for number in range(20_000, 40_000):
        store.answered(peer("hostile", number), at(number % 4000, number), NOW_S)
    assert not before <= {one.peer for one in store.snapshot().tried}


def test_the_old_give_way() -> None:
    store = make()
    for number in range(5000):
        store.heard(peer("old", number), at(number), "teller", NOW_S)
    for number in range(5000):
        store.heard(peer("fresh", number), at(number), "teller", NOW_S + 31 * DAY_S)
    assert {one.peer.split("-")[0] for one in store.snapshot().new} == {"fresh"}


def test_picks_are_of_many_networks() -> None:
    for seed in range(100):
        store = make()
        honest(store, 20)
        flood(store, 8, 200, answers=True)
        picks = store.picks(16, Random(seed))
        groups = Counter(one.group for one in picks)
        assert len(picks) == 16
        assert max(groups.values()) == 1
        assert sum(one.peer.startswith("honest") for one in picks) >= 8


def test_of_one_public_network_two_are_picked_and_of_the_local_one_all() -> None:
    store = make()
    flood(store, 1, 50, answers=True)
    assert len(store.picks(16, Random(0))) == limits.MAX_PICKS_PER_GROUP
    store = make()
    for number in range(20):
        store.answered(peer("a", number), (f"/ip4/127.0.0.1/tcp/{number}",), NOW_S)
    assert len(store.picks(16, Random(0))) == 16


def test_anchors_are_those_that_answered_one_of_each_network() -> None:
    store = make()
    honest(store, 3)
    store.answered(peer("twin", 0), at(0, 9), NOW_S)
    store.heard(peer("heard", 0), at(9), "teller", NOW_S)
    store.anchor(
        [peer("twin", 0), peer("heard", 0), peer("gone", 0), *(peer("honest", n) for n in range(3))]
    )
    assert [one.peer for one in store.anchors] == [
        peer("twin", 0),
        peer("honest", 1),
        peer("honest", 2),
    ]
    store.anchor([])
    assert len(store.anchors) == 3


def test_a_store_comes_back_as_it_was() -> None:
    store = make()
    honest(store, 100)
    flood(store, 8, 500, answers=False)
    store.anchor([peer("honest", 1), peer("honest", 2)])
    data = msgspec.msgpack.encode(store.snapshot())
    again = PeerStore.restored(msgspec.msgpack.decode(data, type=Snapshot))
    assert again.snapshot() == store.snapshot()
    assert again.picks(16, Random(5)) == store.picks(16, Random(5))
    assert len(again.anchors) == 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["heard", "answered", "failed"]),
            st.integers(0, 20),
            st.integers(0, 5),
            st.floats(0, 1e6),
        ),
        max_size=60,
    )
)
def test_a_peer_is_in_one_table_and_in_its_bucket(
    events: list[tuple[str, int, int, float]],
) -> None:
    store = make()
    for what, number, network, later_s in events:
        if what == "heard":
            store.heard(peer("a", number), at(network), "teller", NOW_S + later_s)
        elif what == "answered":
            store.answered(peer("a", number), at(network), NOW_S + later_s)
        else:
            store.failed(peer("a", number))
        snapshot = store.snapshot()
        names = [one.peer for one in (*snapshot.new, *snapshot.tried)]
        assert len(names) == len(set(names)) == len(store)
        assert PeerStore.restored(snapshot).snapshot() == snapshot
