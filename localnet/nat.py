"""Kinds of routers between a home and the internet, as iptables rules."""

from __future__ import annotations

from enum import StrEnum

WAN, LAN = "wan0", "lan0"
"""A router's interfaces: towards the internet, and towards the home."""


class Nat(StrEnum):
    """What a home's router does, in the words of RFC 4787: how it maps a host's address and port
    to one of its own, and whose packets it lets back in.
    """

    OPEN = "open"
    """No translation and no filter: hosts have public addresses."""

    CONE = "cone"
    """Endpoint-independent mapping that preserves the port while it is free; address and
    port-dependent filtering ("port-restricted cone"). Most homes."""

    SYMMETRIC = "symmetric"
    """Address and port-dependent mapping: a new random port towards every destination; address
    and port-dependent filtering. Offices and mobile carriers; nobody can foretell the port."""

    FULL_CONE = "full_cone"
    """Endpoint-independent mapping and filtering: all that reaches the router goes to the home's
    first host, as with forwarded ports."""

    NO_UDP = "no_udp"
    """As CONE, but UDP doesn't get out."""


def rules(nat: Nat, first_host: str) -> str:
    """What `iptables-restore` makes a router of this kind from; `first_host` is an address.

    A router drops what it did not ask for and never answers it: a reset in reply to a SYN that
    came too early would end the other side's attempt, and no TCP hole could be punched.
    """
    if nat is Nat.OPEN:
        return ""
    mapping = "MASQUERADE --random-fully" if nat is Nat.SYMMETRIC else "MASQUERADE"
    inward = nat is Nat.FULL_CONE
    lines = [
        "*filter",
        ":INPUT DROP",
        ":FORWARD DROP",
        ":OUTPUT ACCEPT",
        "-A INPUT -i lo -j ACCEPT",
        f"-A INPUT -i {LAN} -j ACCEPT",
        "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        # Kernels may show frames between hosts of the home, which the bridge switches, to iptables.
        f"-A FORWARD -i {LAN} -o {LAN} -j ACCEPT",
        # What belongs to no connection would leave with its private address.
        "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
        *([f"-A FORWARD -i {LAN} -p udp -j DROP"] if nat is Nat.NO_UDP else []),
        "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        f"-A FORWARD -i {LAN} -o {WAN} -j ACCEPT",
        *([f"-A FORWARD -i {WAN} -d {first_host} -j ACCEPT"] if inward else []),
        "COMMIT",
        "*nat",
        f"-A POSTROUTING -o {WAN} -j {mapping}",
        *([f"-A PREROUTING -i {WAN} -j DNAT --to-destination {first_host}"] if inward else []),
        "COMMIT",
    ]
    return "\n".join(lines) + "\n"
