"""What sightings say of a NAT, and answers of observers that may be anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.errors import RemoteError
from gennode.mesh.reach.reach import (
    Answer,
    Dialled,
    Nat,
    Sighting,
    endpoint,
    is_dialable,
    is_public,
    is_relayed,
    nat_kind,
    pack_answer,
    pack_request,
    unpack_answer,
    unpack_request,
)

RELAY = "/ip4/11.22.33.11/tcp/4001/p2p/12D3KooWGjSE7eCu5f1Pa8pGxscmoEcdQ5BRMGqbyMvL2dhrPCS5"


def sighting(observer: str, host: str, port: int, dialled: Dialled = Dialled.NOT_TRIED) -> Sighting:
    return Sighting((observer, 4001), (host, port), dialled, 0.04, 0.0)


def test_endpoints_are_read_from_direct_addresses_only() -> None:
    assert endpoint("/ip4/192.0.2.1/tcp/4001") == ("192.0.2.1", 4001)
    assert endpoint("/ip6/2001:db8::1/tcp/1/p2p/x") == ("2001:db8::1", 1)
    assert endpoint(f"{RELAY}/p2p-circuit") is None
    assert endpoint("/dns4/example.org/tcp/4001") is None
    assert endpoint("/memory/p2p/x") is None
    assert is_relayed(f"{RELAY}/p2p-circuit")
    assert not is_relayed(RELAY)


def test_only_global_addresses_are_public() -> None:
    assert is_public("11.22.33.44")
    assert not any(map(is_public, ["127.0.0.1", "10.0.0.1", "192.168.1.1", "::1", "fe80::1"]))


@pytest.mark.parametrize(
    ("sightings", "expected"),
    [
        ([], Nat.UNKNOWN),
        ([sighting("1.1.1.1", "5.5.5.5", 4001)], Nat.UNKNOWN),
        ([sighting("1.1.1.1", "9.9.9.9", 4001)], Nat.NONE),
        ([sighting("1.1.1.1", "5.5.5.5", 7), sighting("2.2.2.2", "5.5.5.5", 7)], Nat.CONE),
        ([sighting("1.1.1.1", "5.5.5.5", 7), sighting("2.2.2.2", "5.5.5.5", 8)], Nat.SYMMETRIC),
        ([sighting("1.1.1.1", "5.5.5.5", 7), sighting("1.1.1.1", "5.5.5.5", 8)], Nat.UNKNOWN),
        ([sighting("1.1.1.1", "9.9.9.9", 7), sighting("2.2.2.2", "9.9.9.9", 8)], Nat.NONE),
    ],
)
def test_the_kind_of_nat_follows_from_what_observers_see(
    sightings: list[Sighting], expected: Nat
) -> None:
    assert nat_kind(sightings, ["9.9.9.9", "192.168.1.10"]) is expected


def test_one_observer_that_reaches_us_is_enough() -> None:
    missed = sighting("1.1.1.1", "5.5.5.5", 7, Dialled.NOT_REACHED)
    reached = sighting("2.2.2.2", "5.5.5.5", 7, Dialled.REACHED)
    assert not is_dialable([missed])
    assert is_dialable([missed, reached])


def test_requests_never_name_a_port_of_the_system() -> None:
    assert unpack_request(pack_request(0)) == 0
    assert unpack_request(pack_request(4001)) == 4001
    with pytest.raises(RemoteError, match="port 22"):
        unpack_request(pack_request(22))


@given(
    st.sampled_from(list(Dialled)),
    st.integers(0, 2**64 - 1),
    st.sampled_from(["/ip4/1.2.3.4/tcp/5", f"{RELAY}/p2p-circuit"]),
)
def test_answers_survive_the_wire(dialled: Dialled, clock_ms: int, address: str) -> None:
    answer = Answer(dialled, clock_ms, address)
    assert unpack_answer(pack_answer(answer)) == answer


@given(st.binary(max_size=64))
def test_any_other_answer_is_a_breach(data: bytes) -> None:
    with pytest.raises(RemoteError):
        unpack_answer(data)
