"""Which part of the internet an address is in: many addresses of one network cost little."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

LOCAL = "local"
"""The group of all who tell of no public address."""

_V4_GROUP_BITS, _V6_GROUP_BITS = 16, 32  # what one provider is given at a time


def net_group(addresses: Iterable[str]) -> str:
    """The group of the first public address: an IPv4 /16, an IPv6 /32 or a host name.

    An address by way of a relay counts as the relay's. Never fails: what is no address is local.
    """
    for address in addresses:
        name, _, value = address[1:].partition("/")
        host = value.partition("/")[0]
        if name.startswith("dns") and host:
            return f"{name}/{host}"
        group = _group_of(host)
        if group:
            return group
    return LOCAL


@lru_cache(maxsize=4096)  # each address comes again with every announcement and look at a table
def _group_of(host: str) -> str:
    """The network of a public IP address; empty for anything else."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return ""
    if ip.version == 6 and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    if not ip.is_global:
        return ""
    bits = _V4_GROUP_BITS if ip.version == 4 else _V6_GROUP_BITS
    return str(ipaddress.ip_network((ip, bits), strict=False))
