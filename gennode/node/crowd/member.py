"""Who is in a made-up swarm: owners who ask, workers and what they hold, sessions between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gennode.node.crowd.arrivals import Lengths
from gennode.node.crowd.pool import Specimen
from gennode.sharding.predict import sessions_of
from gennode.sharding.route.preferences import reserved_seats
from gennode.wire.announcement import Announcement, Hosting
from gennode.wire.ids import Hop, ModelId, PeerId, Span
from gennode.wire.snapshot import Candidate, Demand

NOTHING = Span(0, 0)
_REMEMBERED_S = 20.0  # longer than any news is old
_LIFETIME_S = 30.0  # of an announcement, as in node/peer.py


class Owner:
    """Who asks. `candidate` has no layers: it is there for its place and its line."""

    __slots__ = ("_changes", "_shunned", "candidate", "peer", "ways_s")

    def __init__(self, peer: PeerId, candidate: Candidate) -> None:
        self.peer = peer
        self.candidate = candidate
        self.ways_s: dict[Owner | Member, float] = {}  # to those that it sent frames to
        self._changes: deque[tuple[float, PeerId, int]] = deque()
        self._shunned: dict[PeerId, float] = {}

    def shun(self, peer: PeerId, until_s: float) -> None:
        """Routes leave a worker out for a while that refused, or did not answer."""
        self._shunned[peer] = until_s

    def shunned(self, now_s: float) -> frozenset[PeerId]:
        """Whom routes leave out now."""
        if self._shunned and min(self._shunned.values()) <= now_s:
            self._shunned = {peer: at_s for peer, at_s in self._shunned.items() if at_s > now_s}
        return frozenset(self._shunned)

    def noted(self, now_s: float, peer: PeerId, change: int) -> None:
        """It has a session more, or less, at a worker."""
        self._changes.append((now_s, peer, change))
        while now_s - self._changes[0][0] > _REMEMBERED_S:
            self._changes.popleft()

    def opened_since(self, at_s: float) -> dict[PeerId, int]:
        """Its sessions at workers now, less those that it had at a moment."""
        opened: dict[PeerId, int] = {}
        for when_s, peer, change in reversed(self._changes):
            if when_s <= at_s:
                break
            opened[peer] = opened.get(peer, 0) + change
        return opened


class Member:
    """A worker. `span` is loaded; `offered`, a part of it, takes new sessions; `target` is where
    it is going, which others count on. `on_disk` needs no fetching. `rate` sums up tokens per
    second times layers over the sessions that compute, `batch` the layers that one pass of all
    of them takes.
    """

    __slots__ = (
        "_announcement", "_told", "alive", "batch", "busy_s", "candidate", "chunk_s",
        "draining", "is_mending", "leaving", "listed", "max_sessions", "move", "offered",
        "on_disk", "rate", "serving_s", "serving_since_s", "sessions", "span", "specimen",
        "target", "ways_s",
    )  # fmt: skip

    def __init__(
        self,
        specimen: Specimen,
        candidate: Candidate,
        chunk_s: float,
        on_disk: Span = NOTHING,
    ) -> None:
        self.specimen = specimen
        self.candidate = candidate
        self.ways_s: dict[Owner | Member, float] = {}  # to those that it sent frames to
        self.chunk_s = chunk_s
        self.on_disk = on_disk
        self.span = self.offered = self.target = NOTHING
        self.alive = True
        self.leaving = False
        self.listed = True  # others see it in the directory
        self.draining = False  # waits for sessions to leave what it no longer offers
        self.is_mending = False  # its move closes a gap
        self.move = 0
        self.sessions: dict[Session, None] = {}
        self.max_sessions = 0
        self.rate = 0.0
        self.batch = 0
        self.busy_s = self.serving_s = 0.0
        self.serving_since_s: float | None = None
        self._told: tuple[Span, int] | None = None
        self._announcement: Announcement | None = None

    @property
    def peer(self) -> PeerId:
        """Its id."""
        return self.candidate.peer

    def prompt_s(self, layers: int, tokens: int) -> float:
        """Seconds of a pass over part of a prompt, at most a chunk, with nobody else there."""
        layer_s = min(self.candidate.cost.pass_s(tokens), self.chunk_s)
        return layers * layer_s + self.candidate.pass_s

    def is_full(self, *, for_new: bool) -> bool:
        """Whether it refuses further sessions, or at least those that have not begun."""
        reserved = reserved_seats(self.max_sessions) if for_new else 0
        return len(self.sessions) >= self.max_sessions - reserved

    def hold(self, span: Span, demand: Demand) -> None:
        """All of `span` is loaded and offered from now on; what was loaded else is gone."""
        self.span = self.offered = self.target = span
        self.max_sessions = sessions_of(self.candidate, span.layers, demand)

    def announcement(self, model: ModelId) -> Announcement:
        """What it says about itself now."""
        told = (self.offered, len(self.sessions))
        if self._announcement is None or told != self._told:
            self._told = told
            self._announcement = self._make_announcement(model)
        return self._announcement

    def _make_announcement(self, model: ModelId) -> Announcement:
        cost, layers = self.candidate.cost, max(1, self.offered.layers)
        hosting = Hosting(
            model=model,
            spans=(self.offered,) if self.offered.layers else (),
            spare_layers=0,
            layer_time_s=cost.pass_s(1) + self.candidate.pass_s / layers,
            load_time_s=self.candidate.move_s,
            max_sessions=self.max_sessions,
            compute_class=self.specimen.kind.name,
            further_time_s=cost.token_s,
        )
        return Announcement(
            peer=self.peer,
            sequence=0,
            instance=0,
            lifetime_s=_LIFETIME_S,
            hosting=(hosting,),
            sessions=len(self.sessions),
            relay=False,
            reach="direct",
            addresses=(),
            machine=self.specimen.machine,
        )


Leg = tuple[Member, int]
"""A worker, and how many layers it computes for a session."""


class Session:
    """A generation. `legs` and `spans` say where each layer is computed; `lost` which of the
    workers no longer do. `turn` grows with each change of plan: events of older turns are void.
    `rate` and `weight`: tokens per second, and tokens in a pass, that its hops count for it.
    """

    __slots__ = (
        "asked_s", "avoid", "beating", "chunk", "chunk_since_s", "done", "ended", "has_failed_over",
        "has_run", "legs", "lengths", "lost", "number", "opened_s", "owner", "rate", "seeking_s",
        "spans", "stalled_s", "step_s", "turn", "weight",
    )  # fmt: skip

    def __init__(self, number: int, owner: Owner, lengths: Lengths, now_s: float) -> None:
        self.number = number
        self.owner = owner
        self.lengths = lengths
        self.asked_s = self.stalled_s = now_s
        self.opened_s: float | None = None
        self.legs: list[Leg] = []
        self.spans: list[Span] = []
        self.lost: dict[Member, None] = {}
        self.avoid: dict[PeerId, float] = {}  # who refused it, and until when it asks elsewhere
        self.seeking_s: float | None = None  # since when there is no route at all
        self.turn = 0
        self.done = 0
        self.beating: Sequence[Leg] = ()  # hops that compute for it now
        self.rate = 0.0
        self.weight = 0
        self.chunk = 0
        self.chunk_since_s = self.step_s = 0.0
        self.has_run = self.has_failed_over = self.ended = False

    def excluded(self, now_s: float) -> frozenset[PeerId]:
        """Whom the next route leaves out."""
        refused = (peer for peer, until_s in self.avoid.items() if until_s > now_s)
        lost = (member.peer for member in self.lost)
        return self.owner.shunned(now_s).union(lost, refused)

    def beat(self, rate: float, weight: int, legs: Sequence[Leg]) -> None:
        """From now on these hops compute so many tokens per second for it, so many in a pass."""
        for member, layers in self.beating:
            member.rate -= self.rate * layers
            member.batch -= self.weight * layers
        for member, layers in legs:
            member.rate += rate * layers
            member.batch += weight * layers
        self.rate, self.weight, self.beating = rate, weight, legs

    def rest(self) -> None:
        """No hop computes for it now."""
        self.beat(0.0, 0, ())

    def enter(self, members: Sequence[Member], now_s: float) -> None:
        """Take a place at each of these workers."""
        for member in members:
            if self not in member.sessions:
                member.sessions[self] = None
                self.owner.noted(now_s, member.peer, 1)

    def quit(self, members: Sequence[Member], now_s: float) -> None:
        """Give up the places at these workers; the session must be at rest."""
        for member in members:
            if member.sessions.pop(self, self) is None:
                self.owner.noted(now_s, member.peer, -1)
            if not member.sessions:  # rounding leaves nothing behind
                member.rate, member.batch = 0.0, 0

    def gaps(self) -> list[tuple[int, int]]:
        """Runs of hops that no longer compute for it, as half-open ranges of `legs`."""
        runs: list[tuple[int, int]] = []
        for index, (member, _) in enumerate(self.legs):
            if member not in self.lost:
                continue
            if runs and runs[-1][1] == index:
                runs[-1] = (runs[-1][0], index + 1)
            else:
                runs.append((index, index + 1))
        return runs


def legs_of(hops: Sequence[Hop], members: Sequence[Member]) -> tuple[list[Leg], list[Span]]:
    """Hops as a session keeps them."""
    legs = [(one, hop.span.layers) for one, hop in zip(members, hops, strict=True)]
    return legs, [hop.span for hop in hops]
