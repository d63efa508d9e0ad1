"""Names of things on the wire: peers, models, sessions, spans of layers."""

from __future__ import annotations

import hashlib
from typing import Annotated, NamedTuple, NewType

import base58
import msgspec

from gennode.errors import RemoteError

PeerId = NewType("PeerId", str)
"""A libp2p peer id of an Ed25519 key in base58 (`12D3Koo…`): the public key itself, encoded."""

ModelId = NewType("ModelId", str)
"""Hex SHA-256 of a model's manifest: names the exact weights."""

SessionId = NewType("SessionId", bytes)
"""Names its owner: 8 random bytes, and 8 of a hash of them and the owner's id (`session_id`)."""

SESSION_NONCE_BYTES = 8  # of an id; a peer whose id fits another's session takes 2^64 keys to find

MAX_LAYERS = 1024  # the deepest published decoders have some 130 layers

# libp2p's PublicKey protobuf {type: Ed25519 = 1, data: 32 bytes} inside an identity multihash,
# https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
_PEER_ID_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])
_PUBLIC_KEY_BYTES = 32
_PEER_ID_CHARACTERS = 64  # 52 in practice; decoding base58 is quadratic in the length

BoundedPeerId = Annotated[PeerId, msgspec.Meta(max_length=_PEER_ID_CHARACTERS)]
"""A peer id as a message holds it: short, but perhaps no key's id."""

LayerIndex = Annotated[int, msgspec.Meta(ge=0, le=MAX_LAYERS)]


class Span(NamedTuple):
    """A half-open range of transformer layers `[start, end)`."""

    start: LayerIndex
    end: LayerIndex

    @property
    def layers(self) -> int:
        """How many layers the span holds."""
        return self.end - self.start

    def covers(self, other: Span) -> bool:
        """Whether every layer of `other` lies in this span."""
        return self.start <= other.start and other.end <= self.end

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"


class Hop(msgspec.Struct, frozen=True, array_like=True):
    """One worker on a route and the layers that it computes there."""

    peer: BoundedPeerId
    span: Span

    def __post_init__(self) -> None:
        if self.span.start >= self.span.end:
            raise ValueError("a hop computes no layers")


def session_id(owner: PeerId, nonce: bytes) -> SessionId:
    """The id of one of an owner's sessions, from `SESSION_NONCE_BYTES` random bytes."""
    bound = hashlib.sha256(nonce + owner.encode()).digest()
    return SessionId(nonce + bound[:SESSION_NONCE_BYTES])


def is_session_of(session: SessionId, owner: PeerId) -> bool:
    """Whether a session is named for an owner, so that nobody else can open it."""
    return session == session_id(owner, session[:SESSION_NONCE_BYTES])


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of a raw Ed25519 public key (32 bytes)."""
    return PeerId(base58.b58encode(_PEER_ID_PREFIX + public_key).decode())


def public_key_of(peer: PeerId) -> bytes:
    """The raw Ed25519 public key (32 bytes) that a peer id consists of.

    Raises RemoteError if `peer` is not the id of an Ed25519 key.
    """
    if len(peer) > _PEER_ID_CHARACTERS:
        raise RemoteError("a peer id is longer than any Ed25519 peer id")
    try:
        raw = base58.b58decode(peer)
    except ValueError as error:
        raise RemoteError(f"{peer!r} is not base58") from error
    public_key = raw[len(_PEER_ID_PREFIX) :]
    if not raw.startswith(_PEER_ID_PREFIX) or len(public_key) != _PUBLIC_KEY_BYTES:
        raise RemoteError(f"{peer!r} is not the peer id of an Ed25519 key")
    if peer_id_of(public_key) != peer:  # base58 ignores spaces: one key would have many names
        raise RemoteError(f"{peer!r} is not written as peer ids are")
    return public_key
