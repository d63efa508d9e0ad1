"""Net groups: of public addresses alone, whatever a peer writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.mesh.directory.netgroup import LOCAL, net_group


@pytest.mark.parametrize(
    ("addresses", "group"),
    [
        ([], LOCAL),
        (["/ip4/127.0.0.1/tcp/1", "/ip4/10.1.2.3/tcp/1", "/ip4/192.168.0.1/tcp/1"], LOCAL),
        (["/ip4/10.1.2.3/tcp/1", "/ip4/8.8.4.4/tcp/1"], "8.8.0.0/16"),
        (["/ip4/8.8.200.1/tcp/4001/p2p/x"], "8.8.0.0/16"),
        (["/ip4/9.9.9.9/tcp/1/p2p/x/p2p-circuit/p2p/y"], "9.9.0.0/16"),
        (["/ip6/2606:4700::1/tcp/1"], "2606:4700::/32"),
        (["/ip6/2606:4700:ffff::1/tcp/1"], "2606:4700::/32"),
        (["/ip6/::ffff:8.8.4.4/tcp/1"], "8.8.0.0/16"),
        (["/ip6/fe80::1/tcp/1", "/ip6/::1/tcp/1"], LOCAL),
        (["/dns4/node.example.org/tcp/1"], "dns4/node.example.org"),
        (["/memory/p2p/x", "", "/", "nonsense"], LOCAL),
    ],
)
def test_the_first_public_address_counts(addresses: list[str], group: str) -> None:
    assert net_group(addresses) == group


@given(st.lists(st.text(max_size=40) | st.from_regex(r"/(ip4|ip6|dns)/[ -~]{0,20}"), max_size=4))
def test_any_text_has_a_group(addresses: list[str]) -> None:
    assert net_group(addresses)
