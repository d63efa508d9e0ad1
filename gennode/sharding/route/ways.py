"""What links take, asked for once and remembered."""

from __future__ import annotations

from collections.abc import Callable

from gennode.wire.ids import PeerId

LinkTime = Callable[[PeerId, PeerId], float]
"""Seconds from one peer to another for one token's frame: ≥ 0, infinite if there is no way."""

_MAX_LINKS = 1 << 16  # that are remembered: some 10 MB


class Links(dict[PeerId, float]):
    """Seconds from other peers to one of them; asked for when first needed."""

    __slots__ = ("_target", "_ways")

    def __init__(self, target: PeerId, ways: Ways) -> None:
        super().__init__()
        self._target, self._ways = target, ways

    def __missing__(self, source: PeerId) -> float:
        known_s = self[source] = self._ways.ask(source, self._target)
        return known_s


class Ways:
    """Links between peers, for as long as what they take does not change.

    `is_metric`: the caller's word that no way is shorter by way of a third peer, as between
    points of a plane. Then a route is searched where spans begin and end, not at each layer.
    """

    def __init__(
        self, link_time_s: LinkTime, *, is_metric: bool = False, max_links: int = _MAX_LINKS
    ) -> None:
        self.is_metric = is_metric
        self._link_time_s, self._max_links = link_time_s, max_links
        self._into: dict[PeerId, Links] = {}
        self._asked = 0

    def into(self, target: PeerId) -> Links:
        """The links of all others to one peer, 0 from itself."""
        links = self._into.get(target)
        if links is None:
            links = self._into[target] = Links(target, self)
        return links

    def ask(self, source: PeerId, target: PeerId) -> float:
        """Seconds of a link that is not known yet. Past the limit all others are forgotten."""
        self._asked += 1
        if self._asked > self._max_links:
            self._asked = 0
            for links in self._into.values():
                links.clear()
        return 0.0 if source == target else self._link_time_s(source, target)
