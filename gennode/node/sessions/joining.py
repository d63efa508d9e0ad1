"""A path being joined: first the hops that are new to the session, then those that go on."""

from __future__ import annotations

from gennode.errors import RemoteError
from gennode.node.actions import Action
from gennode.node.sessions.course import Course, Replay
from gennode.node.sessions.steps import StepFlow
from gennode.wire.ids import Hop, PeerId
from gennode.wire.messages import Fed


class Joining:
    """Who of a path still has to accept, and what the new hops lack.

    The survivors hear second: the lowest one above the new hops that still has its frames sends
    them again, and those below it pass on what they compute, down to the last new one. New hops
    remain new until a step is answered that has gone through them: what they say to hold may be
    of a time when the session was another.
    """

    def __init__(self, course: Course) -> None:
        self._course = course
        self.new = set(range(len(course.path)))
        """Places of hops that lack the session's context."""
        self._waiting: set[int] = set()
        self._held: dict[Hop, int] = {}  # positions that new hops have all the same
        self._unable: set[Hop] = set()  # hops that no longer have the frames for a replay
        self._replay = Replay()
        self._rebuild_until = -1
        self._rebuilt = 0  # positions, as the last new hop says
        self._answered = 0  # steps, when the replay began, or ended

    @property
    def awaited(self) -> set[int]:
        """Places whose accept has not come."""
        return self._waiting

    @property
    def is_done(self) -> bool:
        """Whether all that were asked have accepted."""
        return not self._waiting

    # -- what is known of the new hops --------------------------------------------------------

    def hold(self, held: dict[Hop, int]) -> None:
        """These hops were fed so many positions."""
        self._held |= held

    @property
    def is_rebuilding(self) -> bool:
        """Whether some hops are still new, or may be."""
        if self._course.steps.answered > self._answered:
            self._answered = self._course.steps.answered
            self.new.clear()
            self._held.clear()
        return bool(self.new)

    def lose(self, peers: set[PeerId]) -> None:
        """Those who are to replace these peers will be new, beside those who still are."""
        path = self._course.path
        if self.is_rebuilding:  # what has been replayed by now need not be once more
            for at in self.new:
                self._held[path[at]] = max(self._held.get(path[at], 0), self._rebuilt)
        self.new |= {at for at, hop in enumerate(path) if hop.peer in peers}

    def take(self, path: tuple[Hop, ...]) -> None:
        """Go along another path, whose hops are new but for those that went along already."""
        kept = {hop for at, hop in enumerate(self._course.path) if at not in self.new}
        self._course.path = path
        self.new = {at for at, hop in enumerate(path) if hop not in kept}

    # -- asking -------------------------------------------------------------------------------

    def begin(self, *, carries_on: bool) -> None:
        """An attempt begins. `carries_on`: the session has run before."""
        self._rebuild_until = max(self.new, default=-1) if carries_on else -1
        self._replay, self._rebuilt = Replay(), 0

    def open_new(self) -> list[Action]:
        """Ask the new hops."""
        return self._open(self.new)

    def open_survivors(self) -> list[Action]:
        """Tell the others of the new path."""
        self._replay = self._plan_replay()
        return self._open(set(range(len(self._course.path))) - self.new)

    def _open(self, places: set[int]) -> list[Action]:
        course, self._waiting = self._course, set(places)
        until, replay = self._rebuild_until, self._replay
        return [
            course.open(course.path, at, course.attempt, rebuild_until=until, replay=replay)
            for at in sorted(places)
        ]

    def _plan_replay(self) -> Replay:
        if not self.new:
            return Replay()
        path = self._course.path
        above = [at for at in range(min(self.new)) if path[at] not in self._unable]
        start = min(self._held.get(path[at], 0) for at in self.new)
        return Replay(max(above, default=-1), start, self._course.steps.positions)

    # -- answers ------------------------------------------------------------------------------

    def accepted(self, index: int, positions: int) -> bool:
        """A hop is ready. False if it has lost what it had, so that it counts as new."""
        self._waiting.discard(index)
        hop = self._course.path[index]
        if index in self.new:
            self._held[hop] = min(self._held.get(hop, 0), positions)
        elif positions < self._course.steps.positions:
            self.new.add(index)
            return False
        return True

    def excuses(self, index: int) -> bool:
        """Whether a refusal may mean no more than that frames for a replay are gone. The next
        plan then leaves this hop out as the source."""
        hop = self._course.path[index]
        if not self._replay.is_needed or index != self._replay.source or hop in self._unable:
            return False
        self._unable.add(hop)
        return True

    def fed(self, message: Fed) -> bool:
        """The last new hop has taken a part of a replay in: whether that is news."""
        if message.index != self._rebuild_until or message.positions > self._course.steps.reach:
            raise RemoteError("a hop claims what it was not fed")
        is_news = message.positions > self._rebuilt
        self._rebuilt = max(self._rebuilt, message.positions)
        return is_news

    def finish(self, flow: StepFlow) -> tuple[int, list[Action]]:
        """All have accepted: the rows of the largest frame that is replayed, and our own steps
        if it is for us to replay."""
        replay, steps = self._replay, self._course.steps
        rebuilding = steps.rebuilding(replay.start) if replay.is_needed else []
        self._replay, self._answered = Replay(), steps.answered
        self._unable.clear()
        if not replay.is_needed:
            self.new.clear()
            self._held.clear()
        sends: list[Action] = []
        if replay.source < 0:
            for step in rebuilding:
                sends += flow.send(step, rebuild=True)
        return max((step.rows for step in rebuilding), default=0), sends
