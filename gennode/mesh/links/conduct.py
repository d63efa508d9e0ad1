"""Who broke the protocol, for how long they are not listened to, and what is said of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from gennode.mesh.links.limits import Bucket
from gennode.wire.fields import as_text
from gennode.wire.ids import PeerId

BAN_S = 1.0  # for a first breach: a flaw of an honest peer costs its sessions no more than that
MAX_BAN_S = 600.0  # each further breach doubles it, up to this
FORGIVEN_S = 600.0  # after a ban, without another breach: then the next counts as a first
MAX_OFFENDERS = 4096  # remembered; keys cost nothing, so whoever is free soonest is forgotten

# A peer is named once per ban, and makers of many keys can't fill the disk.
LINES_PER_S = 0.5
LINES_BURST = 20.0


@dataclass
class _Offender:
    count: int = 0
    until_s: float = 0.0


class Conduct:
    """The breaches of all peers."""

    def __init__(self, now_s: float) -> None:
        self._offenders: dict[PeerId, _Offender] = {}
        self._lines = Bucket.full(LINES_PER_S, LINES_BURST, now_s)
        self._unsaid = 0

    def __len__(self) -> int:
        return len(self._offenders)

    def is_banned(self, peer: PeerId, now_s: float) -> bool:
        """Whether the peer is not to be listened to for now."""
        offender = self._offenders.get(peer)
        return offender is not None and now_s < offender.until_s

    def breached(self, peer: PeerId, address: str, reason: str, now_s: float) -> str:
        """Ban a peer that broke the protocol; returns the line to log, or "" if it is one too many.

        What it still does while it is banned was on its way, and changes nothing.
        """
        if self.is_banned(peer, now_s):
            return ""
        offender = self._offenders.pop(peer, None)
        if offender is None or now_s - offender.until_s > FORGIVEN_S:
            offender = _Offender()
        self._make_room()
        self._offenders[peer] = offender
        offender.count += 1
        ban_s = min(MAX_BAN_S, BAN_S * 2.0 ** min(offender.count - 1, 32))
        offender.until_s = now_s + ban_s
        return self._line(peer, address, reason, offender.count, now_s)

    def _make_room(self) -> None:
        if len(self._offenders) >= MAX_OFFENDERS:
            soonest = min(self._offenders, key=lambda peer: self._offenders[peer].until_s)
            del self._offenders[soonest]

    def _line(self, peer: PeerId, address: str, reason: str, count: int, now_s: float) -> str:
        if not self._lines.may_take(now_s):
            self._unsaid += 1
            return ""
        unsaid, self._unsaid = self._unsaid, 0
        more = f" unsaid={unsaid}" if unsaid else ""
        where = as_text(address) or "unknown"
        said = as_text(reason)
        return f"peer_misbehaved peer={peer} address={where} count={count}{more} why={said}"
