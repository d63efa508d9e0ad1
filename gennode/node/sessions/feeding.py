"""Stand-ins that are given what they lack while the session goes on above and below them."""

from __future__ import annotations

from gennode.errors import RemoteError
from gennode.node.actions import Action, Send
from gennode.node.sessions.course import Course, Replay
from gennode.node.sessions.steps import StepFlow
from gennode.wire.ids import Hop, PeerId
from gennode.wire.messages import MAX_POSITIONS, Feed


class Feeding:
    """Those who are to take one hop's place, opened under an attempt of their own.

    They get the hop's own cache (`by_cache`), or the frames that the hop above has sent it,
    which for the first hop are the owner's own steps.
    """

    def __init__(
        self, course: Course, hop: Hop, takers: tuple[Hop, ...], now_s: float, *, by_cache: bool
    ) -> None:
        self.hop = hop
        self.takers = takers
        self.by_cache = by_cache
        self.since_s = now_s
        """When it began, or was last asked for more."""
        self.moved_s = now_s
        """When it last came nearer to its end."""
        self.attempt = course.next_attempt()
        self.fed = 0
        """Positions that the takers hold, as the last of them says."""
        self._course = course
        self._base = course.path
        self._index = course.path.index(hop)
        self._cap = MAX_POSITIONS  # what they say of positions beyond may be out of date
        self._goal: int | None = None  # what was known when they were fed; None: not yet
        self._waiting = set(self._places)
        self.flow: StepFlow | None = None
        """The owner's way to them, if they are to be the first hop."""
        if self._index == 0:
            self.flow = course.flow(takers[0].peer, self.attempt)

    @property
    def _places(self) -> range:
        return range(self._index, self._index + len(self.takers))

    @property
    def _source(self) -> Hop:
        """Who feeds them, unless it is the owner."""
        return self.hop if self.by_cache else self._base[self._index - 1]

    def concerns(self, peer: PeerId) -> bool:
        """Whether a peer feeds them, or is one of them."""
        is_owners = self._index == 0 and not self.by_cache
        feeders = () if is_owners else (self._source,)
        return any(hop.peer == peer for hop in (*feeders, *self.takers))

    @property
    def is_open(self) -> bool:
        """Whether all takers have accepted."""
        return not self._waiting

    @property
    def is_current(self) -> bool:
        """Whether the path is still the one that the takers were told of."""
        return self._base == self._course.path

    @property
    def is_fed(self) -> bool:
        """Whether they hold all that was known when they were fed: what lacks is short."""
        return self._goal is not None and self.fed >= self._goal

    @property
    def path(self) -> tuple[Hop, ...]:
        """The session's path with the takers in the hop's place."""
        now = self._course.path
        index = now.index(self.hop)
        return (*now[:index], *self.takers, *now[index + 1 :])

    def peer_at(self, index: int) -> PeerId | None:
        """Who has this place on the path that the takers know, if it is one of them."""
        return self.takers[index - self._index].peer if index in self._places else None

    def open(self) -> list[Action]:
        """Ask the takers to take part."""
        donor = self.hop.peer if self.by_cache else None
        path, last = self.path, self._places[-1]
        return [
            self._course.open(
                path, index, self.attempt, rebuild_until=last, replay=Replay(), donor=donor
            )
            for index in self._places
        ]

    def accepted(self, index: int, now_s: float) -> list[Action]:
        """A taker is ready; once all are, feed them."""
        if index not in self._waiting:
            return []
        self._waiting.remove(index)
        return [] if self._waiting else self.feed(now_s)

    def feed(self, now_s: float) -> list[Action]:
        """Have all that is known by now sent to them, from what they hold on."""
        steps = self._course.steps
        self.since_s = self.moved_s = now_s
        self._goal = steps.positions
        if self.flow is not None and not self.by_cache:
            sends: list[Action] = []
            for step in steps.rebuilding(self.fed):
                sends += self.flow.send(step, rebuild=True)
            return sends
        message = Feed(
            session=self._course.terms.session,
            layer=self._source.span.start,
            peer=self.takers[0].peer,
            attempt=self.attempt,
            from_position=self.fed,
            cache=self.by_cache,
        )
        return [Send(self._source.peer, message)]

    def took(self, index: int, positions: int, now_s: float) -> None:
        """The last taker holds so many positions; RemoteError if that can't be."""
        if index != self._places[-1] or positions > self._course.steps.reach:
            raise RemoteError("a stand-in claims what it was not fed")
        # beyond the goal may be drafts that the owner takes back before its takers hear of it
        held = min(positions, self._cap, self._goal or 0)
        if self.fed < held:
            self.fed, self.moved_s = held, now_s

    def lower(self, position: int) -> None:
        """What was known from a position on is no longer true."""
        self._cap = min(self._cap, position)
        self.fed = min(self.fed, position)
        if self._goal is not None:
            self._goal = min(self._goal, position)
