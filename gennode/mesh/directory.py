"""Who is alive and what they host: signed announcements, spread by comparing digests. Sans-IO.

Clocks need not agree. An announcement travels with its age, and each peer counts the life that
is left on its own clock. A peer believes one announcement at most once, for at most its
lifetime from then on: whoever lies about an age can shorten its life, or stretch it by less
than one lifetime, at those that had not heard of it. The next sequence number heals both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

import msgspec

from gennode.errors import LocalError, RemoteError
from gennode.wire.ids import PeerId
from gennode.wire.messages import (
    MAX_ANNOUNCEMENTS,
    MAX_DIGEST_PEERS,
    AgedAnnouncement,
    Announcement,
    Announcements,
    Digest,
    Message,
)
from gennode.wire.signing import MAX_SIGNED_BYTES, Signed, verify

DOMAIN = "announcement"
EXCHANGE_INTERVAL_S = 1.0  # news reaches n peers in some log2(n) exchanges
MAX_LIFETIME_S = 60.0  # how long a crashed peer can linger

# Beyond this newcomers are refused until somebody leaves. Evicting would let a flood of fresh
# keys push out workers that are known to be good; and one digest must hold all.
MAX_PEERS = MAX_DIGEST_PEERS

# An expired sequence number is remembered for an hour: honest copies are gone within two
# lifetimes, and one replayed later by a liar haunts us for at most a minute of every hour.
TOMBSTONE_S = 60 * MAX_LIFETIME_S
MAX_TOMBSTONES = 4 * MAX_PEERS  # past this the oldest are forgotten

MAX_SENT = 16 * MAX_ANNOUNCEMENTS  # per digest, so that an empty digest can't draw megabytes


@dataclass(frozen=True)
class _Held:
    signed: Signed
    announcement: Announcement
    made_s: float  # on our clock, as far as we were told

    @property
    def expiry_s(self) -> float:
        return self.made_s + self.announcement.lifetime_s


@dataclass(frozen=True)
class _Tombstone:
    sequence: int
    until_s: float


class Directory:
    """The set of live announcements. `now_s` is any clock that never runs backwards."""

    def __init__(self, peer: PeerId, rng: Random) -> None:
        self.peer = peer
        self.version = 0
        """Grows whenever the live set changes: compare to notice."""
        self._rng = rng
        self._held: dict[PeerId, _Held] = {}
        self._tombstones: dict[PeerId, _Tombstone] = {}  # oldest first
        self._live: tuple[Announcement, ...] = ()
        self._live_version = 0
        self._own_sequence = -1
        self._next_exchange_s = -math.inf
        self._next_expiry_s = math.inf

    @property
    def next_sequence(self) -> int:
        """One more than that of any announcement of ours that is about, also from past runs."""
        return self._own_sequence + 1

    def publish(self, signed: Signed, now_s: float) -> None:
        """Make `signed` our announcement; it goes out from the next tick on.

        LocalError if it is not ours, not valid, or not newer than all that we know of.
        """
        try:
            announcement = _parse(signed)
            verify(signed.peer, DOMAIN, signed.body, signed.signature)
        except RemoteError as error:
            raise LocalError(f"our own announcement is wrong: {error}") from error
        if announcement.peer != self.peer or announcement.sequence < self.next_sequence:
            raise LocalError(
                f"{announcement.peer} can't publish announcement {announcement.sequence} here",
                hint=f"{self.peer} is at {self.next_sequence}",
            )
        self._own_sequence = announcement.sequence
        self._hold(_Held(signed, announcement, now_s))
        self._next_exchange_s = now_s

    def receive(
        self, sender: PeerId, message: Message, now_s: float
    ) -> list[tuple[PeerId, Message]]:
        """Take a Digest or Announcements; returns what to send.

        RemoteError if an announcement is malformed, unsigned or out of bounds: drop the sender.
        """
        self._expire(now_s)
        if isinstance(message, Announcements):
            for item in message.items:
                self._take(item, now_s)
            return []
        if isinstance(message, Digest):
            return [(sender, answer) for answer in self._answers(message, now_s)]
        raise LocalError(f"a {type(message).__name__} is not for the directory")

    def tick(self, now_s: float, neighbours: Sequence[PeerId]) -> list[tuple[PeerId, Message]]:
        """Forget the expired and, when it is time, offer our digest to one peer by chance."""
        self._expire(now_s)
        if now_s < self._next_exchange_s:
            return []
        partners = sorted({*neighbours, *(live.peer for live in self.live(now_s))} - {self.peer})
        if not partners:
            return []
        self._next_exchange_s = now_s + EXCHANGE_INTERVAL_S
        return [(self._rng.choice(partners), self._digest(reply=True))]

    def live(self, now_s: float) -> tuple[Announcement, ...]:
        """The announcements that are valid now, sorted by peer."""
        self._expire(now_s)
        if self._live_version != self.version:
            live = (held.announcement for held in self._held.values() if _is_serving(held))
            self._live = tuple(sorted(live, key=lambda announcement: announcement.peer))
            self._live_version = self.version
        return self._live

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where `peer` says that it can be dialled; empty if we don't know it."""
        held = self._held.get(peer)
        return held.announcement.addresses if held else ()

    def _digest(self, *, reply: bool) -> Digest:
        entries = ((peer, held.announcement.sequence) for peer, held in self._held.items())
        return Digest(tuple(sorted(entries)), reply)

    def _answers(self, digest: Digest, now_s: float) -> Iterable[Message]:
        theirs = dict(digest.entries)
        lacking = [
            held
            for peer, held in sorted(self._held.items())
            if theirs.get(peer, -1) < held.announcement.sequence
        ]
        if len(lacking) > MAX_SENT:
            lacking = self._rng.sample(lacking, MAX_SENT)
        for start in range(0, len(lacking), MAX_ANNOUNCEMENTS):
            some = lacking[start : start + MAX_ANNOUNCEMENTS]
            yield Announcements(
                tuple(AgedAnnouncement(held.signed, now_s - held.made_s) for held in some)
            )
        wanted = any(sequence > self._sequence(peer) for peer, sequence in theirs.items())
        if digest.reply and wanted:
            yield self._digest(reply=False)

    def _sequence(self, peer: PeerId) -> int:
        """The highest sequence number of a peer that we have had, or -1."""
        if peer == self.peer:
            return self._own_sequence
        if peer in self._held:
            return self._held[peer].announcement.sequence
        return self._tombstones[peer].sequence if peer in self._tombstones else -1

    def _take(self, item: AgedAnnouncement, now_s: float) -> None:
        """Check in the order of what it costs us: the signature last, and only for news."""
        announcement = _parse(item.signed)
        peer = announcement.peer
        if announcement.sequence <= self._sequence(peer):
            return
        if item.age_s >= announcement.lifetime_s:
            return
        if peer not in self._held and len(self._held) >= MAX_PEERS and peer != self.peer:
            return
        verify(peer, DOMAIN, item.signed.body, item.signed.signature)
        if peer == self.peer:  # from a past run of ours: outbid it with the next publication
            self._own_sequence = announcement.sequence
            return
        self._hold(_Held(item.signed, announcement, now_s - item.age_s))

    def _hold(self, held: _Held) -> None:
        peer = held.announcement.peer
        before = self._held.get(peer)
        self._held[peer] = held
        self._tombstones.pop(peer, None)
        self._next_expiry_s = min(self._next_expiry_s, held.expiry_s)
        if _is_serving(held) or (before is not None and _is_serving(before)):
            self.version += 1

    def _expire(self, now_s: float) -> None:
        if now_s < self._next_expiry_s:
            return
        for peer, held in list(self._held.items()):
            if held.expiry_s <= now_s:
                del self._held[peer]
                self.version += _is_serving(held)
                sequence = held.announcement.sequence
                self._tombstones[peer] = _Tombstone(sequence, now_s + TOMBSTONE_S)
        for peer, tombstone in list(self._tombstones.items()):
            if tombstone.until_s > now_s and len(self._tombstones) <= MAX_TOMBSTONES:
                break
            del self._tombstones[peer]
        self._next_expiry_s = min((held.expiry_s for held in self._held.values()), default=math.inf)


def _is_serving(held: _Held) -> bool:
    """False once a peer has said goodbye; it is held on to so that all hear of it."""
    return not held.announcement.is_goodbye


def _parse(signed: Signed) -> Announcement:
    """The announcement inside, its signature not checked yet; RemoteError if out of bounds."""
    if len(signed.body) > MAX_SIGNED_BYTES:
        raise RemoteError(f"an announcement of {len(signed.body)} bytes is too large")
    try:
        announcement = msgspec.msgpack.decode(signed.body, type=Announcement)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteError(f"malformed announcement: {error}") from error
    if announcement.peer != signed.peer:
        raise RemoteError("an announcement is signed by another than whom it is about")
    if announcement.lifetime_s > MAX_LIFETIME_S:
        raise RemoteError(f"an announcement wants to live {announcement.lifetime_s:g} s")
    return announcement
