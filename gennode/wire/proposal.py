"""A plan that a peer proposes: the snapshot it follows from, signed, and checked before belief."""

from __future__ import annotations

import hashlib
import itertools
from typing import Annotated

import msgspec

from gennode.errors import LocalError, RemoteError
from gennode.wire.ids import BoundedPeerId, ModelId, PeerId
from gennode.wire.signing import SIGNATURE_BYTES, Key, verify
from gennode.wire.snapshot import MAX_SNAPSHOT_PEERS, Candidate, Snapshot

DOMAIN = "plan"

# Two peers find the same plan in a snapshot only if they decide by the same rules. Whoever
# changes what sharding decides raises this; plans by other rules are nobody's fault, and ignored.
RULES = 2

DIGEST_BYTES = 32
MARK_BYTES = 8  # nobody finds a second announcement with the mark of another by trying
# A candidate takes some 150 bytes and its mark 8: the largest snapshot has 2.6 MB.
MAX_PROPOSAL_BYTES = 4 * 1024 * 1024

ProposalId = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
"""SHA-256 of what a publisher signed."""


class Proposal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a publisher signs (domain `plan`): from this pool follows this plan.

    `snapshot` lists its peers in rising order. `marks` has for each of them, in that order, the
    mark of the announcement that its entry was taken from. `plan`: digest of the plan.
    """

    rules: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]
    publisher: BoundedPeerId
    snapshot: Snapshot
    marks: Annotated[bytes, msgspec.Meta(max_length=MARK_BYTES * MAX_SNAPSHOT_PEERS)]
    plan: ProposalId

    def __post_init__(self) -> None:
        peers = self.snapshot.peers
        if len(self.marks) != MARK_BYTES * len(peers):
            raise ValueError("a mark is missing, or one too many")
        if any(one.peer >= after.peer for one, after in itertools.pairwise(peers)):
            raise ValueError("peers out of order")

    def entries(self) -> list[tuple[Candidate, bytes]]:
        """Each peer of the snapshot with its mark."""
        starts = range(0, len(self.marks), MARK_BYTES)
        marks = (self.marks[start : start + MARK_BYTES] for start in starts)
        return list(zip(self.snapshot.peers, marks, strict=True))


class _Sealed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Signed, as it travels."""

    publisher: BoundedPeerId
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_PROPOSAL_BYTES)]
    signature: Annotated[
        bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)
    ]


class _Head(msgspec.Struct, frozen=True, array_like=True):
    """As much of a proposal as peers of all versions agree on."""

    rules: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]


_decoder = msgspec.msgpack.Decoder(Proposal)
_head_decoder = msgspec.msgpack.Decoder(_Head)
_sealed_decoder = msgspec.msgpack.Decoder(_Sealed)


def mark_of(encoded: bytes) -> bytes:
    """The mark of an announcement in its msgpack form."""
    return hashlib.sha256(encoded).digest()[:MARK_BYTES]


def place_in_line(model: ModelId, epoch: int, peer: PeerId) -> bytes:
    """Where a peer stands among those who may publish: the lowest first, drawn anew each epoch.

    Source: Thaler, Ravishankar, "A name-based mapping scheme for rendezvous", University of
    Michigan, CSE-TR-316-96, 1996.
    """
    return hashlib.sha256(f"{model}/{epoch}/{peer}".encode()).digest()


def sign_proposal(key: Key, snapshot: Snapshot, marks: bytes, plan: bytes) -> tuple[bytes, bytes]:
    """A proposal of our own as it travels, and its id; LocalError if nobody would accept it."""
    body = msgspec.msgpack.encode(Proposal(RULES, key.peer, snapshot, marks, plan))
    sent = msgspec.msgpack.encode(_Sealed(key.peer, body, key.sign(DOMAIN, body)))
    if len(sent) > MAX_PROPOSAL_BYTES:
        raise LocalError(f"a proposal of {len(sent)} bytes is too large")
    return sent, hashlib.sha256(body).digest()


def read_proposal(sent: bytes, expected: bytes) -> Proposal | None:
    """The proposal with the id `expected`; None if it goes by other rules than ours.

    Checked in the order of what it costs: length, hash, signature, and only then the contents.
    RemoteError on the first that is wrong.
    """
    if len(sent) > MAX_PROPOSAL_BYTES:
        raise RemoteError(f"a proposal of {len(sent)} bytes is too large")
    try:
        sealed = _sealed_decoder.decode(sent)
        if hashlib.sha256(sealed.body).digest() != expected:
            raise RemoteError("a proposal is not the one that was asked for")
        verify(sealed.publisher, DOMAIN, sealed.body, sealed.signature)
        if _head_decoder.decode(sealed.body).rules != RULES:
            return None
        proposal = _decoder.decode(sealed.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteError(f"malformed proposal: {error}") from error
    if proposal.publisher != sealed.publisher:
        raise RemoteError("a proposal is signed by another than its publisher")
    return proposal
