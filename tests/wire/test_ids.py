"""A peer id is one public key, in one spelling."""

from __future__ import annotations

import base58
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from gennode.errors import RemoteError
from gennode.wire.ids import (
    Hop,
    PeerId,
    SessionId,
    Span,
    is_session_of,
    peer_id_of,
    public_key_of,
    session_id,
)

# RFC 8032 §7.1, test 1
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


def spelled(raw: bytes) -> PeerId:
    return PeerId(base58.b58encode(raw).decode())


OTHERS = {
    "an RSA key's hash": PeerId("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"),
    "a secp256k1 key": spelled(bytes([0x00, 0x25, 0x08, 0x02, 0x12, 0x21]) + bytes(33)),
    "a short key": spelled(bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20]) + bytes(31)),
    "a long key": spelled(bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20]) + bytes(33)),
    "a key alone": spelled(bytes(32)),
    "a CID": PeerId("bafzaajaiaejcbpltl72da5f3y7ojrtsa7hsfn5bbnkjbkwyesziqqtdry6vjilku"),
    "nothing": PeerId(""),
    "not base58": PeerId("0OIl"),
    "not ASCII": PeerId("12D3Kooé"),
    "half a character": PeerId("12D3Koo\ud800"),
    "too long": PeerId("1" * 1_000_000),
}


def test_a_public_key_has_the_id_that_libp2p_gives_it() -> None:
    assert Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw() == PUBLIC
    assert peer_id_of(PUBLIC).startswith("12D3Koo")
    assert base58.b58decode(peer_id_of(PUBLIC)).hex() == "002408011220" + PUBLIC.hex()


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_gives_its_key_back(public_key: bytes) -> None:
    assert public_key_of(peer_id_of(public_key)) == public_key


@pytest.mark.parametrize("name", OTHERS)
def test_other_ids_are_refused(name: str) -> None:
    with pytest.raises(RemoteError):
        public_key_of(OTHERS[name])


@pytest.mark.parametrize("around", ["{} ", "{}\n", " {}", "{}\t ", "1{}"])
def test_a_key_has_one_spelling(around: str) -> None:
    """Else one key would count as many peers."""
    with pytest.raises(RemoteError):
        public_key_of(PeerId(around.format(peer_id_of(PUBLIC))))


@given(st.text(max_size=70))
def test_invented_ids_are_refused(text: str) -> None:
    with pytest.raises(RemoteError):
        public_key_of(PeerId(text))


def test_spans() -> None:
    span = Span(2, 6)
    assert (span.layers, str(span)) == (4, "2:6")
    assert span.covers(Span(2, 6))
    assert span.covers(Span(3, 4))
    assert not span.covers(Span(1, 3))
    assert not span.covers(Span(5, 7))


@pytest.mark.parametrize("span", [Span(3, 3), Span(4, 3)])
def test_a_hop_computes_something(span: Span) -> None:
    with pytest.raises(ValueError, match="no layers"):
        Hop(peer_id_of(PUBLIC), span)


def test_a_session_is_named_for_its_owner_alone() -> None:
    owner, other = (peer_id_of(bytes([number]) * 32) for number in range(2))
    session = session_id(owner, bytes(8))
    assert len(session) == 16
    assert is_session_of(session, owner)
    assert not is_session_of(session, other)
    assert not is_session_of(SessionId(b"\1" + session[1:]), owner)
    assert not is_session_of(SessionId(b""), owner)
