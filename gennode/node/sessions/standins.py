"""For each hop of a path somebody who could take its place at once, chosen beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gennode.node.actions import Action, Send
from gennode.node.sessions.course import Course
from gennode.node.sessions.scout import Scout
from gennode.wire.ids import Hop, PeerId
from gennode.wire.messages import MAX_ROUTE_HOPS, Acquaint, Ping

REFRESH_S = 10.0  # a stand-in that left shows in the directory not much sooner
SPURN_S = 30.0  # who failed to stand in is not asked again before


@dataclass(frozen=True)
class StandIn:
    """Who takes a hop's place, more than one if nobody has all its layers, and the hop above
    that would send them its frames."""

    hops: tuple[Hop, ...]
    above: PeerId


class StandIns:
    """The stand-ins of one session. Looks for one at a time: a search takes milliseconds."""

    def __init__(self, course: Course, scout: Scout) -> None:
        self._course = course
        self._scout = scout
        self._chosen: dict[Hop, StandIn] = {}
        self._spurned: dict[PeerId, float] = {}  # since when
        self._todo = list(course.path)
        self._next_s = float("-inf")

    def of(self, hop: Hop) -> tuple[Hop, ...]:
        """Who was chosen for a hop; nobody yet if this is empty."""
        chosen = self._chosen.get(hop)
        return chosen.hops if chosen else ()

    def usable(self, avoid: Iterable[PeerId]) -> dict[Hop, tuple[Hop, ...]]:
        """Those that are still there and need not be avoided."""
        avoided = frozenset(avoid)
        return {
            hop: chosen.hops
            for hop, chosen in self._chosen.items()
            if all(one.peer not in avoided and self._scout.is_present(one) for one in chosen.hops)
        }

    def follow(self) -> None:
        """The path has changed: keep what still stands in for a hop of it."""
        path, peers = self._course.path, self._course.peers
        self._chosen = {
            hop: chosen
            for hop, chosen in self._chosen.items()
            if hop in path and all(one.peer not in peers for one in chosen.hops)
        }
        self._todo = list(path)

    def spurn(self, peer: PeerId, now_s: float) -> None:
        """A stand-in can't be reached, or refused: choose another."""
        of_peer = {
            hop for hop, c in self._chosen.items() if any(one.peer == peer for one in c.hops)
        }
        if of_peer:
            self._spurned[peer] = now_s
            self._todo += [hop for hop in of_peer if hop not in self._todo]
        for hop in of_peer:
            del self._chosen[hop]

    def tick(self, avoid: Iterable[PeerId], now_s: float) -> list[Action]:
        """See to one hop's stand-in, if it is time to: ping it, so that there is a link, and
        acquaint the hop above with it."""
        if not self._todo:
            if now_s < self._next_s:
                return []
            self._todo = list(self._course.path)
        hop = self._todo.pop()
        if not self._todo:
            self._next_s = now_s + REFRESH_S
        before, hops = self._chosen.get(hop), self.choose(hop, avoid, now_s)
        session, path = self._course.terms.session, self._course.path
        ping = Ping(session, self._course.attempt)
        actions: list[Action] = [Send(one.peer, ping) for one in hops]
        index = path.index(hop)
        if hops and index and self._chosen[hop] != before:
            above = path[index - 1]
            acquaint = Acquaint(session, above.span.start, hops[0].peer)
            actions.append(Send(above.peer, acquaint))
        return actions

    def choose(self, hop: Hop, avoid: Iterable[PeerId], now_s: float) -> tuple[Hop, ...]:
        """Who stands in for a hop of the path: as before if they are still there, or others."""
        path = self._course.path
        index = path.index(hop)
        above = path[index - 1].peer if index else self._course.terms.owner
        hops = self.usable(avoid).get(hop) or self._find(hop, above, avoid, now_s)
        if hops and len(path) - 1 + len(hops) <= MAX_ROUTE_HOPS:
            self._chosen[hop] = StandIn(hops, above)
        else:
            self._chosen.pop(hop, None)
        return self.of(hop)

    def _find(
        self, hop: Hop, above: PeerId, avoid: Iterable[PeerId], now_s: float
    ) -> tuple[Hop, ...]:
        """Somebody who stands in for no other hop, if there is such a one."""
        self._spurned = {p: at_s for p, at_s in self._spurned.items() if now_s - at_s < SPURN_S}
        avoided = self._course.peers.union(avoid, self._spurned)
        taken = {one.peer for held, c in self._chosen.items() if held != hop for one in c.hops}
        found = self._scout.find_standin(hop, above, avoided | taken)
        if not found and taken - avoided:
            found = self._scout.find_standin(hop, above, avoided)
        return found
