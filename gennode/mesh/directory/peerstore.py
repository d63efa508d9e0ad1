"""Peers that we met or heard of, to find the swarm again without anybody's help. Pure.

After Bitcoin's address manager (bitcoin/src/addrman.h) against eclipse attacks (Heilman et al.,
USENIX Security 2015): two tables of small buckets, `new` for those that others told us of and
`tried` for those that answered us. A secret chooses the bucket, among few for each net group, so
that one network reaches only a small part of either table, however many peers it makes up, and
cannot know whom it would push out. `anchors` are the neighbours that we had for long.

Times are seconds since the epoch: the store outlives the process.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random
from typing import Annotated

import msgspec

from gennode.mesh.directory.netgroup import LOCAL, net_group
from gennode.wire.ids import BoundedPeerId, PeerId

SECRET_BYTES = 32
BUCKET_PEERS = 8
NEW_BUCKETS, TRIED_BUCKETS = 128, 64  # 1,024 and 512 peers: a file below 1 MiB
NEW_BUCKETS_PER_TELLER = 16  # what one net group tells us reaches an eighth of the table
TRIED_BUCKETS_PER_GROUP = 4  # one net group's peers reach a sixteenth
MAX_PICKS_PER_GROUP = 2
MAX_ANCHORS = 4
MAX_ADDRESSES = 4  # per peer
MAX_AGE_S = 30 * 24 * 3600.0  # who was not heard of for a month is gone
MAX_FAILURES = 3  # in a row, and a peer may be pushed out

_Address = Annotated[str, msgspec.Meta(max_length=256)]
_Epoch = Annotated[float, msgspec.Meta(ge=0, le=1e11)]


class Known(msgspec.Struct, frozen=True):
    """A peer of the store. `teller`: the net group of who told us of it first."""

    peer: BoundedPeerId
    addresses: Annotated[tuple[_Address, ...], msgspec.Meta(max_length=MAX_ADDRESSES)]
    teller: Annotated[str, msgspec.Meta(max_length=256)]
    heard_s: _Epoch
    answered_s: _Epoch = 0.0
    failures: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 0

    @property
    def group(self) -> str:
        """Its net group."""
        return net_group(self.addresses)

    def is_worn(self, now_s: float) -> bool:
        """Whether a newcomer may have its place."""
        return self.failures >= MAX_FAILURES or now_s - self.heard_s > MAX_AGE_S


class Snapshot(msgspec.Struct, frozen=True):
    """All of a store, as it lies on disk."""

    secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    new: Annotated[tuple[Known, ...], msgspec.Meta(max_length=NEW_BUCKETS * BUCKET_PEERS)]
    tried: Annotated[tuple[Known, ...], msgspec.Meta(max_length=TRIED_BUCKETS * BUCKET_PEERS)]
    anchors: Annotated[tuple[Known, ...], msgspec.Meta(max_length=MAX_ANCHORS)]


class PeerStore:
    """Bounded tables of peers. A peer is in one of them, or in none."""

    def __init__(self, secret: bytes) -> None:
        """`secret`: 32 bytes that nobody else knows; they decide who shares a bucket."""
        self._secret = secret
        self._new: dict[PeerId, Known] = {}
        self._tried: dict[PeerId, Known] = {}
        self._anchors: tuple[Known, ...] = ()
        self._new_buckets: dict[int, list[PeerId]] = {}
        self._tried_buckets: dict[int, list[PeerId]] = {}

    @classmethod
    def restored(cls, snapshot: Snapshot) -> PeerStore:
        """A store as it was; what does not fit its tables any more is left out."""
        store = cls(snapshot.secret)
        for known in snapshot.tried:
            store._put_tried(known, known.heard_s)
        for known in snapshot.new:
            if known.peer not in store._tried:
                store._put_new(known, known.heard_s)
        store._anchors = snapshot.anchors
        return store

    def snapshot(self) -> Snapshot:
        """All there is, to be kept."""
        return Snapshot(
            self._secret, tuple(self._new.values()), tuple(self._tried.values()), self._anchors
        )

    def __len__(self) -> int:
        return len(self._new) + len(self._tried)

    # -- learning -----------------------------------------------------------------------------

    def heard(self, peer: PeerId, addresses: Iterable[str], teller: str, now_s: float) -> None:
        """Somebody of net group `teller` told us where a peer is; it takes a place in `new`."""
        some = _some(addresses)
        if not some:
            return
        known = self._tried.get(peer) or self._new.get(peer)
        if known is None:
            self._put_new(Known(peer, some, teller, now_s), now_s)
        else:
            # Addresses that worked are not exchanged for others that somebody tells of.
            kept = known.addresses if known.answered_s else some
            self._change(msgspec.structs.replace(known, addresses=kept, heard_s=now_s))

    def answered(self, peer: PeerId, addresses: Iterable[str], now_s: float) -> None:
        """We reached a peer: it belongs to `tried`, if its bucket has a place."""
        known = self._tried.get(peer) or self._new.get(peer)
        some = _some(addresses) or (known.addresses if known else ())
        if not some:
            return
        teller = known.teller if known else net_group(some)
        fresh = Known(peer, some, teller, now_s, answered_s=now_s)
        if peer in self._tried and self._tried[peer].group == fresh.group:
            self._change(fresh)
            return
        self._drop(peer)
        if not self._put_tried(fresh, now_s):
            self._put_new(fresh, now_s)

    def failed(self, peer: PeerId) -> None:
        """A peer could not be reached."""
        known = self._tried.get(peer) or self._new.get(peer)
        if known is not None:
            self._change(msgspec.structs.replace(known, failures=known.failures + 1))

    def anchor(self, peers: Sequence[PeerId]) -> None:
        """Keep the first MAX_ANCHORS of these that we reached, one of each public net group."""
        anchors: list[Known] = []
        for peer in peers:
            known = self._tried.get(peer) or self._new.get(peer)
            if known is None or not known.answered_s or len(anchors) == MAX_ANCHORS:
                continue
            if known.group == LOCAL or known.group not in {one.group for one in anchors}:
                anchors.append(known)
        if anchors:  # who is alone for a while would forget everybody otherwise
            self._anchors = tuple(anchors)

    # -- choosing -----------------------------------------------------------------------------

    @property
    def anchors(self) -> tuple[Known, ...]:
        """Whom to meet first after a restart."""
        return self._anchors

    def picks(self, count: int, rng: Random) -> list[Known]:
        """Up to `count` peers to call on: mostly tried ones, of as many net groups as there are.

        Buckets are drawn before peers: a network that fills few of them is drawn seldom. Of a
        public net group there are never more than MAX_PICKS_PER_GROUP.
        """
        picked: dict[PeerId, Known] = {}
        taken: Counter[str] = Counter()
        order = [*_drawn(self._tried_buckets, rng), *_drawn(self._new_buckets, rng)]
        for most in (1, MAX_PICKS_PER_GROUP, len(order)):
            for peer in order:
                known = self._tried.get(peer) or self._new[peer]
                is_free = taken[known.group] < most
                if most > MAX_PICKS_PER_GROUP:
                    is_free = known.group == LOCAL
                if len(picked) < count and peer not in picked and is_free:
                    taken[known.group] += 1
                    picked[peer] = known
        return list(picked.values())

    def feeler(self, rng: Random) -> Known | None:
        """Somebody of `new` to be tried: only so do strangers get into `tried`."""
        untried = [peer for peer in _drawn(self._new_buckets, rng) if not self._new[peer].failures]
        return self._new[untried[0]] if untried else None

    # -- the tables ---------------------------------------------------------------------------

    def _bucket(self, *what: object) -> int:
        data = repr(what).encode()
        return int.from_bytes(hashlib.blake2b(data, key=self._secret, digest_size=8).digest())

    def _new_bucket(self, known: Known) -> int:
        spread = self._bucket("new", known.teller, known.group) % NEW_BUCKETS_PER_TELLER
        return self._bucket("new", known.teller, spread) % NEW_BUCKETS

    def _tried_bucket(self, known: Known) -> int:
        spread = self._bucket("tried", known.peer) % TRIED_BUCKETS_PER_GROUP
        return self._bucket("tried", known.group, spread) % TRIED_BUCKETS

    def _put_new(self, known: Known, now_s: float) -> bool:
        bucket = self._new_buckets.setdefault(self._new_bucket(known), [])
        return self._put(known, self._new, bucket, now_s)

    def _put_tried(self, known: Known, now_s: float) -> bool:
        bucket = self._tried_buckets.setdefault(self._tried_bucket(known), [])
        return self._put(known, self._tried, bucket, now_s)

    def _put(
        self, known: Known, table: dict[PeerId, Known], bucket: list[PeerId], now_s: float
    ) -> bool:
        """Into a bucket that has a place, or for one there that is worn; else not at all."""
        if known.peer in table:
            return False
        if len(bucket) == BUCKET_PEERS:
            worn = [peer for peer in bucket if table[peer].is_worn(now_s)]
            if not worn:
                return False
            bucket.remove(worn[0])
            del table[worn[0]]
        bucket.append(known.peer)
        table[known.peer] = known
        return True

    def _change(self, known: Known) -> None:
        """Put a peer anew where it is; its bucket stays, for it hangs on what does not change."""
        table = self._tried if known.peer in self._tried else self._new
        if table is self._new and table[known.peer].group != known.group:
            self._drop(known.peer)
            self._put_new(known, known.heard_s)
        else:
            table[known.peer] = known

    def _drop(self, peer: PeerId) -> None:
        for table, buckets, place in (
            (self._new, self._new_buckets, self._new_bucket),
            (self._tried, self._tried_buckets, self._tried_bucket),
        ):
            known = table.pop(peer, None)
            if known is not None:
                buckets[place(known)].remove(peer)


def _some(addresses: Iterable[str]) -> tuple[str, ...]:
    return tuple(addresses)[:MAX_ADDRESSES]


def _drawn(buckets: dict[int, list[PeerId]], rng: Random) -> list[PeerId]:
    """All peers, each bucket giving one before any gives two, by lot."""
    piles = [rng.sample(peers, len(peers)) for _, peers in sorted(buckets.items())]
    rng.shuffle(piles)
    order: list[PeerId] = []
    while piles := [pile for pile in piles if pile]:
        order += [pile.pop() for pile in piles]
    return order
