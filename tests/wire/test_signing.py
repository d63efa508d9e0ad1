"""A signature is worth something for one author, one purpose and the very same bytes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.errors import LocalError, RemoteError
from gennode.wire.announcement import Announcement
from gennode.wire.ids import PeerId, SessionId
from gennode.wire.messages import Close
from gennode.wire.signing import MAX_SIGNED_BYTES, Key, Signed, seal, unseal, verify
from tests.wire.strategies import announcements
from tests.wire.test_ids import PUBLIC, SEED

MINE, OTHER = Key(SEED), Key(bytes(32))
domains = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


class Named(msgspec.Struct, frozen=True):
    """Something to sign whose text can be broken."""

    name: str


@given(domains, st.binary(max_size=100))
def test_a_signature_verifies(domain: str, data: bytes) -> None:
    verify(MINE.peer, domain, data, MINE.sign(domain, data))


@given(domains, domains, st.binary(max_size=20), st.binary(max_size=20))
def test_a_signature_serves_one_purpose(domain: str, other: str, data: bytes, more: bytes) -> None:
    if (domain, data) == (other, more):
        return
    with pytest.raises(RemoteError):
        verify(MINE.peer, other, more, MINE.sign(domain, data))


def test_a_domain_cannot_reach_into_the_data() -> None:
    with pytest.raises(LocalError):
        MINE.sign("receipt\0audit", b"data")


def test_a_signature_has_one_author() -> None:
    with pytest.raises(RemoteError):
        verify(OTHER.peer, "receipt", b"data", MINE.sign("receipt", b"data"))


@given(st.integers(0, 63), st.integers(1, 255))
def test_an_altered_signature_is_refused(at: int, change: int) -> None:
    signature = bytearray(MINE.sign("receipt", b"data"))
    signature[at] ^= change
    with pytest.raises(RemoteError):
        verify(MINE.peer, "receipt", b"data", bytes(signature))


@given(st.binary(max_size=80))
def test_an_invented_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(RemoteError):
        verify(MINE.peer, "receipt", b"data", signature)


@given(announcements)
def test_a_sealed_value_comes_back(announcement: Announcement) -> None:
    signed = seal(MINE, "announcement", announcement)
    assert unseal(signed, "announcement", Announcement) == announcement
    with pytest.raises(RemoteError):
        unseal(signed, "receipt", Announcement)
    with pytest.raises(RemoteError):
        unseal(msgspec.structs.replace(signed, peer=OTHER.peer), "announcement", Announcement)
    altered = signed.body[:-1] + bytes([signed.body[-1] ^ 1])
    with pytest.raises(RemoteError):
        unseal(msgspec.structs.replace(signed, body=altered), "announcement", Announcement)


@given(st.binary(max_size=100))
def test_signed_nonsense_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteError):
        unseal(Signed(MINE.peer, body, MINE.sign("a", body)), "a", Announcement)


def test_signed_text_that_is_not_unicode_is_refused() -> None:
    body = msgspec.msgpack.encode(Named("good")).replace(b"good", b"\xff\xff\xff\xff")
    with pytest.raises(RemoteError):
        unseal(Signed(MINE.peer, body, MINE.sign("a", body)), "a", Named)


def test_signed_values_are_bounded() -> None:
    body = bytes(MAX_SIGNED_BYTES + 1)
    with pytest.raises(RemoteError, match="too large"):
        unseal(Signed(MINE.peer, body, MINE.sign("a", body)), "a", Named)
    with pytest.raises(LocalError):
        seal(MINE, "a", Named("x" * MAX_SIGNED_BYTES))


def test_an_author_who_is_no_ed25519_key_is_refused() -> None:
    stranger = PeerId("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")
    sealed = seal(MINE, "a", Close(SessionId(bytes(16))))
    with pytest.raises(RemoteError):
        unseal(msgspec.structs.replace(sealed, peer=stranger), "a", Close)


@given(st.binary(min_size=32, max_size=32))
def test_a_key_file_comes_back(seed: bytes) -> None:
    key = Key(seed)
    again = Key.from_libp2p(key.to_libp2p())
    assert (again.peer, again.to_libp2p()) == (key.peer, key.to_libp2p())


def test_a_key_file_is_as_libp2p_writes_it() -> None:
    assert MINE.to_libp2p() == bytes.fromhex("08011240") + SEED + PUBLIC


@given(st.binary(max_size=80))
def test_an_invented_key_file_is_refused(data: bytes) -> None:
    with pytest.raises(LocalError):
        Key.from_libp2p(data)


@given(st.integers(0, 67), st.integers(1, 255))
def test_a_damaged_key_file_is_refused(at: int, change: int) -> None:
    data = bytearray(MINE.to_libp2p())
    data[at] ^= change
    with pytest.raises(LocalError) as caught:
        Key.from_libp2p(bytes(data))
    assert caught.value.hint


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33)])
def test_a_seed_of_another_length_is_refused(seed: bytes) -> None:
    with pytest.raises(LocalError):
        Key(seed)


def test_what_is_printed_of_a_key_holds_no_secret() -> None:
    shown = f"{MINE!r} {MINE} {[MINE]}"
    assert MINE.peer in shown
    assert SEED.hex() not in shown
    assert repr(SEED) not in shown
