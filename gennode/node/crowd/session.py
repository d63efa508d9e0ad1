"""One session of a made-up swarm: who asked, where it runs, how far it is."""

from __future__ import annotations

from collections.abc import Sequence

from gennode.node.crowd.arrivals import Lengths
from gennode.node.crowd.member import Member, Owner
from gennode.node.crowd.physics import Leg
from gennode.wire.ids import Hop, PeerId, Span


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
