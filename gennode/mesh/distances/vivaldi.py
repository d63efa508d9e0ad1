"""Vivaldi with heights: measured round trips pull a peer's point to where they fit. Pure.

Sources: Dabek, Cox, Kaashoek, Morris, "Vivaldi: A Decentralized Network Coordinate System",
SIGCOMM 2004, figure 3 and section 5.4 (heights), with its ce = cc = 0.25; Ledlie, Gardner,
Seltzer, "Network Coordinates in the Wild", NSDI 2007 (gravity against drift; all recent
neighbours pull, not only the last). Against liars, what one neighbour pulls is bounded by what
most do, as in robust regression (Huber, "Robust Estimation of a Location Parameter", 1964).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from random import Random

from gennode.wire.coordinates import MAX_AXIS_S, Coordinate

ERROR_SHARE = 0.25  # ce: how much of our error one sample replaces at most
MOVE_SHARE = 0.25  # cc: how much of its difference one sample moves us at most
MAX_RTT_S = 10.0  # what takes longer is a peer that slept, and no distance
MIN_HEIGHT_S = 1e-5  # a height grows in proportion: from zero it never would
MIN_ERROR = 0.05  # a real network fits in no plane any better
# The pull to the origin per second of the way there: 0.1 ms a sample at 0.1 s. It bends no
# distance, and keeps all points together from drifting away.
GRAVITY_PER_S = 0.01

ENOUGH = 4  # neighbours that tell what is usual
MIN_LIMIT_S = 0.001
# Who differs by so many medians tells nothing true, once we know roughly where we are. Before
# that it could be our own point that is wrong.
OUTLIER_FACTOR = 5.0
MIN_OUTLIER_S = 0.005
ROUGH_ERROR = 0.25
ROUNDS = 16  # of all neighbours; fewer once a round moves us by less than this
STILL_S = 0.001

Landmark = tuple[Coordinate, float]
"""Where a neighbour says that it is, and the measured seconds to it and back."""


def moved(
    own: Coordinate, other: Coordinate, rtt_s: float, rng: Random, limit_s: float = math.inf
) -> Coordinate:
    """Where `own` is after one round trip of `rtt_s` seconds to a peer at `other`.

    What is measured differs from what is predicted by `limit_s` at most, as far as this counts.
    A peer that claims to know its place better than we know ours weighs as much as we do, and
    no more. A round trip that can't be (0 or less, NaN, over `MAX_RTT_S`) changes nothing.
    `rng` chooses the direction away from a peer at the very same point.
    """
    if not 0.0 < rtt_s <= MAX_RTT_S:
        return own
    height_s, far_height_s = max(own.height_s, MIN_HEIGHT_S), max(other.height_s, MIN_HEIGHT_S)
    plane_s = own.plane_s(other)
    predicted_s = plane_s + height_s + far_height_s
    difference_s = max(-limit_s, min(limit_s, rtt_s - predicted_s))
    own_error = max(own.error, MIN_ERROR)
    weight = own_error / (own_error + max(other.error, own_error))
    share = ERROR_SHARE * weight
    error = share * min(1.0, abs(difference_s) / rtt_s) + (1 - share) * own_error
    if plane_s > 0.0:
        dx, dy = (own.x_s - other.x_s) / predicted_s, (own.y_s - other.y_s) / predicted_s
    else:
        dx, dy = _direction(rng)
    force_s = MOVE_SHARE * weight * difference_s
    height_s += force_s * (height_s + far_height_s) / predicted_s
    x_s, y_s = own.x_s + force_s * dx, own.y_s + force_s * dy
    stay = 1 - min(1.0, GRAVITY_PER_S * math.sqrt(x_s * x_s + y_s * y_s))
    return Coordinate(
        _within(-MAX_AXIS_S, x_s * stay),
        _within(-MAX_AXIS_S, y_s * stay),
        _within(MIN_HEIGHT_S, height_s),
        max(MIN_ERROR, min(1.0, error)),
    )


def settled(own: Coordinate, landmarks: Sequence[Landmark], rng: Random) -> Coordinate:
    """Where `own` comes to rest among its neighbours, each of which pulls as often as any other.

    None pulls harder than the median of all. Two liars among sixteen moved an honest point by
    less than a tenth of its usual distance with each of the claims that the tests make.
    """
    for _ in range(ROUNDS):
        before = own
        gaps_s = [abs(rtt_s - own.rtt_s(other)) for other, rtt_s in landmarks]
        limit_s, outlier_s = math.inf, math.inf
        if len(gaps_s) >= ENOUGH:
            usual_s = statistics.median(gaps_s)
            limit_s = max(MIN_LIMIT_S, usual_s)
            if own.error < ROUGH_ERROR:
                outlier_s = max(MIN_OUTLIER_S, OUTLIER_FACTOR * usual_s)
        pulling = [one for one, gap_s in zip(landmarks, gaps_s, strict=True) if gap_s <= outlier_s]
        rng.shuffle(pulling)  # the last one pulls last: always the same would have its way
        for other, rtt_s in pulling:
            own = moved(own, other, rtt_s, rng, limit_s)
        if difference_s(before, own) < STILL_S:
            break
    return own


def difference_s(one: Coordinate, other: Coordinate) -> float:
    """By how much distances to the two can differ: in the plane, and by their heights."""
    return one.plane_s(other) + abs(one.height_s - other.height_s)


def _direction(rng: Random) -> tuple[float, float]:
    """A unit vector, each direction as likely as any other."""
    while True:
        x, y = rng.uniform(-1.0, 1.0), rng.uniform(-1.0, 1.0)
        length = math.sqrt(x * x + y * y)
        if 0.01 < length <= 1.0:
            return x / length, y / length


def _within(least_s: float, value_s: float) -> float:
    if value_s < least_s:  # comparing is quicker than min and max, and this is asked often
        return least_s
    return value_s if value_s < MAX_AXIS_S else MAX_AXIS_S
