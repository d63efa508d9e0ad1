"""An announcement as it came from a peer: decoded within bounds, its signature checked or not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from gennode.errors import RemoteError
from gennode.mesh.directory.netgroup import net_group
from gennode.wire.announcement import Announcement
from gennode.wire.ids import PeerId
from gennode.wire.signing import MAX_SIGNED_BYTES, Signed, verify

DOMAIN = "announcement"
MAX_LIFETIME_S = 60.0  # how long a crashed peer can linger

_decoder = msgspec.msgpack.Decoder(Announcement)


@dataclass(frozen=True, slots=True)
class Fact:
    """An announcement with all that is worked out of it once.

    `group`: the net group of its addresses. `mark`: 64 bits of a hash over whom it is about and
    its sequence, to tell it from others in a sketch.
    """

    signed: Signed
    announcement: Announcement
    group: str
    mark: int

    @property
    def peer(self) -> PeerId:
        """Whom it is about."""
        return self.announcement.peer

    @property
    def sequence(self) -> int:
        """Its number among those of its peer."""
        return self.announcement.sequence

    @property
    def is_serving(self) -> bool:
        """False once a peer has said goodbye; it is held on to so that all hear of it."""
        return not self.announcement.is_goodbye


class Reader:
    """How a directory reads what peers signed."""

    def read(self, signed: Signed) -> Fact:
        """What was signed, its signature not checked yet; RemoteError if out of bounds."""
        announcement = _parse(signed)
        what = f"{announcement.sequence} {announcement.peer}".encode()
        mark = int.from_bytes(hashlib.sha256(what).digest()[:8], "big")
        return Fact(signed, announcement, net_group(announcement.addresses), mark)

    def check(self, signed: Signed) -> None:
        """RemoteError if the signature is wrong."""
        verify(signed.peer, DOMAIN, signed.body, signed.signature)


def _parse(signed: Signed) -> Announcement:
    if len(signed.body) > MAX_SIGNED_BYTES:
        raise RemoteError(f"an announcement of {len(signed.body)} bytes is too large")
    try:
        announcement = _decoder.decode(signed.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteError(f"malformed announcement: {error}") from error
    if announcement.peer != signed.peer:
        raise RemoteError("an announcement is signed by another than whom it is about")
    if announcement.lifetime_s > MAX_LIFETIME_S:
        raise RemoteError(f"an announcement wants to live {announcement.lifetime_s:g} s")
    return announcement
