"""What sessions ask of the directory, answered by announcements, links and own experience."""

from __future__ import annotations

from collections.abc import Callable

from gennode.mesh.directory.absence import Absence
from gennode.node.sessions.choice import RouteChoice
from gennode.sharding.route.route import Gap, Route
from gennode.wire.announcement import Announcement, Hosting
from gennode.wire.ids import Hop, ModelId, PeerId, Span

USUAL_UPLOAD_BYTES_PER_S = 10e6  # of a worker that has not measured its line


class Routes:
    """The best routes of the moment over who seems to be there."""

    def __init__(self, choice: RouteChoice, absence: Absence) -> None:
        self.choice = choice
        self.now_s = 0.0
        """The time at which sessions ask. Set as it passes."""
        self._absence = absence

    def absent(self) -> frozenset[PeerId]:
        """Who is gone, as far as we could see."""
        return self._absence.absent(self.now_s)

    def find(
        self,
        model: ModelId,
        span: Span,
        entry: PeerId,
        avoid: frozenset[PeerId],
        now_s: float,
        *,
        is_new: bool,
        classes: frozenset[str] = frozenset(),
    ) -> Route | Gap:
        """The best chain over `span` of workers that have its layers loaded.

        Only where nobody has them are workers asked to load more: who hosts what is the
        plan's to decide, not the route's. And only then are those tried who seem to be gone.
        `classes`: the compute classes to prefer, all the same to us if there are none.
        """
        absent = self._absence.absent(now_s)
        others = self.choice.others(model, classes, now_s) if classes else frozenset()
        for avoided in (avoid | absent, avoid) if absent - avoid else (avoid,):
            for allow_cold in (False, True):
                for unlike in (others, frozenset()) if others else (others,):
                    found = self.choice.route(
                        model,
                        span,
                        entry,
                        avoided | unlike,
                        now_s,
                        allow_cold=allow_cold,
                        is_new=is_new,
                    )
                    if isinstance(found, Route):
                        return found
        return found


class RouteScout:
    """Looks workers up for one session; satisfies `Scout`.

    It remembers in which class each layer was computed: a worker of another class may round
    otherwise, so that sampled tokens would no longer be those of a session without faults.
    """

    def __init__(self, routes: Routes, model: ModelId, has_begun: Callable[[], bool]) -> None:
        """`has_begun`: whether the session has."""
        self._routes = routes
        self._model = model
        self._has_begun = has_begun
        self._classes: dict[int, str] = {}  # by layer

    def find_hops(
        self, span: Span, entry: PeerId, avoid: frozenset[PeerId]
    ) -> tuple[Hop, ...] | str:
        """The best hops, of the classes that the layers were computed in if there are such."""
        begun = self._has_begun()
        classes = self._classes_of(span) if begun else frozenset[str]()
        found = self._routes.find(
            self._model, span, entry, avoid, self._routes.now_s, is_new=not begun, classes=classes
        )
        return found.reason if isinstance(found, Gap) else found.hops

    def find_standin(self, hop: Hop, entry: PeerId, avoid: frozenset[PeerId]) -> tuple[Hop, ...]:
        """Who has the hop's layers loaded, of its class if there are such."""
        self._learn(hop)
        choice, now_s = self._routes.choice, self._routes.now_s
        gone = avoid | self._routes.absent()
        others = choice.others(self._model, self._classes_of(hop.span), now_s)
        for avoided in (gone | others, gone):
            found = choice.route(
                self._model, hop.span, entry, avoided, now_s, allow_cold=False, is_new=False
            )
            if isinstance(found, Route):
                return found.hops
        return ()

    def is_present(self, hop: Hop) -> bool:
        """Whether a worker announces the hop's layers and room, and was not seen to be gone."""
        announced = self._announced(hop.peer)
        hosting = announced.hosting_of(self._model) if announced else None
        if announced is None or hosting is None or hop.peer in self._routes.absent():
            return False
        has_room = announced.sessions < hosting.max_sessions
        return has_room and any(span.covers(hop.span) for span in hosting.spans)

    def takes_cache(self, donor: Hop, taker: Hop) -> bool:
        """Whether both announce one compute class."""
        own, other = self._hosting(donor.peer), self._hosting(taker.peer)
        if own is None or other is None:
            return False
        return own.compute_class == other.compute_class

    def is_cache_quicker(self, donor: Hop, taker: Hop, positions: int, cache_bytes: int) -> bool:
        """Whether the donor's line is quicker than the taker's computing it all again."""
        giving, hosting = self._announced(donor.peer), self._hosting(taker.peer)
        if hosting is None or not self.takes_cache(donor, taker):
            return False
        line = giving.machine.upload_bytes_per_s if giving and giving.machine else 0.0
        row_s = hosting.further_time_s
        row_s = hosting.layer_time_s if row_s is None else row_s
        send_s = cache_bytes / (line or USUAL_UPLOAD_BYTES_PER_S)
        return send_s < positions * taker.span.layers * row_s

    def _learn(self, hop: Hop) -> None:
        """Remember in which class a hop's layers are computed."""
        hosting = self._hosting(hop.peer)
        if hosting is not None:
            layers = range(hop.span.start, hop.span.end)
            self._classes.update(dict.fromkeys(layers, hosting.compute_class))

    def _classes_of(self, span: Span) -> frozenset[str]:
        layers = range(span.start, span.end)
        return frozenset(self._classes[layer] for layer in layers if layer in self._classes)

    def _announced(self, peer: PeerId) -> Announcement | None:
        return self._routes.choice.announced(peer, self._routes.now_s)

    def _hosting(self, peer: PeerId) -> Hosting | None:
        announced = self._announced(peer)
        return announced.hosting_of(self._model) if announced else None
