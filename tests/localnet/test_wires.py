"""Links delay, lose, slow and order packets as told, on any clock."""

from __future__ import annotations

import pytest

from localnet import wires
from localnet.wires import Flow, Link, Wires


def arrivals(network: Wires) -> list[tuple[float, str, bytes]]:
    """Let time run from event to event: (when, receiver, packet) of all that arrives."""
    found = []
    while (now_s := network.next_s()) is not None:
        found += [(now_s, receiver, packet) for receiver, packet in network.due(now_s)]
    return found


def test_a_packet_takes_both_links_delays() -> None:
    network = Wires({"a": Link(10), "b": Link(20)}, seed=0)
    network.send(1.0, "a", "b", b"x")
    assert list(network.due(1.0299)) == []
    [(when, receiver, packet)] = arrivals(network)
    assert (round(when, 9), receiver, packet) == (1.03, "b", b"x")
    assert network.flows == {("a", "b"): Flow(packets=1, size_bytes=1)}


def test_jitter_adds_and_keeps_order() -> None:
    network = Wires({"a": Link(10, jitter_ms=50), "b": Link()}, seed=1)
    for index in range(200):
        network.send(index / 1000, "a", "b", bytes([index]))
    found = arrivals(network)
    assert [packet for _, _, packet in found] == [bytes([index]) for index in range(200)]
    lateness = [when - packet[0] / 1000 for when, _, packet in found]
    assert min(lateness) >= 0.01
    assert max(lateness) <= 0.0601
    assert max(lateness) - min(lateness) > 0.02


def test_a_far_sender_holds_up_no_near_one() -> None:
    network = Wires({"far": Link(100), "near": Link(1), "b": Link(5)}, seed=0)
    network.send(0.0, "far", "b", b"first")
    network.send(0.0, "near", "b", b"second")
    assert [(round(when, 6), packet) for when, _, packet in arrivals(network)] == [
        (0.006, b"second"),
        (0.105, b"first"),
    ]


def test_loss_strikes_on_each_link_and_is_seeded() -> None:
    def survivors(seed: int) -> list[bytes]:
        network = Wires({"a": Link(loss=0.5), "b": Link(loss=0.5)}, seed=seed)
        for index in range(4000):
            network.send(float(index), "a", "b", index.to_bytes(2, "big"))
        found = [packet for _, _, packet in arrivals(network)]
        flow = network.flows["a", "b"]
        assert (flow.packets, flow.lost) == (len(found), 4000 - len(found))
        return found

    assert survivors(1) == survivors(1) != survivors(2)
    assert 0.22 < len(survivors(1)) / 4000 < 0.28


@pytest.mark.parametrize("slow", ["a", "b"])
def test_a_rate_spaces_packets(slow: str) -> None:
    links = {"a": Link(), "b": Link()} | {slow: Link(rate_mbit=8)}  # a byte in a microsecond
    network = Wires(links, seed=0)
    for _ in range(3):
        network.send(0.0, "a", "b", bytes(1000))
    assert [when for when, _, _ in arrivals(network)] == pytest.approx([0.001, 0.002, 0.003])


def test_a_slow_link_drops_what_would_wait_too_long() -> None:
    network = Wires({"a": Link(rate_mbit=8), "b": Link()}, seed=0)
    for _ in range(1000):
        network.send(0.0, "a", "b", bytes(1000))
    arrived = len(arrivals(network))
    assert arrived in {200, 201}  # a kilobyte in a millisecond, 0.2 s long; the sum is rounded
    assert network.flows["a", "b"].lost == 1000 - arrived


def test_what_is_held_is_bounded_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wires, "MAX_HELD_BYTES", 10)
    network = Wires({"a": Link(10), "b": Link()}, seed=0)
    for _ in range(2):
        for _ in range(3):
            network.send(0.0, "a", "b", bytes(5))
        assert len(arrivals(network)) == 2
    assert network.flows["a", "b"] == Flow(packets=4, size_bytes=20, lost=2)


def test_a_cut_loses_all_that_enters_arrives_or_is_on_the_way() -> None:
    network = Wires({"a": Link(10), "b": Link(10), "c": Link()}, seed=0)
    network.send(0.0, "a", "b", b"on its way")
    network.cut("b", cut=True)
    network.send(0.0, "b", "c", b"out")
    network.send(0.0, "c", "b", b"in")
    network.send(0.0, "a", "c", b"of others")
    assert [packet for _, _, packet in arrivals(network)] == [b"of others"]
    network.cut("b", cut=False)
    network.send(1.0, "c", "b", b"healed")
    assert [packet for _, _, packet in arrivals(network)] == [b"healed"]


def test_a_link_changes_under_way_without_reordering() -> None:
    network = Wires({"a": Link(100), "b": Link()}, seed=0)
    network.send(0.0, "a", "b", b"first")
    network.set_link("a", Link(1, rate_mbit=1))
    network.send(0.0, "a", "b", b"second")
    assert network.counts_packets
    assert [packet for _, _, packet in arrivals(network)] == [b"first", b"second"]


@pytest.mark.parametrize(
    "link", [{"loss": 1.1}, {"loss": -0.1}, {"delay_ms": -1}, {"jitter_ms": -1}, {"rate_mbit": -1}]
)
def test_no_link_is_like_that(link: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="can't be"):
        Link(**link)
