"""Which versions there are: signed releases, spread as the directory is. Sans-IO.

Of each line (a publisher and a name) only the newest release is kept. Two different ones of one
number show that the publisher's key signs against itself: both are kept, to show others, and
neither is taken, until a higher number settles it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from random import Random

from gennode.errors import LocalError
from gennode.wire.ids import PeerId
from gennode.wire.messages import MAX_ANNOUNCEMENTS, MAX_RELEASES, Message, ReleaseDigest, Releases
from gennode.wire.release import Line, Release, read_release
from gennode.wire.signing import Signed

EXCHANGE_INTERVAL_S = 5.0
FAN_OUT = 3  # whom news is passed on to at once; the exchange reaches the rest
MAX_FOLLOWED = 8
_FORKED = b"contrary"  # the mark of a fork: a release's own would be a hash


class _Newest:
    """The newest release of a line, and the one that contradicts it, if there is one."""

    def __init__(self, release: Release, signed: Signed) -> None:
        self.release = release
        self.signed = [signed]

    @property
    def is_forked(self) -> bool:
        return len(self.signed) > 1

    @property
    def mark(self) -> bytes:
        """Equal for two peers that know the same; any two that contradict each other will do."""
        return _FORKED if self.is_forked else hashlib.sha256(self.signed[0].body).digest()[:8]


class ReleaseBoard:
    """Every line's newest release, as far as this peer knows. `now_s` is a monotonic clock.

    A full board takes no more lines of strangers: evicting would let a flood of fresh keys push
    out good ones. A line that is followed always has its place, so among its followers it
    spreads whatever others fill the board with.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._lines: dict[Line, _Newest] = {}
        self._followed: set[Line] = set()
        self._forks: list[Release] = []
        self._news: list[Signed] = []
        self._next_exchange_s = -math.inf

    def follow(self, line: Line) -> None:
        """Always have a place for this line; LocalError for too many."""
        self._followed.add(line)
        if len(self._followed) > MAX_FOLLOWED:
            raise LocalError(f"a peer follows {MAX_FOLLOWED} lines at most")

    def newest(self, line: Line) -> Release | None:
        """The newest release of a line; None if none is known, or its publisher contradicts
        itself."""
        known = self._lines.get(line)
        return known.release if known and not known.is_forked else None

    def number(self, line: Line) -> int:
        """The highest number that is known of a line, forked or not; 0 if none."""
        known = self._lines.get(line)
        return known.release.number if known else 0

    def take_forks(self) -> list[Release]:
        """One release of each fork that was noticed since the last call."""
        forks, self._forks = self._forks, []
        return forks

    def publish(self, signed: Signed) -> None:
        """Spread a release of our own."""
        self.follow(read_release(signed).line)
        self._take(signed)

    def receive(self, sender: PeerId, message: Message) -> list[tuple[PeerId, Message]]:
        """Take a ReleaseDigest or Releases; what to send. RemoteError if one is forged."""
        if isinstance(message, Releases):
            for signed in message.items:
                self._take(signed)
            return []
        if isinstance(message, ReleaseDigest):
            return [(sender, answer) for answer in self._answers(message)]
        raise LocalError(f"a {type(message).__name__} is not about releases")

    def tick(self, now_s: float, partners: Sequence[PeerId]) -> list[tuple[PeerId, Message]]:
        """Pass news on, and when it is time, compare with one partner by chance."""
        if not partners:
            return []
        sent: list[tuple[PeerId, Message]] = []
        if self._news:
            some = self._rng.sample(partners, min(FAN_OUT, len(partners)))
            sent = [(peer, message) for peer in some for message in _packed(self._news)]
            self._news = []
        if now_s >= self._next_exchange_s and (self._lines or self._followed):
            self._next_exchange_s = now_s + EXCHANGE_INTERVAL_S
            sent.append((self._rng.choice(partners), self._digest(reply=True)))
        return sent

    def _digest(self, *, reply: bool) -> ReleaseDigest:
        entries = ((*line, known.release.number, known.mark) for line, known in self._lines.items())
        return ReleaseDigest(tuple(entries), reply)

    def _answers(self, digest: ReleaseDigest) -> list[Message]:
        """What the sender lacks, and our digest if we lack something."""
        theirs = {
            Line(publisher, name): (number, mark)
            for publisher, name, number, mark in digest.entries
        }
        lacking: list[Signed] = []
        for line, known in self._lines.items():
            number, mark = theirs.get(line, (0, b""))
            ours = known.release.number
            if number < ours or (number == ours and mark != known.mark):
                lacking += known.signed
        answers = _packed(lacking)
        wanted = any(
            self._has_place(line) and (number > self.number(line) or mark != self._lines[line].mark)
            for line, (number, mark) in theirs.items()
            if number >= self.number(line)
        )
        if digest.reply and wanted:
            answers.append(self._digest(reply=False))
        return answers

    def _has_place(self, line: Line) -> bool:
        """Those followed count as if they were all here: their places are kept free."""
        if line in self._lines or line in self._followed:
            return True
        return len(self._lines.keys() | self._followed) < MAX_RELEASES

    def _take(self, signed: Signed) -> None:
        """The signature is checked only of what would be news."""
        known_bodies = {one.body for known in self._lines.values() for one in known.signed}
        if signed.body in known_bodies:
            return
        release = read_release(signed)
        known = self._lines.get(release.line)
        if known is None or release.number > known.release.number:
            if self._has_place(release.line):
                self._lines[release.line] = _Newest(release, signed)
                self._news.append(signed)
        elif release.number == known.release.number and not known.is_forked:
            known.signed.append(signed)
            self._forks.append(release)
            self._news += known.signed


def _packed(items: Iterable[Signed]) -> list[Message]:
    each = list(items)
    starts = range(0, len(each), MAX_ANNOUNCEMENTS)
    return [Releases(tuple(each[start : start + MAX_ANNOUNCEMENTS])) for start in starts]
