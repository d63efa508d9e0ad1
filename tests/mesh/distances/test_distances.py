"""Probes are few, echoes are bounded, and only what was asked for is believed."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from gennode.errors import RemoteError
from gennode.mesh.distances import distances as limits
from gennode.mesh.distances.distances import (
    FIRST_PARTNERS,
    UNKNOWN_WAY_S,
    Distances,
    Outgoing,
    predicted_way_s,
)
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import PeerId
from gennode.wire.messages import MAX_PROBE_BYTES, Echo, Probe

OWN = PeerId("own")
HERE = Coordinate(0.0, 0.0, 0.002, 0.1)
NEAR = Coordinate(0.03, 0.04, 0.002, 0.1)


def peers(count: int) -> list[PeerId]:
    return [PeerId(f"peer-{number}") for number in range(count)]


def make() -> Distances:
    return Distances(OWN, Random(1))


def echo(
    one: Distances, sent: Outgoing, now_s: float, coordinate: Coordinate = NEAR
) -> list[Outgoing]:
    peer, probe, _ = sent
    return one.receive(peer, Echo(probe.nonce, coordinate), b"", now_s)


def measure(
    one: Distances, rtts_s: dict[PeerId, float], until_s: float
) -> list[tuple[float, Outgoing]]:
    """Let partners answer, each after its time; a megabyte takes a second more. What was asked."""
    partners, asked = list(rtts_s), []
    for tick in range(int(until_s * 10)):
        waiting = [(tick / 10, sent) for sent in one.tick(tick / 10, partners)]
        while waiting:
            now_s, sent = waiting.pop()
            asked.append((now_s, sent))
            heard_s = now_s + rtts_s[sent[0]] + len(sent[2]) / 1e6
            waiting += [(heard_s, more) for more in echo(one, sent, heard_s)]
    return asked


def test_a_newcomer_asks_some_at_once_and_each_twice() -> None:
    one = make()
    sent = one.tick(0.0, peers(20))
    first = [peer for peer, _, _ in sent]
    assert FIRST_PARTNERS <= len(set(first)) == len(first) <= FIRST_PARTNERS + 1
    assert all(payload == b"" for _, _, payload in sent)
    again = echo(one, sent[0], 0.5)
    assert [peer for peer, _, _ in again] == first[:1]
    assert one.rtt_s(first[0]) is None  # the first may have paid for the connection
    assert echo(one, again[0], 0.54) == []
    assert one.rtt_s(first[0]) == pytest.approx(0.04)
    assert one.coordinate.is_measured
    assert one.announced == one.coordinate


def test_the_least_of_the_last_few_round_trips_counts() -> None:
    one, partner = make(), peers(1)
    for rtt_s, tick in zip([0.5, 0.05, 0.3, 0.2], range(4), strict=True):
        measure_once(one, partner, tick * 10.0, rtt_s)
    assert one.rtt_s(partner[0]) == pytest.approx(0.05)
    for tick in range(4, 9):
        measure_once(one, partner, tick * 10.0, 0.2)
    assert one.rtt_s(partner[0]) == pytest.approx(0.2)


def measure_once(one: Distances, partner: list[PeerId], now_s: float, rtt_s: float) -> None:
    for sent in one.tick(now_s, partner):
        for more in echo(one, sent, now_s + rtt_s):
            echo(one, more, now_s + 2 * rtt_s)


def test_an_echo_that_nobody_asked_for_is_ignored() -> None:
    one, (partner, stranger) = make(), peers(2)
    [sent] = one.tick(0.0, [partner])
    nonce = sent[1].nonce
    one.receive(stranger, Echo(nonce, NEAR), b"", 0.01)
    one.receive(partner, Echo(nonce ^ 1, NEAR), b"", 0.01)
    assert one.rtt_s(partner) is None
    assert len(echo(one, sent, 0.02)) == 1
    assert echo(one, sent, 0.03) == []  # only once
    assert not one.coordinate.is_measured


def test_an_answer_after_ten_seconds_is_none() -> None:
    one, [partner] = make(), peers(1)
    [sent] = one.tick(0.0, [partner])
    assert echo(one, sent, 10.5) == []
    one.tick(20.0, [partner])
    assert one.rtt_s(partner) is None


def test_probes_are_answered_and_floods_are_not() -> None:
    one, many = make(), peers(1000)
    [(to, answer, payload)] = one.receive(many[0], Probe(7), bytes(MAX_PROBE_BYTES), 0.0)
    assert (to, answer, payload) == (many[0], Echo(7, one.coordinate), b"")
    flood = sum(len(one.receive(many[1], Probe(number), b"", 1.0)) for number in range(100))
    assert flood == limits.ECHOES_BURST
    swarm = sum(len(one.receive(peer, Probe(1), b"", 2.0)) for peer in many)
    assert swarm <= limits.ALL_ECHOES_BURST
    assert len(one.receive(many[0], Probe(8), b"", 60.0)) == 1


def test_payloads_have_a_limit() -> None:
    one, [peer] = make(), peers(1)
    with pytest.raises(RemoteError):
        one.receive(peer, Probe(1), bytes(MAX_PROBE_BYTES + 1), 0.0)
    with pytest.raises(RemoteError):
        one.receive(peer, Echo(1, NEAR), b"x", 0.0)


def test_memory_is_bounded_and_old_measures_go() -> None:
    one, many = make(), peers(3000)
    for turn in range(0, 3000, 8):
        for sent in one.tick(turn / 4, many[turn : turn + 8]):
            for more in echo(one, sent, turn / 4 + 0.05):
                echo(one, more, turn / 4 + 0.1)
        one.receive(many[turn], Probe(1), b"", turn / 4)
    held = [len(one._seen), len(one._probed_s), len(one._pending), len(one._echoes)]
    assert max(held) <= limits.MAX_TRACKED
    measured = [peer for peer in many if one.rtt_s(peer) is not None]
    assert measured
    one.tick(2000.0, many)
    assert all(one.rtt_s(peer) is None for peer in many)


def test_all_partners_have_their_turn() -> None:
    one, partners = make(), peers(16)
    asked = measure(one, dict.fromkeys(partners, 0.02), 300.0)
    turns = Counter(peer for _, (peer, _, _) in asked)
    assert max(turns.values()) - min(turns.values()) <= 6  # first ones, and payloads
    assert len(asked) < 180


def test_our_line_is_measured_rarely_and_by_those_nearby() -> None:
    one, partners = make(), peers(16)
    near = partners[:4]
    asked = measure(one, {peer: 0.01 if peer in near else 0.2 for peer in partners}, 700.0)
    full = [(now_s, peer) for now_s, (peer, _, payload) in asked if payload]
    assert one.upload_bytes_per_s == pytest.approx(1e6)
    assert {peer for _, peer in full} <= set(near)
    assert 4 <= len(full) <= 6  # three at first, then one in five minutes
    assert full[0][0] >= limits.FIRST_UPLOAD_INTERVAL_S
    assert full[3][0] - full[2][0] > 200


def test_without_a_measure_nothing_is_said_of_the_line() -> None:
    assert make().upload_bytes_per_s == 0


def test_small_moves_are_not_announced() -> None:
    one, partners = make(), peers(8)
    measure(one, dict.fromkeys(partners, 0.1), 60.0)
    told = one.announced
    assert one.coordinate.rtt_s(NEAR) == pytest.approx(0.1, rel=0.1)
    measure_once(one, partners, 70.0, 0.1)
    assert one.announced is told


def test_links_are_measured_then_predicted_then_guessed() -> None:
    one, (near, other, unknown) = make(), peers(3)
    where = {near: NEAR, other: HERE}
    assert one.link_time_s(near, other, where) == pytest.approx(NEAR.rtt_s(HERE) / 2)
    assert one.link_time_s(near, unknown, where) == UNKNOWN_WAY_S
    assert one.link_time_s(OWN, near, where) == UNKNOWN_WAY_S  # we don't know where we are
    measure(one, {near: 0.06}, 10.0)
    assert one.link_time_s(OWN, near, where) == pytest.approx(0.03)
    assert one.link_time_s(near, OWN, where) == pytest.approx(0.03)
    assert one.link_time_s(OWN, other, where) == pytest.approx(one.coordinate.rtt_s(HERE) / 2)


def test_what_peers_claim_is_bounded_by_what_we_measured() -> None:
    one, (near, far) = make(), peers(2)
    measure(one, {near: 0.02, far: 0.2}, 10.0)
    same = {near: NEAR, far: NEAR}
    assert one.link_time_s(near, far, same) == pytest.approx(0.09)
    apart = {near: NEAR, far: Coordinate(9.0, 9.0, 9.0, 0.1)}
    assert one.link_time_s(near, far, apart) == pytest.approx(0.11)


def test_a_coordinate_that_was_never_measured_predicts_nothing() -> None:
    assert predicted_way_s(Coordinate(), NEAR) == UNKNOWN_WAY_S
    assert predicted_way_s(None, NEAR) == UNKNOWN_WAY_S
    assert predicted_way_s(HERE, NEAR) == pytest.approx(0.027)
