"""How far others are, measured with small probes now and then, and what that predicts. Sans-IO.

A probe goes to one partner at a time and is answered at once with an echo, which tells where
the other sees itself (`vivaldi.py`). Only answers to probes of our own count, so nobody is heard
more often than we ask. Jitter and busy machines only ever add to a round trip: the least of
the last few is the distance (Ledlie, Gardner, Seltzer, "Network Coordinates in the Wild", NSDI
2007, use a low percentile of the last few likewise).

Rarely a probe carries a payload: the time that it takes longer than an empty one shows how fast
our line sends.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from gennode.errors import RemoteError
from gennode.mesh.distances.vivaldi import MAX_RTT_S, difference_s, settled
from gennode.mesh.links.limits import Bucket
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import PeerId
from gennode.wire.messages import MAX_PROBE_BYTES, Echo, Probe

FIRST_PARTNERS = 8  # are probed at once, so that a newcomer soon knows where it is
# Then the time between probes grows from the one to the other: by 1 s for each PATIENCE_S. A
# round trip is 84 bytes in frames, half of them ours: 28 B/s with those that we answer.
MIN_INTERVAL_S = 0.6
MAX_INTERVAL_S = 3.0
PATIENCE_S = 15.0

LEAST_SAMPLES = 2  # the first round trip may have paid for the connection
SAMPLES = 4  # of which the least counts: few, so that a way that became longer shows
FRESH_S = 120.0  # a neighbour that was not measured for longer pulls no more
MAX_LANDMARKS = 32  # those measured last
FORGET_S = 600.0
MAX_TRACKED = 1024  # past this the peers that were measured longest ago are forgotten

UPLOAD_INTERVAL_S = 300.0
FIRST_UPLOADS = 3  # come sooner, so that the first announcements can tell of it
FIRST_UPLOAD_INTERVAL_S = 10.0  # before the first as well: by then the nearest are known
UPLOADS = 5  # of which the median counts
NEAREST = 4  # of whom one takes the payload: on a long way it would be TCP that is measured
MIN_UPLOAD_S = 1e-4  # a line that takes less can't be told from noise

# What others ask of us: an honest peer sends two probes at first, then one in some seconds.
ECHOES_PER_S = 1.0
ECHOES_BURST = 6.0
ALL_ECHOES_PER_S = 50.0  # of 60 bytes: what 150 partners ask, and sixteen are usual
ALL_ECHOES_BURST = 200.0

# A coordinate is announced anew once it is off by more than this, or by this share of the usual
# distance: what others would gain by less is not worth telling everybody.
ANNOUNCED_OFF_S = 0.002
ANNOUNCED_OFF_SHARE = 0.1

# One way to a peer of which nothing is known, a third around the world: less, and it would pay
# to tell nothing.
UNKNOWN_WAY_S = 0.05

Outgoing = tuple[PeerId, Probe | Echo, bytes]


@dataclass
class _Seen:
    """What was measured of one peer."""

    rtts_s: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    coordinate: Coordinate = field(default_factory=Coordinate)
    heard_s: float = -math.inf

    @property
    def rtt_s(self) -> float | None:
        return min(self.rtts_s) if len(self.rtts_s) >= LEAST_SAMPLES else None


@dataclass(frozen=True)
class _Pending:
    nonce: int
    sent_s: float
    payload_bytes: int


class Distances:
    """What one peer measured of the network. `now_s` is any clock that never runs backwards."""

    def __init__(self, peer: PeerId, rng: Random) -> None:
        """`rng`: nobody may guess what it draws, or echoes could come before their probes."""
        self.peer = peer
        self.coordinate = Coordinate()
        """Where we are; its error is 1 until something was measured."""
        self.announced = Coordinate()
        """Where to say that we are: follows `coordinate` when they differ by so much that it
        matters."""
        self._rng = rng
        self._seen: dict[PeerId, _Seen] = {}  # heard longest ago first
        self._probed_s: dict[PeerId, float] = {}  # asked longest ago first
        self._pending: dict[PeerId, _Pending] = {}
        self._start_s = -math.inf
        self._next_probe_s = -math.inf
        self._uploads: deque[float] = deque(maxlen=UPLOADS)  # bytes per second
        self._uploads_sent = 0
        self._next_upload_s = math.inf
        self._echoes: dict[PeerId, Bucket] = {}
        self._all_echoes = Bucket(ALL_ECHOES_PER_S, ALL_ECHOES_BURST, ALL_ECHOES_BURST, 0.0)

    # -- asking and answering -----------------------------------------------------------------

    def tick(self, now_s: float, partners: Sequence[PeerId]) -> list[Outgoing]:
        """Probe some partners that are new, and one in turn; send these before all else."""
        if not partners:
            return []
        self._forget(now_s)
        if self._start_s == -math.inf:
            self._start_s = self._next_probe_s = now_s
            self._next_upload_s = now_s + FIRST_UPLOAD_INTERVAL_S
        outgoing = [self._probe(peer, now_s) for peer in self._newcomers(partners)]
        if now_s >= self._next_probe_s:
            grown_s = (now_s - self._start_s) / PATIENCE_S
            interval_s = max(MIN_INTERVAL_S, min(MAX_INTERVAL_S, grown_s))
            self._next_probe_s = now_s + interval_s * self._rng.uniform(0.75, 1.25)
            outgoing += [self._probe(peer, now_s) for peer in self._turn(partners)]
        if now_s >= self._next_upload_s:
            outgoing += [self._probe(peer, now_s, full=True) for peer in self._lines(partners)]
        return outgoing

    def receive(
        self, sender: PeerId, message: Probe | Echo, payload: bytes, now_s: float
    ) -> list[Outgoing]:
        """Answer a Probe, or learn from an Echo; RemoteError for a payload that may not be."""
        if isinstance(message, Probe):
            if len(payload) > MAX_PROBE_BYTES:
                raise RemoteError(f"a probe of {len(payload)} bytes")
            if not self._may_answer(sender, now_s):
                return []
            return [(sender, Echo(message.nonce, self.coordinate), b"")]
        if payload:
            raise RemoteError(f"an echo with {len(payload)} bytes of payload")
        pending = self._pending.get(sender)
        if pending is None or pending.nonce != message.nonce:
            return []
        del self._pending[sender]
        rtt_s = now_s - pending.sent_s
        if not 0.0 < rtt_s <= MAX_RTT_S:
            return []
        if pending.payload_bytes:
            self._learn_upload(sender, pending.payload_bytes, rtt_s)
            return []
        return self._learn(sender, message.coordinate, rtt_s, now_s)

    # -- what is known ------------------------------------------------------------------------

    def rtt_s(self, peer: PeerId) -> float | None:
        """Measured seconds to a peer and back; None if that was not measured lately."""
        seen = self._seen.get(peer)
        return seen.rtt_s if seen else None

    @property
    def upload_bytes_per_s(self) -> float:
        """At which our line sends to others; 0 if it is not known yet."""
        return statistics.median(self._uploads) if self._uploads else 0.0

    def link_time_s(
        self, source: PeerId, target: PeerId, coordinates: Mapping[PeerId, Coordinate]
    ) -> float:
        """Seconds from one peer to another: measured if one of them is us, else as announced.

        Of two peers that we measured, neither can be further from the other than by way of us,
        nor nearer than their distances to us differ; what they announce counts in between.
        """
        if self.peer in (source, target):
            rtt_s = self.rtt_s(target if source == self.peer else source)
            if rtt_s is not None:
                return rtt_s / 2
        here, there = (
            self.coordinate if peer == self.peer else coordinates.get(peer)
            for peer in (source, target)
        )
        way_s = predicted_way_s(here, there)
        from_us_s, to_us_s = self.rtt_s(source), self.rtt_s(target)
        if from_us_s is None or to_us_s is None:
            return way_s
        return max(abs(from_us_s - to_us_s) / 2, min((from_us_s + to_us_s) / 2, way_s))

    # -- whom to ask --------------------------------------------------------------------------

    def _newcomers(self, partners: Sequence[PeerId]) -> list[PeerId]:
        free = FIRST_PARTNERS - len(self._probed_s)
        if free <= 0:
            return []
        new = [peer for peer in partners if peer not in self._probed_s]
        return self._rng.sample(new, min(free, len(new)))

    def _turn(self, partners: Sequence[PeerId]) -> list[PeerId]:
        """The partner that was asked longest ago, unless it still has time to answer."""
        free = [peer for peer in partners if peer not in self._pending]
        self._rng.shuffle(free)
        return sorted(free, key=lambda peer: self._probed_s.get(peer, -math.inf))[:1]

    def _lines(self, partners: Sequence[PeerId]) -> list[PeerId]:
        """Whom to send a payload: one of the nearest."""
        known = [
            (rtt_s, peer)
            for peer in partners
            if (rtt_s := self.rtt_s(peer)) is not None and peer not in self._pending
        ]
        return [self._rng.choice(sorted(known)[:NEAREST])[1]] if known else []

    def _probe(self, peer: PeerId, now_s: float, *, full: bool = False) -> Outgoing:
        payload_bytes = MAX_PROBE_BYTES if full else 0
        if full:
            self._uploads_sent += 1
            is_first = self._uploads_sent < FIRST_UPLOADS
            wait_s = FIRST_UPLOAD_INTERVAL_S if is_first else UPLOAD_INTERVAL_S
            self._next_upload_s = now_s + wait_s * self._rng.uniform(0.75, 1.25)
        nonce = self._rng.getrandbits(53)
        self._probed_s.pop(peer, None)
        self._probed_s[peer] = now_s
        self._pending[peer] = _Pending(nonce, now_s, payload_bytes)
        return peer, Probe(nonce), bytes(payload_bytes)

    def _forget(self, now_s: float) -> None:
        """Drop what is too old, and of too much the oldest."""
        late = [peer for peer, one in self._pending.items() if now_s - one.sent_s > MAX_RTT_S]
        for peer in late:
            del self._pending[peer]
        while self._seen:
            peer = next(iter(self._seen))
            if len(self._seen) <= MAX_TRACKED and now_s - self._seen[peer].heard_s <= FORGET_S:
                break
            del self._seen[peer]
        while self._probed_s:
            peer = next(iter(self._probed_s))
            if len(self._probed_s) <= MAX_TRACKED and now_s - self._probed_s[peer] <= FORGET_S:
                break
            del self._probed_s[peer]

    # -- learning -----------------------------------------------------------------------------

    def _learn(
        self, peer: PeerId, coordinate: Coordinate, rtt_s: float, now_s: float
    ) -> list[Outgoing]:
        """Take a round trip; what to send, since the first of a peer wants a second at once."""
        seen = self._seen.pop(peer, None) or _Seen()
        self._seen[peer] = seen
        seen.rtts_s.append(rtt_s)
        seen.coordinate, seen.heard_s = coordinate, now_s
        if len(seen.rtts_s) < LEAST_SAMPLES:
            return [self._probe(peer, now_s)]
        fresh = (
            (one.coordinate, least_s)
            for one in reversed(self._seen.values())
            if now_s - one.heard_s <= FRESH_S and (least_s := one.rtt_s) is not None
        )
        landmarks = list(itertools.islice(fresh, MAX_LANDMARKS))
        self.coordinate = settled(self.coordinate, landmarks, self._rng)
        self._announce_if_off(statistics.median(least_s for _, least_s in landmarks))
        return []

    def _announce_if_off(self, usual_s: float) -> None:
        """`usual_s`: the distance to most others."""
        off_s = difference_s(self.coordinate, self.announced)
        is_surer = self.coordinate.error < self.announced.error / 2
        if is_surer or off_s > max(ANNOUNCED_OFF_S, ANNOUNCED_OFF_SHARE * usual_s):
            self.announced = self.coordinate

    def _learn_upload(self, peer: PeerId, payload_bytes: int, rtt_s: float) -> None:
        empty_s = self.rtt_s(peer)
        if empty_s is not None:
            self._uploads.append(payload_bytes / max(MIN_UPLOAD_S, rtt_s - empty_s))

    def _may_answer(self, sender: PeerId, now_s: float) -> bool:
        bucket = self._echoes.pop(sender, None)
        if bucket is None:
            bucket = Bucket.full(ECHOES_PER_S, ECHOES_BURST, now_s)
        self._echoes[sender] = bucket
        if len(self._echoes) > MAX_TRACKED:
            del self._echoes[next(iter(self._echoes))]
        return bucket.may_take(now_s) and self._all_echoes.may_take(now_s)


def predicted_way_s(here: Coordinate | None, there: Coordinate | None) -> float:
    """Seconds from one coordinate to another, half a round trip; `UNKNOWN_WAY_S` if one of them
    is not known, or was not measured by its peer."""
    if here is None or there is None or not (here.is_measured and there.is_measured):
        return UNKNOWN_WAY_S
    return here.rtt_s(there) / 2
