"""The formulas of `predict` for many pipelines at once.

Arrays are [stages, pipelines]; places without a machine hold no layers and cost nothing. Only
elementwise operations are used, whose bits are the same everywhere; sums run stage by stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gennode.sharding.predict import LATE_FACTOR, LATE_SHARE, MAX_LOAD
from gennode.wire.snapshot import Candidate, Demand

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Index = NDArray[np.intp]

# No machine is quicker: what divides must not be 0.
QUICKEST_S = 1e-9
# Stands for never, and for more than there is.
HUGE = 1e30
# While a search's ends are this far apart, it goes to the middle of their magnitudes.
FAR = 4.0
# Tries of a search for a rate. They end within a ten-thousandth in all but odd cases.
RATE_TRIES = 10


class Rows:
    """Stages of pipelines: what the formulas need of each machine.

    `facts`: [7, stages, pipelines], the attributes below in their order; `way_s`: [pipelines],
    half the round trips around each. `capacity` is in layers, with one session's caches.
    """

    def __init__(self, demand: Demand, facts: Array, way_s: Array) -> None:
        self.demand = demand
        self.facts = facts
        self.fixed_s, self.token_s, self.pass_s = facts[0], facts[1], facts[2]
        self.memory_bytes, self.capacity, self.sessions = facts[3], facts[4], facts[5]
        self.frame_s = facts[6]
        self.way_s = way_s
        self.used: Mask = self.capacity > 0

    def some(self, which: Mask) -> Rows:
        """A part of the pipelines."""
        return Rows(self.demand, self.facts[:, :, which], self.way_s[which])

    @property
    def zeros(self) -> Array:
        """A zero for each pipeline."""
        return np.zeros(self.way_s.shape)


def facts_of(candidates: Sequence[Candidate], demand: Demand) -> Array:
    """The facts of machines, [7, machines + 1]; the last column is no machine."""
    least_bytes = demand.layer_bytes + demand.session_bytes
    columns = [
        (
            max(QUICKEST_S, one.cost.fixed_s),
            max(QUICKEST_S, one.cost.token_s),
            one.pass_s,
            float(one.memory_bytes),
            float(min(one.capacity_layers, demand.layers, one.memory_bytes // least_bytes)),
            float(one.max_sessions),
            demand.frame_bytes / one.upload_bytes_per_s if one.upload_bytes_per_s > 0 else 0.0,
        )
        for one in candidates
    ]
    return np.array([*columns, (QUICKEST_S, QUICKEST_S, 0.0, 0.0, 0.0, 0.0, 0.0)]).T


def laid(facts: Array, demand: Demand, lines: Sequence[Sequence[int]], ways_s: list[float]) -> Rows:
    """Pipelines of machines given by their columns in `facts`. One stage alone has no links."""
    depth = max(map(len, lines))
    nobody = facts.shape[1] - 1
    index = np.array([[*line, *[nobody] * (depth - len(line))] for line in lines]).T
    chosen = facts[:, index]
    alone = np.array([len(line) < 2 for line in lines])
    chosen[6] = np.where(alone, 0.0, chosen[6])
    return Rows(demand, chosen, np.where(alone, 0.0, np.array(ways_s)))


def total(values: Array) -> Array:
    """The sum over a pipeline's stages, in their order."""
    sums: Array = values[0]
    for row in values[1:]:
        sums = sums + row
    return sums


def least(values: Array) -> Array:
    """The least of a pipeline's stages."""
    smallest: Array = values[0]
    for row in values[1:]:
        smallest = np.minimum(smallest, row)
    return smallest


def fewest(rows: Rows, layers: Array) -> Array:
    """The least number of layers among the machines of each pipeline."""
    return least(np.where(rows.used, layers, HUGE))


def stage_s(rows: Rows, layers: Array, rate: Array) -> Array:
    """`predict.stage_s` of every stage; huge where it is infinite."""
    free = 1 - rate * layers * rows.token_s
    reading_s = layers * rows.fixed_s + rows.pass_s
    full_s = reading_s / np.maximum(free, 1 - MAX_LOAD)
    pass_s = np.maximum(reading_s + layers * rows.token_s, full_s)
    times_s = pass_s * (1 + np.minimum(1.0, rate * pass_s) / 2)
    return np.where(free > 1 - MAX_LOAD, times_s, np.where(rows.used, HUGE, 0.0))


def links_s(rows: Rows, rate: Array) -> Array:
    """`predict.link_s` of all links of each pipeline; huge where it is infinite."""
    free = 1 - rate * rows.frame_s
    wait = 1 + (1 - free) / (2 * np.maximum(free, 1 - MAX_LOAD))
    return rows.way_s + total(np.where(free > 1 - MAX_LOAD, rows.frame_s * wait, HUGE))


def step_s(rows: Rows, layers: Array, rate: Array) -> Array:
    """`predict.step_s` of each pipeline."""
    return total(stage_s(rows, layers, rate)) + links_s(rows, rate)


def stage_sessions(rows: Rows, layers: Array) -> Array:
    """`predict.sessions_of` of every stage; huge where there is none."""
    left_bytes = np.maximum(rows.memory_bytes - layers * rows.demand.layer_bytes, 0.0)
    held = np.floor(left_bytes / (np.maximum(layers, 1e-6) * rows.demand.session_bytes))
    return np.where(rows.used, np.minimum(held, rows.sessions), HUGE)


def sessions_of(rows: Rows, layers: Array) -> Array:
    """`predict.max_sessions` of each pipeline."""
    return least(stage_sessions(rows, layers))


def room(rows: Rows, sessions: Array) -> Array:
    """The most layers each machine may take so that it holds the caches of so many sessions."""
    each_bytes = rows.demand.layer_bytes + np.maximum(sessions, 1.0) * rows.demand.session_bytes
    fits: Array = np.minimum(np.floor(rows.memory_bytes / each_bytes), rows.capacity)
    return fits


def highest(slack: Callable[[Array], Array], low: Array, high: Array, tries: int) -> Array:
    """The highest rate whose `slack` is at least 1: what falls with the rate, and holds at `low`.

    Illinois' variant of regula falsi: Dowell and Jarratt, BIT 11, 1971. The answer has slack.
    """

    def gap(rate: Array) -> Array:
        value = slack(rate)
        return np.where(value < 1, value - 1, 1 - 1 / np.maximum(value, 1.0))

    low_gap, high_gap = gap(low), gap(high)
    low = np.where(high_gap >= 0, high, low)
    before = np.zeros(low.shape, bool)
    for _ in range(tries):
        share = low_gap / np.maximum(low_gap - high_gap, 1e-12)
        rate = low + (high - low) * np.minimum(0.97, np.maximum(0.03, share))
        rate = np.where(high > FAR * low, np.sqrt(np.maximum(low, high * 1e-4) * high), rate)
        here = gap(rate)
        fits = here >= 0
        low, high = np.where(fits, rate, low), np.where(fits, high, rate)
        low_gap = np.where(fits, here, np.where(before, low_gap, low_gap / 2))
        high_gap = np.where(fits, np.where(before, high_gap / 2, high_gap), here)
        before = fits
    return low


def best_rate(rows: Rows, layers: Array, limit_s: Array) -> Array:
    """`predict.best_rate` of each pipeline, to a ten-thousandth."""
    sessions = sessions_of(rows, layers)
    idle_s = step_s(rows, layers, rows.zeros)

    def slack(rate: Array) -> Array:
        around_s = step_s(rows, layers, rate)
        return np.minimum(limit_s, sessions / np.maximum(rate, 1e-12)) / around_s

    busiest = -least(-np.maximum(layers * rows.token_s, rows.frame_s))
    high = np.minimum(sessions / idle_s, MAX_LOAD / np.maximum(busiest, 1e-18))
    rate = highest(slack, rows.zeros, high, RATE_TRIES)
    return np.where((idle_s <= limit_s) & (sessions >= 1), rate, 0.0)


def worth(rows: Rows, layers: Array) -> Array:
    """`predict.worth` of each pipeline; -1 where the layers don't fit or aren't all there."""
    limit_s = rows.demand.step_limit_s
    idle_s = step_s(rows, layers, rows.zeros)
    in_time = idle_s < limit_s
    limits_s = np.where(in_time, limit_s, LATE_FACTOR * idle_s)
    late = limit_s / np.maximum(limits_s, limit_s)
    share = np.where(in_time, 1.0, late * late * LATE_SHARE)
    fits = (least(rows.capacity - layers) >= 0) & (fewest(rows, layers) >= 1)
    fits &= (total(layers) == rows.demand.layers) & (sessions_of(rows, layers) >= 1)
    return np.where(fits, best_rate(rows, layers, limits_s) * share, -1.0)
