"""Ed25519 keys and signatures, each bound to the purpose that it was made for."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gennode.errors import LocalError, RemoteError
from gennode.wire.ids import BoundedPeerId, PeerId, peer_id_of, public_key_of

SEED_BYTES = 32
SIGNATURE_BYTES = 64
# An announcement is below 2 KiB, and below 11 KiB with every field at its bound; as many as one
# message holds fit in its header at this size.
MAX_SIGNED_BYTES = 12 * 1024

# libp2p's PrivateKey protobuf {type: Ed25519 = 1, data: seed and public key, 64 bytes}
_LIBP2P_PREFIX = bytes([0x08, 0x01, 0x12, 0x40])

T = TypeVar("T")


class Key:
    """A peer's Ed25519 key: its libp2p identity and its signature in one."""

    def __init__(self, seed: bytes) -> None:
        """`seed`: the 32 secret bytes of RFC 8032."""
        if len(seed) != SEED_BYTES:
            raise LocalError(f"an Ed25519 seed has {SEED_BYTES} bytes, not {len(seed)}")
        self._seed = seed
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._private.public_key().public_bytes_raw()
        self.peer: PeerId = peer_id_of(self._public)

    def __repr__(self) -> str:
        return f"Key({self.peer})"  # never the seed

    @classmethod
    def from_libp2p(cls, data: bytes) -> Key:
        """Read the form that libp2p keeps keys in; LocalError if `data` is not one."""
        key = data[len(_LIBP2P_PREFIX) :]
        if not data.startswith(_LIBP2P_PREFIX) or len(key) != 2 * SEED_BYTES:
            raise LocalError("not a libp2p Ed25519 private key", hint="move the key file away")
        made = cls(key[:SEED_BYTES])
        if made._public != key[SEED_BYTES:]:
            raise LocalError("the key file's two halves disagree", hint="restore it from a backup")
        return made

    def to_libp2p(self) -> bytes:
        """The 68 secret bytes that the libp2p daemon reads its identity from."""
        return _LIBP2P_PREFIX + self._seed + self._public

    def sign(self, domain: str, data: bytes) -> bytes:
        """Sign `data` for one purpose; a signature made for another domain never verifies."""
        return self._private.sign(_bound(domain, data))


class Signed(msgspec.Struct, frozen=True, array_like=True):
    """Bytes with their author and the author's signature over them."""

    peer: BoundedPeerId
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_SIGNED_BYTES)]
    signature: Annotated[
        bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)
    ]


def _bound(domain: str, data: bytes) -> bytes:
    if "\0" in domain:
        raise LocalError("a domain holds the byte that ends it: two purposes could look alike")
    return b"gennode/1/" + domain.encode() + b"\x00" + data


def verify(peer: PeerId, domain: str, data: bytes, signature: bytes) -> None:
    """Raise RemoteError unless `peer` signed `data` for `domain`."""
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key_of(peer))
        key.verify(signature, _bound(domain, data))
    except (InvalidSignature, ValueError) as error:
        raise RemoteError(f"{peer} did not sign this {domain}") from error


def seal(key: Key, domain: str, value: msgspec.Struct) -> Signed:
    """Encode `value` and sign the bytes; LocalError if nobody would accept so many."""
    body = msgspec.msgpack.encode(value)
    if len(body) > MAX_SIGNED_BYTES:
        raise LocalError(f"a signed {domain} of {len(body)} bytes is too large")
    return Signed(key.peer, body, key.sign(domain, body))


def unseal(signed: Signed, domain: str, kind: type[T]) -> T:
    """The value inside, once its signature and its shape are right; else RemoteError."""
    if len(signed.body) > MAX_SIGNED_BYTES:
        raise RemoteError(f"a signed {domain} of {len(signed.body)} bytes is too large")
    verify(signed.peer, domain, signed.body, signed.signature)
    try:
        return msgspec.msgpack.decode(signed.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteError(f"{signed.peer} signed a malformed {domain}: {error}") from error
