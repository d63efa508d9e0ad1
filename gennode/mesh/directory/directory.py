"""Who is alive and what they host: signed announcements, spread by comparing digests. Sans-IO.

A peer signs an announcement when something about it changes, and proves every BEAT_S that it
lives with the next link of a hash chain (`wire/beats.py`). Both spread in one way: once a second
we offer one neighbour a digest of all that we know, two bytes per peer (`sketch.py`). It sends
what we lack, and a digest of what it lacks, which we send. What is our own goes to all
neighbours at once.

Clocks need not agree. An announcement travels with the age of its latest beat, and each peer
counts the life that is left on its own clock. A peer believes one beat at most once, for at most
its lifetime from then on: whoever lies about an age can spoil one beat, or stretch a life by
less than one lifetime, at those that had not heard of it. The next beat heals both.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

import numpy as np

from gennode.errors import LocalError, RemoteError
from gennode.mesh.directory.admission import MAX_PEERS, Admission
from gennode.mesh.directory.announced import MAX_LIFETIME_S, Fact, Reader
from gennode.mesh.directory.neighbours import Neighbours
from gennode.mesh.directory.roster import MAX_LAG_BEATS, Roster
from gennode.mesh.directory.sketch import STATES, Rows, Sketch, bucket_bits_for, sketch
from gennode.wire.announcement import Announcement
from gennode.wire.beats import MAX_BEATS, proves
from gennode.wire.ids import PeerId
from gennode.wire.messages import (
    BEAT_BYTES,
    MAX_ANNOUNCEMENTS,
    AgedAnnouncement,
    Announcements,
    Beats,
    Digest,
    Message,
)
from gennode.wire.signing import Signed

EXCHANGE_INTERVAL_S = 1.0  # news reaches n peers in some log3(n) exchanges
BEAT_S = 10.0  # two may get lost in a lifetime of 30 s

# What has expired is remembered for an hour: honest copies are gone within two lifetimes, and
# one replayed later by a liar haunts us for at most a minute of every hour.
TOMBSTONE_S = 60 * MAX_LIFETIME_S
MAX_TOMBSTONES = 4 * MAX_PEERS  # past this the oldest are forgotten

MAX_SENT = 16 * MAX_ANNOUNCEMENTS  # per digest, so that an empty one can't draw megabytes
MIN_ANSWER_S = 0.2  # digests that one peer sends more often are not answered
MAX_CALLERS = 1024  # of whom we know when we answered them; past this the oldest are forgotten

# An announcement with less life than this left is not passed on, and one is listed for so long
# after its end: else peers whose clocks differ by a moment would send it to and fro.
FADING_S = 3.0

Outgoing = tuple[PeerId, Message]


@dataclass(frozen=True)
class _Tombstone:
    sequence: int
    beat: int
    until_s: float


class Directory:
    """The set of live announcements. `now_s` is any clock that never runs backwards."""

    def __init__(self, peer: PeerId, rng: Random, *, reader: Reader | None = None) -> None:
        self.peer = peer
        self.version = 0
        """Grows whenever the live set changes: compare to notice."""
        self.neighbours = Neighbours(peer, rng)
        self._rng = rng
        self._reader = reader or Reader()
        self._roster = Roster()
        self._admission = Admission(self._roster, peer, rng)
        self._faded: deque[tuple[float, int, int]] = deque()  # (until, mark, beat)
        self._tombstones: dict[PeerId, _Tombstone] = {}  # oldest first
        self._news: dict[PeerId, str] = {}  # of those that are held, who told us
        self._answered_s: dict[PeerId, float] = {}  # oldest first
        self._live: tuple[Announcement, ...] = ()
        self._live_version = 0
        self.twin: Announcement | None = None
        """What another node, or a past run of ours, announced last with our key."""
        self._own_sequence = -1
        self._published = -1
        self._own_links: tuple[bytes, ...] = ()
        self._own_beat = 0
        self._is_own_news = False
        self._next_beat_s = math.inf
        self._next_exchange_s = -math.inf
        self._next_expiry_s = math.inf

    # -- being in it --------------------------------------------------------------------------

    @property
    def next_sequence(self) -> int:
        """One more than that of any announcement of ours that is about, also from past runs."""
        return self._own_sequence + 1

    @property
    def is_spent(self) -> bool:
        """Whether our announcement needs another in its place: it has no beats left, or there is
        one of a higher number that was made with our key."""
        return self._own_beat >= MAX_BEATS or self._published < self._own_sequence

    def publish(self, signed: Signed, links: tuple[bytes, ...], now_s: float) -> None:
        """Make `signed` our announcement; it goes to all neighbours with the next tick.

        `links`: the chain whose end it tells of, or none if it will not beat. LocalError if it
        is not ours, not valid, or not newer than all that we know of.
        """
        try:
            fact = self._reader.read(signed)
            self._reader.check(signed)
        except RemoteError as error:
            raise LocalError(f"our own announcement is wrong: {error}") from error
        announcement = fact.announcement
        if fact.peer != self.peer or fact.sequence < self.next_sequence:
            raise LocalError(
                f"{announcement.peer} can't publish announcement {announcement.sequence} here",
                hint=f"{self.peer} is at {self.next_sequence}",
            )
        if links and links[0] != announcement.chain_end:
            raise LocalError("our announcement tells of another chain than we have")
        self._own_sequence = self._published = announcement.sequence
        self._own_links, self._own_beat, self._is_own_news = links, 0, True
        self._next_beat_s = now_s + BEAT_S if links else math.inf
        self._hold(fact, "", 0, announcement.chain_end, now_s)

    def worked_with(self, peer: PeerId) -> None:
        """A peer did for us what it should: it is not given up for newcomers."""
        self._admission.worked_with(peer)

    # -- what comes in ------------------------------------------------------------------------

    def receive(self, sender: PeerId, message: Message, now_s: float) -> list[Outgoing]:
        """Take a Digest, Announcements or Beats; returns what to send.

        RemoteError if an announcement is malformed, unsigned or out of bounds: drop the sender.
        """
        self._expire(now_s)
        answers: Iterable[Message] = ()
        match message:
            case Announcements():
                for item in message.items:
                    self._take(sender, item, now_s)
            case Beats():
                if len(message.links) % BEAT_BYTES:
                    raise RemoteError(f"beats of {len(message.links)} bytes")
                self._roster.take(message.links, now_s)
            case Digest():
                answers = self._answers(sender, message, now_s)
            case _:
                raise LocalError(f"a {type(message).__name__} is not for the directory")
        self.neighbours.heard(sender)
        if sender in self.neighbours:
            self.worked_with(sender)
        return [(sender, answer) for answer in answers]

    def lost(self, peer: PeerId, now_s: float) -> None:
        """A peer can't be reached: exchange with others."""
        self.neighbours.lost(peer, now_s)

    def tick(self, now_s: float, others: Mapping[PeerId, str]) -> list[Outgoing]:
        """Forget the expired, show that we live, offer a digest to the neighbour whose turn it is.

        `others`: peers that may become neighbours beside those that announce themselves, each
        with its net group.
        """
        self._expire(now_s)
        if self.neighbours.is_wanting(now_s):
            known = {fact.peer: fact.group for fact in self._roster if fact.is_serving}
            self.neighbours.offer({**others, **known}.items(), now_s)
        outgoing = [
            (peer, news) for news in self._own_news(now_s) for peer in self.neighbours.chosen
        ]
        if now_s >= self._next_exchange_s:
            partner = self.neighbours.next()
            if partner is not None:
                self._next_exchange_s = now_s + EXCHANGE_INTERVAL_S
                self.neighbours.asked(partner, now_s)
                outgoing.append((partner, self._digest()))
        return outgoing

    # -- what is known ------------------------------------------------------------------------

    def live(self, now_s: float) -> tuple[Announcement, ...]:
        """The announcements that are valid now, sorted by peer."""
        self._expire(now_s)
        if self._live_version != self.version:
            live = (fact.announcement for fact in self._roster if fact.is_serving)
            self._live = tuple(sorted(live, key=lambda announcement: announcement.peer))
            self._live_version = self.version
        return self._live

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where `peer` says that it can be dialled; empty if we don't know it."""
        fact = self._roster.get(peer)
        return fact.announcement.addresses if fact else ()

    def alive_s(self, peer: PeerId) -> float:
        """When a peer last showed that it lives; long ago if we don't know it."""
        return self._roster.alive_s(peer)

    def take_news(self) -> list[tuple[Announcement, str]]:
        """Announcements that are new since the last call, and the net group of who told us."""
        news, self._news = self._news, {}
        facts = [(self._roster.get(peer), teller) for peer, teller in news.items()]
        return [(fact.announcement, teller) for fact, teller in facts if fact is not None]

    # -- exchanging ---------------------------------------------------------------------------

    def _own_news(self, now_s: float) -> Iterator[Message]:
        row = self._roster.row(self.peer)
        if row is None:
            return
        if now_s >= self._next_beat_s and self._own_beat < MAX_BEATS:
            self._own_beat += 1
            self._next_beat_s = now_s + BEAT_S
            self._roster.advance(row, self._own_beat, self._own_links[self._own_beat], now_s)
            if not self._is_own_news:
                yield Beats(self._roster.packed([row], now_s))
        if self._is_own_news and self.neighbours.chosen:
            self._is_own_news = False
            yield Announcements((self._aged(row, now_s),))

    def _sketch(self, salt: int, bucket_bits: int) -> tuple[Sketch, Rows]:
        """All that we know, and that faded lately; rows past the roster's are of the latter."""
        roster = self._roster
        marks, beats = roster.marks, roster.beats
        if self._faded:
            _, faded_marks, faded_beats = zip(*self._faded, strict=True)
            marks = np.concatenate([marks, np.array(faded_marks, np.uint64)])
            beats = np.concatenate([beats, np.array(faded_beats, np.int64)])
        return sketch(marks, (beats % STATES).astype(np.uint8), salt, bucket_bits)

    def _digest(self) -> Digest:
        salt = self._rng.getrandbits(63)
        listed = len(self._roster) + len(self._faded)
        mine, _ = self._sketch(salt, bucket_bits_for(listed))
        return Digest(salt, *mine.pack(), asks=False)

    def _answers(self, sender: PeerId, digest: Digest, now_s: float) -> Iterable[Message]:
        theirs = Sketch.unpack(digest.salt, digest.counts, digest.entries)
        if not digest.asks and not self._may_call(sender, now_s):
            return ()
        mine, rows = self._sketch(digest.salt, theirs.bucket_bits)
        at = theirs.find(mine.keys)
        is_listed = at >= 0
        states = theirs.states[at] if len(theirs.states) else np.zeros(len(at), np.uint8)
        is_held = rows < len(self._roster)
        can_send = is_held.copy()
        can_send[is_held] = self._roster.expiry_s[rows[is_held]] > now_s + FADING_S
        if digest.asks:
            whole = rows[can_send & is_listed & (states == _WHOLE)]
            beats = rows[can_send & is_listed & (states == _BEAT)]
            return self._packets(whole, beats, now_s)
        ahead = (mine.states.astype(np.int16) - states) % STATES
        whole = rows[can_send & ~is_listed]
        beats = rows[can_send & is_listed & (ahead >= 1) & (ahead <= MAX_LAG_BEATS)]
        behind = at[is_held & is_listed & (ahead > MAX_LAG_BEATS)]
        lacking = np.flatnonzero(mine.find(theirs.keys) < 0)[:MAX_SENT]
        return [*self._packets(whole, beats, now_s), *_asking(theirs, lacking, behind)]

    def _may_call(self, sender: PeerId, now_s: float) -> bool:
        before_s = self._answered_s.pop(sender, -math.inf)
        is_soon = now_s < before_s + MIN_ANSWER_S
        self._answered_s[sender] = before_s if is_soon else now_s
        while len(self._answered_s) > MAX_CALLERS:
            del self._answered_s[next(iter(self._answered_s))]
        return not is_soon

    def _packets(self, whole: Rows, beats: Rows, now_s: float) -> Iterator[Message]:
        if len(beats):
            yield Beats(self._roster.packed(beats.tolist(), now_s))
        rows = whole.tolist()
        if len(rows) > MAX_SENT:
            rows = self._rng.sample(rows, MAX_SENT)
        for start in range(0, len(rows), MAX_ANNOUNCEMENTS):
            some = rows[start : start + MAX_ANNOUNCEMENTS]
            yield Announcements(tuple(self._aged(row, now_s) for row in some))

    def _aged(self, row: int, now_s: float) -> AgedAnnouncement:
        roster = self._roster
        age_s = now_s - float(roster.made_s[row])
        beat = int(roster.beats[row])
        return AgedAnnouncement(
            roster.facts[row].signed, age_s, beat, roster.links[row] if beat else b""
        )

    # -- taking -------------------------------------------------------------------------------

    def _known(self, peer: PeerId) -> tuple[int, int]:
        """The highest (sequence, beat) of a peer that we have had, or (-1, 0)."""
        if peer == self.peer:
            return self._own_sequence, MAX_BEATS
        fact = self._roster.get(peer)
        if fact is not None:
            return fact.sequence, self._roster.beat_of(peer)
        tombstone = self._tombstones.get(peer)
        return (tombstone.sequence, tombstone.beat) if tombstone else (-1, 0)

    def _take(self, sender: PeerId, item: AgedAnnouncement, now_s: float) -> None:
        """Check in the order of what it costs us: the signature last, and only for news."""
        fact = self._reader.read(item.signed)
        peer, end = fact.peer, fact.announcement.chain_end
        if (fact.sequence, item.beat) <= self._known(peer):
            return
        if item.age_s >= fact.announcement.lifetime_s:
            return
        before = self._roster.get(peer)
        is_new = before is None or before.sequence < fact.sequence
        if before is not None and not is_new and before.signed.body != item.signed.body:
            return  # it signed two under one number: the first one counts
        teller = self._group_of(sender)
        if (
            before is None
            and peer != self.peer
            and not self._admission.has_room(fact.group, teller)
        ):
            return
        if item.beat and not proves(end, item.beat, item.link):
            raise RemoteError(f"{peer} did not make the beat that is shown for it")
        if is_new:
            self._reader.check(item.signed)
        if peer == self.peer:  # from a past run of ours: outbid it with the next publication
            self._own_sequence = fact.sequence
            self.twin = fact.announcement
            return
        leaver = self._admission.leaver() if before is None else None
        if leaver is not None:
            self._drop(leaver)
            self.version += 1
        self._hold(fact, teller, item.beat, item.link if item.beat else end, now_s - item.age_s)

    def _group_of(self, sender: PeerId) -> str:
        fact = self._roster.get(sender)
        return fact.group if fact else ""

    def _hold(self, fact: Fact, teller: str, beat: int, link: bytes, made_s: float) -> None:
        before = self._roster.get(fact.peer)
        row = self._roster.row(fact.peer)
        if before is not None and row is not None and before.sequence == fact.sequence:
            self._roster.advance(row, beat, link, made_s)
            return
        self._roster.put(fact, teller, beat, link, made_s)
        self._news[fact.peer] = teller
        self._tombstones.pop(fact.peer, None)
        self._next_expiry_s = min(self._next_expiry_s, made_s + fact.announcement.lifetime_s)
        if fact.is_serving or (before is not None and before.is_serving):
            self.version += 1

    # -- letting go --------------------------------------------------------------------------

    def _drop(self, peer: PeerId) -> None:
        self._roster.remove(peer)
        self._news.pop(peer, None)

    def _expire(self, now_s: float) -> None:
        while self._faded and self._faded[0][0] <= now_s:
            self._faded.popleft()
        if now_s < self._next_expiry_s:
            return
        roster = self._roster
        for row in np.flatnonzero(roster.expiry_s <= now_s)[::-1].tolist():
            fact, beat = roster.facts[row], int(roster.beats[row])
            if fact.peer == self.peer and self._own_links:  # we slept: tell all that we live
                self._is_own_news = True
                continue
            self._drop(fact.peer)
            self.version += fact.is_serving
            self._faded.append((now_s + FADING_S, fact.mark, beat))
            self._tombstones[fact.peer] = _Tombstone(fact.sequence, beat, now_s + TOMBSTONE_S)
            if fact.peer in self.neighbours:
                self.neighbours.lost(fact.peer, now_s)
        for peer, tombstone in list(self._tombstones.items()):
            if tombstone.until_s > now_s and len(self._tombstones) <= MAX_TOMBSTONES:
                break
            del self._tombstones[peer]
        self._next_expiry_s = float(roster.expiry_s.min()) if len(roster) else math.inf


_WHOLE, _BEAT = 0, 1  # the states of a digest that asks


def _asking(theirs: Sketch, lacking: Rows, behind: Rows) -> Iterator[Digest]:
    """Ask for some entries of a digest: announcements that we lack, beats that we missed."""
    wanted = np.concatenate([lacking, behind])
    if not len(wanted):
        return
    states = np.repeat(np.array([_WHOLE, _BEAT], np.uint8), [len(lacking), len(behind)])
    order = np.argsort(wanted, kind="stable")
    yield Digest(theirs.salt, *theirs.only(wanted[order], states[order]).pack(), asks=True)
