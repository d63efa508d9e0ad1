"""What an owner weighs when it chooses a route, beside measured times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from gennode.wire.ids import PeerId

# Loads at which the mode changes. Between them it stays what it was, so that an owner near one
# of them does not turn with each announcement.
CROWDED_LOAD, ROOMY_LOAD = 0.7, 0.5

RESERVED_SHARE = 8  # one seat of so many is for sessions that lost a hop elsewhere
MIN_SHARED_SEATS = 4  # with fewer none is put aside


def reserved_seats(max_sessions: int) -> int:
    """Of all seats of a worker, those that no new session gets; owners and workers agree on it."""
    if max_sessions < MIN_SHARED_SEATS:
        return 0
    return max(1, max_sessions // RESERVED_SHARE)


class Mode(Enum):
    """What makes a route the best one."""

    QUICKEST = "quickest"
    """The least time of a step, other costs added in seconds."""
    COST_FIRST = "cost-first"
    """Within the step limit the lowest price, and few hops."""
    CAPACITY_FIRST = "capacity-first"
    """Where most room is left: full workers count as slower than they are."""


def choose_mode(previous: Mode, load: float) -> Mode:
    """Cost-first while there is room, capacity-first when there is none, with hysteresis.

    `load`: how full the workers of a route's shortlist are, 0 to 1 (`RouteBoard.load`).
    """
    if load >= CROWDED_LOAD:
        return Mode.CAPACITY_FIRST
    if load <= ROOMY_LOAD:
        return Mode.COST_FIRST
    return Mode.COST_FIRST if previous is Mode.QUICKEST else previous


@dataclass(frozen=True, slots=True)
class Preferences:
    """How an owner weighs workers; the defaults weigh nothing but time.

    `seconds_per_credit`: how much later a token may come for one credit less. `standing`: 0 to
    1, the chance that a worker sees a session through; who is missing has 1. `failures`: recent
    ones of a worker, faded by the caller; n of them cut its chance to 1 / (1 + n). A failover
    takes `failover_s`. `opened`: sessions that the caller opened at a worker since its
    announcement, less those it closed. `step_limit_s`: how long a token may take in cost-first.
    `is_new`: the route is for a session that has not begun, so reserved seats count as taken.
    """

    mode: Mode = Mode.QUICKEST
    seconds_per_credit: float = 0.0
    standing: Mapping[PeerId, float] = field(default_factory=dict)
    failures: Mapping[PeerId, float] = field(default_factory=dict)
    failover_s: float = 1.0
    opened: Mapping[PeerId, int] = field(default_factory=dict)
    step_limit_s: float = 0.2
    is_new: bool = False

    def failure_chance(self, peer: PeerId) -> float:
        """The chance that a worker fails during a session, as far as the caller knows."""
        standing = min(1.0, max(0.0, self.standing.get(peer, 1.0)))
        return 1 - standing / (1 + max(0.0, self.failures.get(peer, 0.0)))
