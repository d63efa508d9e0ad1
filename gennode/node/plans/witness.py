"""What one peer has seen others announce of late, and what it can say of somebody's snapshot.

Views differ for seconds: an announcement that one peer has is still on its way to another. So a
snapshot is not compared with the view of this moment. Its entries have to be facts that this peer
holds or held in the last minute; a publisher in turn uses none that is younger than news takes
to reach everybody. What is still unknown may be an honest view or a lie. Only what a peer's own
signed announcement contradicts is called a lie.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from gennode.wire.announcement import Announcement
from gennode.wire.ids import Hop, ModelId, PeerId
from gennode.wire.proposal import Proposal, mark_of, place_in_line
from gennode.wire.snapshot import Candidate, Snapshot

MAX_FACTS = 4  # of one peer at a time: what it measured changes a few times a minute at most
TOLERATED_SHARE = 50  # one entry in so many may be unknown, or left out; and always one
_FACT_BYTES = 16

TakeSnapshot = Callable[[Sequence[Announcement], int], Snapshot]
"""A model's pool as these announcements show it, with an epoch's number."""


@dataclass(frozen=True)
class Pace:
    """How plans follow each other. A swarm's peers have to share it.

    An epoch has a line of publishers; each waits `takeover_s` longer for those before it. What
    is older than `settle_s` is taken to be known everywhere, and a peer that came less than
    `fresh_s` ago may be left out of a plan. Facts are remembered for `remember_s`. Who can't tell
    whether a snapshot is right looks again until `give_up_s`; from `catch_up_s` on it tolerates
    a few entries that it does not know. Nobody plans anew for `rest_s` after a plan. Clocks may
    be off by `skew_s`.
    """

    epoch_s: float = 30.0
    takeover_s: float = 2.0
    settle_s: float = 10.0
    fresh_s: float = 45.0
    remember_s: float = 60.0
    catch_up_s: float = 8.0
    give_up_s: float = 20.0
    rest_s: float = 120.0
    skew_s: float = 3.0


PACE = Pace()


@dataclass(frozen=True)
class Claim:
    """What a snapshot says of one peer: a hash of its entry, and of which announcement it is."""

    peer: PeerId
    mark: bytes
    fact: bytes


@dataclass(frozen=True)
class Opinion:
    """What a peer can say of a snapshot; `unknown`: whose entries it can't vouch for."""

    says: Literal["sound", "unsure", "false"]
    why: str = ""
    unknown: frozenset[PeerId] = frozenset()


@dataclass
class _Fact:
    """What follows from a peer's announcements from one time until another."""

    mark: bytes
    fact: bytes
    candidate: Candidate
    from_s: float
    until_s: float = float("inf")


@dataclass
class _Seen:
    """One peer, since it came."""

    announcement: Announcement
    since_s: float
    left_s: float | None = None
    facts: list[_Fact] = field(default_factory=list)  # the newest last


def claims_of(proposal: Proposal) -> list[Claim]:
    """What a proposal says of each peer, in a form that is quick to compare."""
    return [Claim(one.peer, mark, _fact_of(one)) for one, mark in proposal.entries()]


def stands_without(hosts: Iterable[Hop], unknown: frozenset[PeerId], layers: int) -> bool:
    """Whether every layer of a plan has a host that is not among the unknown ones."""
    end = 0
    for span in sorted(hop.span for hop in hosts if hop.peer not in unknown):
        if span.start > end:
            return False
        end = max(end, span.end)
    return end >= layers


def _fact_of(candidate: Candidate) -> bytes:
    return hashlib.sha256(msgspec.msgpack.encode(candidate)).digest()[:_FACT_BYTES]


class Witness:
    """One peer's memory of the pool of one model. `now_s` is a monotonic clock."""

    def __init__(self, peer: PeerId, model: ModelId, take: TakeSnapshot, pace: Pace) -> None:
        self._peer = peer
        self._model = model
        self._take = take
        self._pace = pace
        self._demand = take((), 0).demand
        self._seen: dict[PeerId, _Seen] = {}
        self._since_s: float | None = None
        self._lines: dict[int, list[bytes]] = {}
        self.live: list[PeerId] = []
        """Who could host now, sorted."""

    # -- seeing -------------------------------------------------------------------------------

    def see(self, live: Iterable[Announcement], now_s: float) -> None:
        """Take note of who is live now and what they announce."""
        if self._since_s is None:
            self._since_s = now_s
        present, news = set[PeerId](), list[Announcement]()
        for one in live:
            seen = self._seen.get(one.peer)
            is_new = seen is None or seen.announcement is not one
            if is_new and one.hosting_of(self._model) is None:
                continue
            present.add(one.peer)
            if is_new:
                news.append(one)
        self._note(news, now_s)
        self._forget(present, now_s)
        self._lines = {}
        self.live = sorted(peer for peer, seen in self._seen.items() if _is_live(seen))

    def _note(self, news: Sequence[Announcement], now_s: float) -> None:
        candidates = {one.peer: one for one in self._take(news, 0).peers} if news else {}
        for one in news:
            seen = self._seen.setdefault(one.peer, _Seen(one, now_s))
            seen.announcement = one
            candidate = candidates.get(one.peer)
            if candidate is None:
                continue
            mark, fact = mark_of(msgspec.msgpack.encode(one)), _fact_of(candidate)
            if seen.facts and seen.facts[-1].fact == fact:
                seen.facts[-1].mark = mark
                continue
            if seen.facts:
                seen.facts[-1].until_s = now_s
            seen.facts = [*seen.facts, _Fact(mark, fact, candidate, now_s)][-MAX_FACTS:]

    def _forget(self, present: set[PeerId], now_s: float) -> None:
        oldest_s = now_s - self._pace.remember_s
        gone = []
        for peer, seen in self._seen.items():
            if peer not in present:
                seen.left_s = now_s if seen.left_s is None else seen.left_s
                if seen.left_s <= oldest_s:
                    gone.append(peer)
            elif seen.left_s is not None:
                seen.left_s, seen.since_s = None, now_s
            if seen.facts and seen.facts[0].until_s <= oldest_s:
                seen.facts = [fact for fact in seen.facts if fact.until_s > oldest_s]
        for peer in gone:
            del self._seen[peer]

    # -- what is known ------------------------------------------------------------------------

    def is_live(self, peer: PeerId) -> bool:
        """Whether a peer could host now."""
        seen = self._seen.get(peer)
        return seen is not None and _is_live(seen)

    def age_s(self, now_s: float) -> float:
        """How long we have been looking."""
        return 0.0 if self._since_s is None else now_s - self._since_s

    def rank(self, epoch: int, peer: PeerId) -> int | None:
        """How many live peers are before this one in an epoch's line; None if it is not live."""
        if not self.is_live(peer):
            return None
        if epoch not in self._lines:
            places = (place_in_line(self._model, epoch, one) for one in self.live)
            self._lines[epoch] = sorted(places)
        return bisect_left(self._lines[epoch], place_in_line(self._model, epoch, peer))

    def next_in_line(self, epoch: int, peer: PeerId, count: int) -> list[PeerId]:
        """Who comes after a peer in an epoch's line."""
        own = place_in_line(self._model, epoch, peer)
        places = sorted((place_in_line(self._model, epoch, one), one) for one in self.live)
        return [one for place, one in places if place > own][:count]

    def snapshot(self, epoch: int, now_s: float) -> tuple[Snapshot, bytes]:
        """The pool as all others should know it by now, in order of id, and the marks."""
        settled_s = now_s - self._pace.settle_s
        facts = []
        for peer in self.live:
            seen = self._seen[peer]
            old = [fact for fact in seen.facts if fact.from_s <= settled_s]
            if old and seen.since_s <= settled_s:
                facts.append(old[-1])
        peers = tuple(fact.candidate for fact in facts)
        snapshot = Snapshot(self._model, epoch, self._demand, peers)
        return snapshot, b"".join(fact.mark for fact in facts)

    # -- what others say ----------------------------------------------------------------------

    def judge(
        self, proposal: Proposal, claims: Sequence[Claim], waited_s: float, now_s: float
    ) -> Opinion:
        """What we can say of a snapshot, `waited_s` after we first saw it."""
        if proposal.snapshot.demand != self._demand:
            return Opinion("false", "it plans for another demand than the model's")
        unknown = set[PeerId]()
        for claim in claims:
            is_right = self._is_right(claim)
            if is_right is False:
                return Opinion("false", f"{claim.peer} announced something else")
            if is_right is None:
                unknown.add(claim.peer)
        tolerated = max(1, len(claims) // TOLERATED_SHARE)
        if waited_s < self._pace.catch_up_s:
            tolerated = 0
        if len(unknown) > tolerated or unknown & {proposal.publisher, self._peer}:
            return Opinion("unsure", f"{len(unknown)} of {len(claims)} entries are not known here")
        known, left_out = self._left_out({claim.peer for claim in claims}, now_s)
        if left_out > max(1, known // TOLERATED_SHARE):
            return Opinion("unsure", f"it leaves out {left_out} of {known} peers")
        return Opinion("sound", unknown=frozenset(unknown))

    def _is_right(self, claim: Claim) -> bool | None:
        """Whether a peer announced so; None if we can't tell.

        Not even of ourselves can we always: two announcements within a second look like one here,
        and somebody else may have seen the first.
        """
        seen = self._seen.get(claim.peer)
        facts = seen.facts if seen else []
        if any(fact.fact == claim.fact for fact in facts):
            return True
        return False if any(fact.mark == claim.mark for fact in facts) else None

    def _left_out(self, listed: set[PeerId], now_s: float) -> tuple[int, int]:
        """How many peers have been live for long, and how many of them are not listed."""
        fresh_s = now_s - self._pace.fresh_s
        old = [
            peer for peer, seen in self._seen.items() if _is_live(seen) and seen.since_s <= fresh_s
        ]
        return len(old), sum(peer not in listed for peer in old)


def _is_live(seen: _Seen) -> bool:
    return seen.left_s is None and bool(seen.facts)


def has_gap(snapshot: Snapshot) -> bool:
    """Whether nobody of a pool holds some layer."""
    end = 0
    for start, stop in sorted((one.held.start, one.held.end) for one in snapshot.peers):
        if start > end:
            break
        end = max(end, stop)
    return end < snapshot.demand.layers
