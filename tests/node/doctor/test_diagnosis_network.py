"""What observers and relays answered becomes the right word for how others can reach us."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gennode.mesh.p2pd.relay_check import RelayCheck
from gennode.mesh.reach.reach import Dialled
from gennode.node.doctor.diagnosis import diagnose
from gennode.node.doctor.facts import Bootstrap, Failure, Network, OwnNode, RelayTrial
from gennode.node.doctor.finding import Finding, Level, exit_code
from gennode.wire.signing import Key
from tests.node.healthy import (
    BEHIND_NAT,
    CONE,
    FACTS,
    HERE,
    NETWORK,
    OUTSIDE,
    RELAY,
    STATE,
    WORKING_RELAY,
    sighting,
    sightings,
)

UNHEARD = Failure("nobody answers", "start it", 4)
MALFORMED = Failure("no multiaddress", "look at it", 2)
MISSED = Dialled.NOT_REACHED
SYMMETRIC = tuple(sighting(n, port=5000 + n, dialled=MISSED, host=OUTSIDE) for n in range(1, 5))
LOST = RelayTrial(RELAY, UNHEARD)
FAR = RelayTrial(RELAY, RelayCheck(slot_s=0.7, round_trip_s=0.9, carry_s=2.0))
CASES = [
    ("reachability", NETWORK, Level.OK, "direct"),
    ("reachability", BEHIND_NAT, Level.OK, "punchable"),
    ("reachability", replace(BEHIND_NAT, sightings=CONE[:2]), Level.WARN, "punchable"),
    ("reachability", replace(BEHIND_NAT, sightings=SYMMETRIC), Level.WARN, "relay only"),
    ("reachability", replace(BEHIND_NAT, relays=()), Level.FAIL, "unreachable"),
    ("reachability", replace(BEHIND_NAT, relays=(LOST,)), Level.FAIL, "unreachable"),
    ("reachability", replace(NETWORK, sightings=()), Level.SKIP, "unknown"),
    (
        "reachability",
        replace(NETWORK, sightings=sightings(2, dialled=Dialled.NOT_TRIED)),
        Level.SKIP,
        "unknown",
    ),
    ("nat", NETWORK, Level.OK, "none"),
    ("nat", replace(NETWORK, sightings=CONE), Level.OK, "cone"),
    ("nat", replace(NETWORK, sightings=SYMMETRIC), Level.WARN, "symmetric"),
    ("nat", replace(NETWORK, sightings=CONE[:1]), Level.SKIP, "unknown"),
    ("observers", NETWORK, Level.OK, "2 at different addresses"),
    ("observers", replace(NETWORK, sightings=sightings(1)), Level.WARN, "only one"),
    ("observers", replace(NETWORK, sightings=()), Level.WARN, "none of those"),
    ("observers", replace(NETWORK, sightings=(), bootstraps=()), Level.SKIP, "nobody"),
    ("bootstrap", NETWORK, Level.OK, "12 ms"),
    ("bootstrap", replace(NETWORK, bootstraps=()), Level.SKIP, "--bootstrap"),
    ("bootstrap", replace(NETWORK, bootstraps=(Bootstrap(RELAY, UNHEARD),)), Level.FAIL, "nobody"),
    ("bootstrap", replace(NETWORK, bootstraps=(Bootstrap("x", MALFORMED),)), Level.FAIL, "no mul"),
    ("relay", NETWORK, Level.SKIP, "not needed"),
    ("relay", BEHIND_NAT, Level.OK, "40 ms"),
    ("relay", replace(BEHIND_NAT, relays=()), Level.SKIP, "no peer"),
    ("relay", replace(BEHIND_NAT, relays=(LOST,)), Level.FAIL, "nobody answers"),
    ("relay", replace(BEHIND_NAT, relays=(FAR,)), Level.WARN, "900 ms"),
    ("clock", NETWORK, Level.OK, "0.2 s behind"),
    ("clock", replace(NETWORK, sightings=(sighting(1, skew_s=-31),)), Level.WARN, "31.0 s ahead"),
    ("clock", replace(NETWORK, sightings=()), Level.SKIP, "nobody"),
]


def found(check: str, network: Network, host: str = HERE) -> Finding:
    """The one finding of a check on a node that listens on `host`."""
    facts = replace(FACTS, network=network, wanted=replace(FACTS.wanted, host=host))
    findings = diagnose(facts)
    (finding,) = [each for each in findings if each.check == check]
    if finding.level is Level.FAIL:
        assert exit_code(findings) == finding.exit_code != 0
    return finding


@pytest.mark.parametrize(("check", "network", "level", "words"), CASES)
def test_what_was_answered_is_judged(
    check: str, network: Network, level: Level, words: str
) -> None:
    finding = found(check, network)
    assert finding.level is level
    assert words in finding.words
    assert bool(finding.fix) == (level in (Level.WARN, Level.FAIL))


def test_one_lost_bootstrap_of_two_is_a_warning() -> None:
    pair = (Bootstrap(RELAY, 0.01), Bootstrap(OUTSIDE, UNHEARD))
    findings = diagnose(replace(FACTS, network=replace(NETWORK, bootstraps=pair)))
    levels = [each.level for each in findings if each.check == "bootstrap"]
    assert levels == [Level.OK, Level.WARN]
    assert exit_code(findings) == 0


def test_one_lost_relay_of_two_is_a_warning() -> None:
    pair = (WORKING_RELAY, LOST)
    findings = diagnose(replace(FACTS, network=replace(BEHIND_NAT, relays=pair)))
    levels = [each.level for each in findings if each.check == "relay"]
    assert levels == [Level.OK, Level.WARN]


def test_a_node_on_loopback_is_told_so_and_not_of_a_nat() -> None:
    seen = replace(NETWORK, sightings=SYMMETRIC)
    finding = found("reachability", seen, "127.0.0.1")
    assert finding.level is Level.WARN
    assert "--host" in finding.fix
    assert found("nat", seen, "127.0.0.1").level is Level.SKIP


def test_the_node_that_runs_says_where_it_listens() -> None:
    """Whatever the doctor is asked for."""
    for host, level in ((HERE, Level.OK), ("127.0.0.1", Level.WARN)):
        node = OwnNode(Key(bytes(32)).peer, (f"/ip4/{host}/tcp/4001/p2p/x",), 1)
        facts = replace(FACTS, state=replace(STATE, node=node))
        (finding,) = [each for each in diagnose(facts) if each.check == "reachability"]
        assert finding.level is level


def test_a_firewall_is_told_from_a_nat() -> None:
    walled = replace(NETWORK, sightings=sightings(2, dialled=MISSED))
    assert "firewall" in found("reachability", walled).fix
    mapped = replace(NETWORK, sightings=CONE)
    assert "router" in found("reachability", mapped).fix


def test_one_liar_among_the_clocks_changes_nothing() -> None:
    seen = (sighting(1, skew_s=0.1), sighting(2, skew_s=1e9), sighting(3, skew_s=-0.2))
    assert found("clock", replace(NETWORK, sightings=seen)).level is Level.OK
