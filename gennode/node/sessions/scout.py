"""What a session asks of the directory: hops for some layers, and what is known of them."""

from __future__ import annotations

from typing import Protocol

from gennode.wire.ids import Hop, PeerId, Span


class Scout(Protocol):
    """Looks workers up for one session, as announcements and own experience tell of them."""

    def find_hops(
        self, span: Span, entry: PeerId, avoid: frozenset[PeerId]
    ) -> tuple[Hop, ...] | str:
        """The best hops over some layers from `entry` on, or in words why there are none."""

    def find_standin(self, hop: Hop, entry: PeerId, avoid: frozenset[PeerId]) -> tuple[Hop, ...]:
        """Who could take a hop's place at once: its layers are loaded there. Else nobody."""

    def is_present(self, hop: Hop) -> bool:
        """Whether a worker can be reached, as far as we know, and has room and these layers."""

    def takes_cache(self, donor: Hop, taker: Hop) -> bool:
        """Whether a worker computes the same bits, so that it may go on from another's cache."""

    def is_cache_quicker(self, donor: Hop, taker: Hop, positions: int, cache_bytes: int) -> bool:
        """Whether so large a cache is sent sooner than it is computed again."""
