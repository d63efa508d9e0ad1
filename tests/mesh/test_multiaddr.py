"""Multiaddresses survive the way to bytes and back; wrong ones are refused with a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.errors import RemoteError, UsageError
from gennode.mesh import multiaddr
from gennode.wire.signing import Key

PEER = Key(bytes(32)).peer
OTHER = Key(bytes([1]) * 32).peer


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/127.0.0.1/tcp/4001",
        f"/ip6/::1/tcp/0/p2p/{PEER}",
        f"/dns4/example.org/tcp/65535/p2p/{PEER}",
        f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}/p2p-circuit/p2p/{OTHER}",
    ],
)
def test_there_and_back(text: str) -> None:
    assert multiaddr.from_bytes(multiaddr.to_bytes(text)) == text


def test_known_bytes() -> None:
    assert multiaddr.to_bytes("/ip4/127.0.0.1/tcp/4001") == bytes.fromhex("047f000001060fa1")
    assert multiaddr.unix_to_bytes("/run/x") == bytes([0x90, 0x03, 6]) + b"/run/x"
    assert multiaddr.from_bytes(multiaddr.unix_to_bytes("/run/x")) == "/unix/run/x"
    assert multiaddr.to_bytes(f"/p2p/{PEER}")[:5] == bytes([0xA5, 0x03, 38, 0x00, 0x24])


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "/", "/ip4", "/ip4/300.1.1.1/tcp/1", "/ip4/::1/tcp/1", "/tcp/65536",
        "/tcp/x", "/tcp/-1", "/udp/1", "/ip4/1.2.3.4/tcp/1/p2p/xyz", "/unix/run/x",
        "/ip4/1.2.3.4//tcp/1", "/dns4/" + "x" * 2000,
    ],
)  # fmt: skip
def test_wrong_text_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        multiaddr.to_bytes(text)
    assert caught.value.hint


@given(st.binary(max_size=80))
def test_bytes_of_strangers_are_read_or_refused(raw: bytes) -> None:
    try:
        multiaddr.from_bytes(raw)
        multiaddr.peer_from_bytes(raw)
    except RemoteError:
        pass


@given(st.integers(0, 2**35 - 1))
def test_varints(number: int) -> None:
    packed = multiaddr.pack_varint(number)
    assert multiaddr.unpack_varint(packed) == (number, len(packed))
    assert multiaddr.unpack_varint(packed[:-1]) is None


def test_endless_varints_are_refused() -> None:
    with pytest.raises(RemoteError):
        multiaddr.unpack_varint(b"\xff" * 5)


def test_split_peer() -> None:
    way = "/ip4/127.0.0.1/tcp/4001"
    assert multiaddr.split_peer(f"{way}/p2p/{PEER}") == (way, PEER)
    for wrong in (way, f"/p2p/{PEER}", f"/p2p/{PEER}{way}"):
        with pytest.raises(UsageError, match="which peer"):
            multiaddr.split_peer(wrong)
