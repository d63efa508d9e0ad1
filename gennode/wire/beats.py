"""Proofs of life: a chain of hashes that is revealed link by link, from its end backwards.

A peer signs the end of the chain once, in its announcement; each link that it shows later proves
that it still lives, for 16 bytes and one hash (L. Lamport, CACM 24(11), 1981). A link also says
whose it is: hashed, it gives the link before, which the reader has.
"""

from __future__ import annotations

import hashlib

LINK_BYTES = 16  # 2^128 tries to find a link: only who made the chain has one to show
MAX_BEATS = 256  # a reader who missed all of them hashes as long as it checks one signature

_PURPOSE = b"gennode/1/beat\0"


def link_before(link: bytes) -> bytes:
    """The link (16 bytes) that was shown before `link`; after beat 1, the end of the chain."""
    return hashlib.sha256(_PURPOSE + link).digest()[:LINK_BYTES]


def chain(secret: bytes) -> tuple[bytes, ...]:
    """MAX_BEATS + 1 links: the end to be signed, then one link per beat."""
    links = [link_before(secret)]
    for _ in range(MAX_BEATS):
        links.append(link_before(links[-1]))
    return tuple(reversed(links))


def proves(end: bytes, beat: int, link: bytes) -> bool:
    """Whether `link` is the one of this beat in the chain that ends in `end`."""
    for _ in range(beat):
        link = link_before(link)
    return link == end
