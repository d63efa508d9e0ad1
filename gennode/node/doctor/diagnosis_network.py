"""What the mesh's answers mean: who can reach us, how, and what would make it better. Pure."""

from __future__ import annotations

import ipaddress
import statistics
from collections.abc import Iterator
from enum import StrEnum

from gennode.errors import NetworkError
from gennode.mesh.p2pd.relay_check import RelayCheck
from gennode.mesh.reach.reach import Dialled, Nat, is_dialable, nat_kind
from gennode.node.doctor.facts import Bootstrap, Facts, Failure, Network, OwnNode, State, Wanted
from gennode.node.doctor.finding import Finding, fail, failed, ok, skip, warn

# No protocol of ours needs clocks that agree: lifetimes are counted from arrival. But the first
# sequence number of a node's announcements is the time of its start, so a clock that is set
# back silences a node that restarts for as long. Machines that keep time differ by below 1 s.
MAX_CLOCK_SKEW_S = 30.0

# libp2p believes in a public address, and so punches holes, once that many peers at addresses
# of their own have seen it: ActivationThresh in go-libp2p's p2p/protocol/identify/obsaddr.go.
PUNCHING_OBSERVERS = 4

# A token crosses three links or more. On relays as slow as this it takes over a second.
SLOW_RELAY_S = 0.4

_NAT_WORDS = {
    Nat.NONE: "none: observers see an address of this machine",
    Nat.CONE: "cone: one public port towards everybody, so that holes can be punched",
    Nat.SYMMETRIC: "symmetric: another public port towards each, which nobody can guess",
}
_NOBODY = "nobody to ask"


class Reachability(StrEnum):
    """How others come to us."""

    DIRECT = "direct"
    PUNCHABLE = "punchable"
    RELAYED = "relay only"
    UNREACHABLE = "unreachable"
    LOOPBACK = "loopback only"
    UNKNOWN = "unknown"


def diagnose_network(facts: Facts) -> Iterator[Finding]:
    """Findings on bootstrap peers, observers, NAT, reachability, relays and the clock."""
    network = facts.network
    if not isinstance(network, Network):
        yield skip("network", "not looked at: no daemon runs, see above")
        return
    yield from _bootstraps(network.bootstraps)
    yield _observers(network)
    yield _nat(facts, network)
    yield _reachability(facts, network)
    yield from _relays(facts, network)
    yield _clock(network)


def stays_on_loopback(wanted: Wanted, state: State | Failure) -> bool:
    """Whether the node that runs, or else the one that is wanted, listens on loopback alone."""
    node = None if isinstance(state, Failure) else state.node
    hosts = [wanted.host]
    if isinstance(node, OwnNode):
        hosts = [host for host, _ in node.endpoints] or hosts
    return all(ipaddress.ip_address(host).is_loopback for host in hosts)


def reach(facts: Facts, network: Network) -> Reachability:
    """How others come to a node that listens as `facts.wanted` says."""
    if stays_on_loopback(facts.wanted, facts.state):
        return Reachability.LOOPBACK
    if is_dialable(network.sightings):
        return Reachability.DIRECT
    if any(isinstance(relay.check, RelayCheck) for relay in network.relays):
        is_cone = nat_kind(network.sightings, network.own_hosts) is Nat.CONE
        return Reachability.PUNCHABLE if is_cone else Reachability.RELAYED
    if any(sighting.dialled is Dialled.NOT_REACHED for sighting in network.sightings):
        return Reachability.UNREACHABLE
    return Reachability.UNKNOWN


def _bootstraps(bootstraps: tuple[Bootstrap, ...]) -> Iterator[Finding]:
    if not bootstraps:
        yield skip("bootstrap", "none given: --bootstrap ADDR, as another node prints it")
    is_any_reached = any(isinstance(each.reached_s, float) for each in bootstraps)
    for each in bootstraps:
        reached = each.reached_s
        if isinstance(reached, float):
            yield ok("bootstrap", f"{each.address} is reached in {reached * 1e3:.0f} ms")
        elif reached.exit_code == NetworkError.exit_code and is_any_reached:
            yield warn("bootstrap", reached.words, reached.fix)
        else:
            yield failed("bootstrap", reached)


def _observers(network: Network) -> Finding:
    count = len({sighting.observer[0] for sighting in network.sightings})
    seen = sorted({f"{host} port {port}" for _, (host, port) in _views(network)})
    if count >= 2:
        return ok("observers", f"{count} at different addresses see us as {', '.join(seen)}")
    if not any(isinstance(each.reached_s, float) for each in network.bootstraps):
        return skip("observers", _NOBODY)
    fix = "give --bootstrap addresses of two nodes or more, on different machines"
    if not count:
        return warn("observers", "none of those reached said how it sees us", fix)
    return warn("observers", f"only one, who sees us as {seen[0]}: too few to judge a NAT", fix)


def _views(network: Network) -> set[tuple[tuple[str, int], tuple[str, int]]]:
    return {(sighting.observer, sighting.seen) for sighting in network.sightings}


def _nat(facts: Facts, network: Network) -> Finding:
    if not network.sightings:
        return skip("nat", _NOBODY)
    nat = nat_kind(network.sightings, network.own_hosts)
    if nat is Nat.UNKNOWN:
        return skip("nat", "unknown: it takes two observers at different addresses to tell")
    if nat is not Nat.NONE and stays_on_loopback(facts.wanted, facts.state):
        return skip("nat", "unknown: who listens on loopback only calls others from any port")
    if nat is Nat.SYMMETRIC:
        return warn("nat", _NAT_WORDS[nat], _forwarding(network))
    return ok("nat", _NAT_WORDS[nat])


def _forwarding(network: Network) -> str:
    return (
        f"forward TCP port {network.dialled_port} to this machine in the router, and start with "
        f"--port {network.dialled_port}"
    )


def _reachability(facts: Facts, network: Network) -> Finding:
    how = reach(facts, network)
    tried = [each for each in network.sightings if each.dialled is not Dialled.NOT_TRIED]
    match how:
        case Reachability.LOOPBACK:
            words = f"{how}: nobody outside this machine can reach a node here"
            return warn("reachability", words, "--host 0.0.0.0 to serve other machines")
        case Reachability.DIRECT:
            dialled = sum(each.dialled is Dialled.REACHED for each in tried)
            where = f"port {network.dialled_port}"
            words = f"{how}: {dialled} of {len(tried)} observers called back on {where}"
            return ok("reachability", words)
        case Reachability.PUNCHABLE:
            return _punchable(network)
        case Reachability.RELAYED:
            words = f"{how}: every byte takes the way through another peer"
            return warn("reachability", words, _opening(facts, network))
        case Reachability.UNREACHABLE:
            words = f"{how}: nobody could call us back, and no relay carries for us"
            fix = f"{_opening(facts, network)}; or give the --bootstrap of a relay"
            return fail("reachability", words, fix, NetworkError)
        case Reachability.UNKNOWN:
            return skip("reachability", f"{how}: nobody tried to call us back")


def _punchable(network: Network) -> Finding:
    words = f"{Reachability.PUNCHABLE}: peers meet us at a relay, and then come directly"
    count = len({sighting.observer[0] for sighting in network.sightings})
    if count >= PUNCHING_OBSERVERS:
        return ok("reachability", words)
    words += f"; libp2p wants {PUNCHING_OBSERVERS} observers for that, and {count} see us"
    return warn("reachability", words, "give more --bootstrap addresses, on different machines")


def _opening(facts: Facts, network: Network) -> str:
    if nat_kind(network.sightings, network.own_hosts) is Nat.NONE:
        port = network.dialled_port
        return f"open TCP port {port} in this machine's firewall, and start with --port {port}"
    return _forwarding(network)


def _relays(facts: Facts, network: Network) -> Iterator[Finding]:
    if not network.relays:
        needed = reach(facts, network) not in (Reachability.DIRECT, Reachability.LOOPBACK)
        yield skip("relay", "no peer was reached that could be one" if needed else "not needed")
    is_any_working = any(isinstance(relay.check, RelayCheck) for relay in network.relays)
    for relay in network.relays:
        if isinstance(relay.check, RelayCheck):
            yield _working_relay(relay.relay, relay.check)
        elif is_any_working:
            yield warn("relay", relay.check.words, relay.check.fix)
        else:
            yield failed("relay", relay.check)


def _working_relay(address: str, check: RelayCheck) -> Finding:
    words = (
        f"{address} has a place for us after {check.slot_s:.1f} s, carries more than 128 KiB, "
        f"and is there and back in {check.round_trip_s * 1e3:.0f} ms"
    )
    if check.round_trip_s < SLOW_RELAY_S:
        return ok("relay", words)
    return warn("relay", words, "give the --bootstrap of a relay that is nearer")


def _clock(network: Network) -> Finding:
    skews_s = {sighting.observer[0]: sighting.clock_skew_s for sighting in network.sightings}
    if not skews_s:
        return skip("clock", _NOBODY)
    skew_s = statistics.median(skews_s.values())
    words = f"{abs(skew_s):.1f} s {'behind' if skew_s > 0 else 'ahead of'} what observers say"
    if abs(skew_s) <= MAX_CLOCK_SKEW_S:
        return ok("clock", words)
    return warn("clock", words, "let the system set its clock, such as `timedatectl set-ntp true`")
