"""Proposals: what travels comes back, and nothing else is read."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest

from gennode.errors import LocalError, RemoteError
from gennode.wire.coordinates import Coordinate
from gennode.wire.frames import MAX_FRAME_BYTES
from gennode.wire.ids import ModelId, PeerId, Span, peer_id_of
from gennode.wire.proposal import (
    DOMAIN,
    MARK_BYTES,
    MAX_PROPOSAL_BYTES,
    RULES,
    Proposal,
    mark_of,
    place_in_line,
    read_proposal,
    sign_proposal,
)
from gennode.wire.signing import Key
from gennode.wire.snapshot import MAX_SNAPSHOT_PEERS, Candidate, Demand, LayerCost, Snapshot

KEY, OTHER = Key(bytes(32)), Key(b"\1" * 32)
MODEL = ModelId("a" * 64)
DEMAND = Demand(32, 1 << 20, 1 << 16, 4096)
PLAN = bytes(32)


def candidate(peer: str) -> Candidate:
    cost = LayerCost(0.001, 0.0001)
    return Candidate(PeerId(peer), 8, 1 << 30, 16, cost, 0.002, 1e7, Coordinate(), Span(0, 8), 0.5)


def snapshot(*peers: str) -> Snapshot:
    return Snapshot(MODEL, 7, DEMAND, tuple(candidate(peer) for peer in peers))


def signed(body: bytes, key: Key = KEY, publisher: PeerId | None = None) -> tuple[bytes, bytes]:
    """A body of any kind, sealed by hand."""
    sealed = (publisher or key.peer, body, key.sign(DOMAIN, body))
    return msgspec.msgpack.encode(sealed), hashlib.sha256(body).digest()


def body(*peers: str, rules: int = RULES, marks: int | None = None, more: tuple[Any, ...] = ()
         ) -> bytes:  # fmt: skip
    count = len(peers) if marks is None else marks
    fields = (rules, KEY.peer, snapshot(*peers), bytes(MARK_BYTES * count), PLAN, *more)
    return msgspec.msgpack.encode(fields)


def test_a_proposal_comes_back_with_its_marks() -> None:
    pool = snapshot("a", "b", "c")
    sent, name = sign_proposal(KEY, pool, bytes(range(3 * MARK_BYTES)), PLAN)
    proposal = read_proposal(sent, name)
    assert proposal == Proposal(RULES, KEY.peer, pool, bytes(range(3 * MARK_BYTES)), PLAN)
    assert proposal.entries()[1] == (pool.peers[1], bytes(range(MARK_BYTES, 2 * MARK_BYTES)))


def test_the_largest_pool_fits() -> None:
    peers = tuple(
        sorted(
            (candidate(peer_id_of(number.to_bytes(32, "big"))) for number in range(64)),
            key=lambda one: one.peer,
        )
    )
    each_bytes = len(sign_proposal(KEY, snapshot(), b"", PLAN)[0])
    full = Snapshot(MODEL, 7, DEMAND, peers)
    some_bytes = len(sign_proposal(KEY, full, bytes(64 * MARK_BYTES), PLAN)[0]) - each_bytes
    assert some_bytes / 64 * MAX_SNAPSHOT_PEERS + each_bytes < MAX_PROPOSAL_BYTES < MAX_FRAME_BYTES


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (body("b", "a"), "out of order"),
        (body("a", "a"), "out of order"),
        (body("a", "b", marks=1), "mark"),
        (body("a", marks=2), "mark"),
        (body("a", more=(1,)), "malformed"),
        (bytes([0x91, RULES]), "malformed"),
        (b"\xc1", "malformed"),
        (b"", "malformed"),
        (b"\x91" * 100_000, "malformed"),
    ],
)
def test_what_is_no_proposal_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(RemoteError, match=why):
        read_proposal(*signed(data))


def test_a_proposal_by_other_rules_is_nobodys_fault() -> None:
    assert read_proposal(*signed(body("a", rules=RULES + 1, more=("new",)))) is None


def test_only_what_was_asked_for_and_signed_by_its_publisher_is_read() -> None:
    sent, name = signed(body("a"))
    assert read_proposal(sent, name) is not None
    with pytest.raises(RemoteError, match="asked for"):
        read_proposal(sent, bytes(32))
    with pytest.raises(RemoteError, match="another than its publisher"):
        read_proposal(*signed(body("a"), OTHER))
    with pytest.raises(RemoteError, match="did not sign"):
        read_proposal(*signed(body("a"), OTHER, publisher=KEY.peer))
    with pytest.raises(RemoteError, match="malformed"):
        read_proposal(sent[:-1], name)
    with pytest.raises(RemoteError, match="too large"):
        read_proposal(bytes(MAX_PROPOSAL_BYTES + 1), name)


def test_nobody_signs_what_nobody_would_accept() -> None:
    with pytest.raises(LocalError, match="too large"):
        sign_proposal(KEY, snapshot("x" * MAX_PROPOSAL_BYTES), bytes(MARK_BYTES), PLAN)


def test_the_line_is_drawn_anew_in_each_epoch_and_for_each_model() -> None:
    peers = [PeerId(f"peer {number}") for number in range(200)]
    firsts = {min(peers, key=lambda peer: place_in_line(MODEL, epoch, peer)) for epoch in range(99)}
    assert len(firsts) > 60
    assert place_in_line(MODEL, 1, peers[0]) != place_in_line(ModelId("b" * 64), 1, peers[0])


def test_marks_tell_announcements_apart() -> None:
    assert mark_of(b"one") != mark_of(b"two")
    assert len(mark_of(b"one")) == MARK_BYTES
