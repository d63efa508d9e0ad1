"""What each role switches on, and which addresses are worth telling."""

from __future__ import annotations

import pytest

from gennode.mesh.p2pd.roles import (
    MAX_RELAYS,
    Role,
    better_relays,
    is_reached_by_relay,
    next_role,
    role_environment,
    role_flags,
    usable_relays,
    worth_telling,
)
from gennode.mesh.reach.reach import Dialled, Sighting
from gennode.wire.ids import PeerId

PEER = "12D3KooWGjSE7eCu5f1Pa8pGxscmoEcdQ5BRMGqbyMvL2dhrPCS5"
RELAY = f"/ip4/11.22.33.11/tcp/4001/p2p/{PEER}"
CIRCUIT = f"{RELAY}/p2p-circuit/p2p/{PEER}"
LOOPBACK, HOME = f"/ip4/127.0.0.1/tcp/7/p2p/{PEER}", f"/ip4/192.168.1.2/tcp/7/p2p/{PEER}"


def test_only_a_relay_relays_and_only_a_nat_makes_a_dht_client() -> None:
    for role in Role:
        flags = role_flags(role, [RELAY])
        assert ("-relayService=1" in flags) == (role is Role.RELAY)
        assert ("-dhtClient" in flags) == (role is Role.PRIVATE)
        assert ("-dhtServer" in flags) == (role is not Role.PRIVATE)
        assert (f"-trustedRelays={RELAY}" in flags) == (role is Role.PRIVATE)
        assert "-relayDiscovery=0" in flags  # it would search the public network
        assert ("-autoRelay=0" in role_flags(role, [])) == (
            "-autoRelay=1" not in role_flags(role, [])
        )
        assert bool(role_environment(role)) == (role is Role.RELAY)


def test_relays_are_looked_for_at_direct_addresses_each_once() -> None:
    many = [f"/ip4/11.22.33.11/tcp/{port}/p2p/{PEER}" for port in range(1, 20)]
    assert usable_relays([CIRCUIT, RELAY, RELAY]) == (RELAY,)
    assert len(usable_relays(many)) == MAX_RELAYS


def test_real_relays_take_the_place_of_peers_that_were_met_first() -> None:
    own, met, other = PeerId("own"), "/ip4/11.1.1.1/tcp/1/p2p/met", PeerId("other")
    announced = {other: [RELAY, CIRCUIT, HOME]}
    assert better_relays(own, [met], {}, lost=True) == ()
    assert better_relays(own, [met], announced, lost=False) == (RELAY, HOME)
    assert better_relays(own, [RELAY], announced, lost=False) == ()
    assert better_relays(own, [RELAY, HOME], announced, lost=True) == ()
    assert better_relays(own, [RELAY], announced | {PeerId("more"): [met]}, lost=True)
    spread = {
        better_relays(PeerId(f"peer {number}"), [], {PeerId(f"{n}"): [f"/ip4/11.1.1.{n}/tcp/1"]
                      for n in range(30)}, lost=True)[0]
        for number in range(100)
    }  # fmt: skip
    assert len(spread) > 20


@pytest.mark.parametrize("role", [Role.PUBLIC, Role.PRIVATE, Role.RELAY])
def test_public_addresses_are_told_first_and_loopback_never(role: Role) -> None:
    assert worth_telling([CIRCUIT, LOOPBACK, HOME, RELAY], role) == (RELAY, HOME, CIRCUIT)


def test_a_local_node_tells_of_loopback() -> None:
    assert worth_telling([LOOPBACK], Role.LOCAL) == (LOOPBACK,)


def test_a_relay_address_is_recognised() -> None:
    assert is_reached_by_relay([HOME, CIRCUIT])
    assert not is_reached_by_relay([HOME, RELAY])


def sighting(observer: str, dialled: Dialled) -> Sighting:
    return Sighting((observer, 4001), ("5.5.5.5", 4001), dialled, 0.04, 0.0)


REACHED, MISSED = sighting("1.1.1.1", Dialled.REACHED), sighting("1.1.1.1", Dialled.NOT_REACHED)
ALSO_MISSED = sighting("2.2.2.2", Dialled.NOT_REACHED)


@pytest.mark.parametrize(
    ("role", "sightings", "expected"),
    [
        (Role.PRIVATE, [], Role.PRIVATE),
        (Role.PRIVATE, [MISSED, ALSO_MISSED], Role.PRIVATE),
        (Role.PRIVATE, [ALSO_MISSED, REACHED], Role.PUBLIC),
        (Role.PUBLIC, [MISSED, MISSED], Role.PUBLIC),
        (Role.PUBLIC, [MISSED, ALSO_MISSED], Role.PRIVATE),
        (Role.PUBLIC, [ALSO_MISSED, REACHED], Role.PUBLIC),
        (Role.RELAY, [MISSED, ALSO_MISSED], Role.RELAY),
        (Role.LOCAL, [REACHED], Role.LOCAL),
    ],
)
def test_observers_move_a_node_from_role_to_role(
    role: Role, sightings: list[Sighting], expected: Role
) -> None:
    assert next_role(role, sightings) is expected
