"""How many layers each machine of a pipeline should compute: many pipelines at once.

At a given rate a stage's time is convex in its layers (but for a small kink), so a token is around
soonest when one layer more would cost every stage the same that has room for it: water-filling,
Boyd and Vandenberghe, "Convex Optimization", 2004, section 5.5.3. The highest rate whose best
split keeps the limit is found by halving.

Arrays are [stages, pipelines]; unused places hold machines of no layers. Only elementwise
operations are used, whose bits are the same everywhere; sums run stage by stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gennode.sharding.predict import LATE_FACTOR, MAX_LOAD
from gennode.wire.snapshot import Candidate, Demand

Array = NDArray[np.float64]

RATE_STEPS = 14
LEVEL_STEPS = 11
EXACT_STEPS = 22
POLISH_MOVES = 4
SMALLEST_RATE = 1e-4
# No machine is quicker: what divides must not be 0.
QUICKEST_S = 1e-9
_HUGE = 1e30
# So many pipelines at once stay within a processor's cache.
CHUNK = 512


@dataclass(frozen=True)
class Columns:
    """What the formulas need of each machine of a pool, one array per quantity."""

    demand: Demand
    fixed_s: Array
    token_s: Array
    pass_s: Array
    memory_bytes: Array
    capacity: Array
    sessions: Array
    frame_s: Array


@dataclass(frozen=True)
class Rows:
    """Pipelines to judge, and the same quantities for each of their stages."""

    demand: Demand
    used: NDArray[np.bool_]
    fixed_s: Array
    token_s: Array
    pass_s: Array
    memory_bytes: Array
    capacity: Array
    sessions: Array
    frame_s: Array
    way_s: Array


def columns(candidates: Sequence[Candidate], demand: Demand) -> Columns:
    """The columns of a pool; a capacity counts what one session's cache leaves room for."""

    def column(values: list[float]) -> Array:
        return np.array([*values, 0.0])

    room = [
        min(one.capacity_layers, demand.layers, one.memory_bytes // _least_bytes(demand))
        for one in candidates
    ]
    return Columns(
        demand,
        column([max(QUICKEST_S, one.cost.fixed_s) for one in candidates]),
        column([max(QUICKEST_S, one.cost.token_s) for one in candidates]),
        column([one.pass_s for one in candidates]),
        column([float(one.memory_bytes) for one in candidates]),
        column([float(layers) for layers in room]),
        column([float(one.max_sessions) for one in candidates]),
        column([_frame_s(one, demand) for one in candidates]),
    )


def _least_bytes(demand: Demand) -> int:
    return demand.layer_bytes + demand.session_bytes


def _frame_s(one: Candidate, demand: Demand) -> float:
    if one.upload_bytes_per_s <= 0:
        return 0.0
    return demand.frame_bytes / one.upload_bytes_per_s


def judge(
    pool: Columns, lines: Sequence[Sequence[int]], ways_s: Sequence[float]
) -> tuple[list[float], list[list[int]]]:
    """Worth (`predict.worth`) of pipelines and their best splits.

    `lines`: per pipeline its machines' indices into the pool; `ways_s`: half the round trips
    around it, in all. A pipeline that can't hold the model is worth -1.
    """
    worths = [-1.0] * len(lines)
    splits: list[list[int]] = [[] for _ in lines]
    order = sorted(range(len(lines)), key=lambda at: (len(lines[at]), at))
    first = 0
    while first < len(order):
        chunk = order[first : first + CHUNK]
        found = _judge(pool, [lines[at] for at in chunk], [ways_s[at] for at in chunk])
        for at, worth_, layers in zip(chunk, *found, strict=True):
            worths[at], splits[at] = worth_, layers
        first += CHUNK
    return worths, splits


def _judge(
    pool: Columns, lines: Sequence[Sequence[int]], ways_s: Sequence[float]
) -> tuple[list[float], list[list[int]]]:
    depth = max(map(len, lines))
    padding = len(pool.fixed_s) - 1
    index = np.array([[*line, *[padding] * (depth - len(line))] for line in lines]).T
    single = np.array([len(line) < 2 for line in lines])
    rows = Rows(
        pool.demand,
        index != padding,
        pool.fixed_s[index],
        pool.token_s[index],
        pool.pass_s[index],
        pool.memory_bytes[index],
        pool.capacity[index],
        pool.sessions[index],
        np.where(single, 0.0, pool.frame_s[index]),
        np.where(single, 0.0, np.array(ways_s)),
    )
    worths, layers = _best(rows)
    return worths.tolist(), layers.T.astype(int).tolist()


def _best(rows: Rows) -> tuple[Array, Array]:
    limit_s = rows.demand.step_limit_s
    idle = _idle_split(rows)
    idle_s = step_s(rows, idle, np.zeros(rows.way_s.shape))
    best, best_layers = worth(rows, idle), idle
    for factor in (0.0, LATE_FACTOR, 1.3):
        if factor and not (idle_s > 0.8 * limit_s).any():
            break
        limits_s = np.maximum(limit_s, idle_s * factor)
        layers = polish(rows, whole(rows, *_search(rows, limits_s)), limits_s)
        value = worth(rows, layers)
        better = value > best
        best = np.where(better, value, best)
        best_layers = np.where(better, layers, best_layers)
    return best, best_layers


def total(values: Array) -> Array:
    """The sum over a pipeline's stages, in their order."""
    sums = values[0]
    for row in values[1:]:
        sums = sums + row
    return sums


def _least(values: Array) -> Array:
    least = values[0]
    for row in values[1:]:
        least = np.minimum(least, row)
    return least


def _fewest(rows: Rows, layers: Array) -> Array:
    return _least(np.where(rows.used, layers, _HUGE))


def stage_s(rows: Rows, layers: Array, rate: Array) -> Array:
    """`predict.stage_s` of every stage."""
    load = rate * layers * rows.token_s
    alone_s = layers * (rows.fixed_s + rows.token_s) + rows.pass_s
    full_s = (layers * rows.fixed_s + rows.pass_s) / np.maximum(1 - load, 1 - MAX_LOAD)
    pass_s = np.maximum(alone_s, full_s)
    times_s = pass_s * (1 + np.minimum(1.0, rate * pass_s) / 2)
    return np.where(rows.used, np.where(load >= MAX_LOAD, _HUGE, times_s), 0.0)


def links_s(rows: Rows, rate: Array) -> Array:
    """`predict.link_s` of all links of each pipeline."""
    load = rate * rows.frame_s
    wait = 1 + load / (2 * np.maximum(1 - load, 1 - MAX_LOAD))
    return rows.way_s + total(np.where(load >= MAX_LOAD, _HUGE, rows.frame_s * wait))


def step_s(rows: Rows, layers: Array, rate: Array) -> Array:
    """`predict.step_s` of each pipeline."""
    return total(stage_s(rows, layers, rate)) + links_s(rows, rate)


def room(rows: Rows, sessions: Array) -> Array:
    """The most layers each machine may take so that it holds the caches of so many sessions."""
    demand = rows.demand
    fits = np.floor(
        rows.memory_bytes / (demand.layer_bytes + np.maximum(sessions, 1.0) * demand.session_bytes)
    )
    fits = np.minimum(fits, rows.capacity)
    return np.where(sessions > rows.sessions, 0.0, fits)


def sessions_of(rows: Rows, layers: Array) -> Array:
    """`predict.max_sessions` of each pipeline."""
    demand = rows.demand
    left_bytes = rows.memory_bytes - layers * demand.layer_bytes
    per_session = np.maximum(layers, 1.0) * demand.session_bytes
    held = np.floor(np.maximum(left_bytes, 0.0) / per_session)
    held = np.minimum(held, rows.sessions)
    return _least(np.where(rows.used, held, _HUGE))


def best_rate(rows: Rows, layers: Array, limit_s: Array) -> Array:
    """`predict.best_rate` of each pipeline."""
    sessions = sessions_of(rows, layers)
    idle_s = step_s(rows, layers, np.zeros(rows.way_s.shape))
    low, high = np.zeros(rows.way_s.shape), sessions / np.maximum(idle_s, QUICKEST_S)
    for _ in range(EXACT_STEPS):
        rate = (low + high) / 2
        around_s = step_s(rows, layers, rate)
        fits = (around_s <= limit_s) & (rate * around_s <= sessions)
        low, high = np.where(fits, rate, low), np.where(fits, high, rate)
    return np.where(idle_s <= limit_s, low, 0.0)


def worth(rows: Rows, layers: Array) -> Array:
    """`predict.worth` of each pipeline; -1 where the layers don't fit or aren't all there."""
    limit_s = rows.demand.step_limit_s
    idle_s = step_s(rows, layers, np.zeros(rows.way_s.shape))
    late_s = LATE_FACTOR * idle_s
    in_time = idle_s < limit_s
    limits_s = np.where(in_time, limit_s, late_s)
    rate = best_rate(rows, layers, limits_s)
    share = np.where(in_time, 1.0, limit_s / np.maximum(late_s, limit_s))
    valid = (_least(rows.capacity - layers) >= 0) & (_fewest(rows, layers) >= 1)
    valid &= total(layers) == rows.demand.layers
    return np.where(valid & (sessions_of(rows, layers) > 0), rate * share * share, -1.0)


def _idle_split(rows: Rows) -> Array:
    """The quickest split when nothing else runs: the quickest machine takes all that it holds."""
    order = np.argsort(
        np.where(rows.used, rows.fixed_s + rows.token_s, _HUGE), axis=0, kind="stable"
    )
    layers = np.where(rows.used, 1.0, 0.0)
    left = rows.demand.layers - total(layers)
    columns_of = np.arange(order.shape[1])
    for place in order:
        space = rows.capacity[place, columns_of] - layers[place, columns_of]
        taken = np.maximum(0.0, np.minimum(space, left))
        layers[place, columns_of] += taken
        left = left - taken
    return layers


def _search(rows: Rows, limit_s: Array) -> tuple[Array, Array]:
    """The split at the highest rate within the limit, in fractions of layers, and the room."""
    high = _rate_bound(rows)
    low = high * SMALLEST_RATE
    sessions = np.ones(low.shape)
    caps = room(rows, sessions)
    best = level(rows, low, caps)
    best_caps = caps
    for _ in range(RATE_STEPS):
        rate = np.sqrt(low * high)
        need = sessions
        for _round in range(2):
            caps = room(rows, need)
            layers = level(rows, rate, caps)
            around_s = step_s(rows, layers, rate)
            enough = rate * around_s <= need
            if enough.all():
                break
            need = np.where(enough, need, np.maximum(need, np.ceil(rate * around_s * 1.005)))
        held = sessions_of(rows, np.maximum(layers, 1e-6))
        fits = (around_s <= limit_s) & (rate * around_s <= held)
        fits &= (total(caps) >= rows.demand.layers) & (_fewest(rows, caps) >= 1)
        low, high = np.where(fits, rate, low), np.where(fits, high, rate)
        sessions = np.where(fits, np.minimum(need, np.maximum(1.0, rate * around_s)), sessions)
        best = np.where(fits, layers, best)
        best_caps = np.where(fits, caps, best_caps)
    return best, best_caps


def _rate_bound(rows: Rows) -> Array:
    """More tokens per second than any split allows."""
    speeds = total(np.where(rows.used, 1 / np.maximum(rows.token_s, QUICKEST_S), 0.0))
    bound = MAX_LOAD * speeds / rows.demand.layers
    lines = _least(np.where(rows.frame_s > 0, MAX_LOAD / np.maximum(rows.frame_s, 1e-18), _HUGE))
    idle_s = step_s(rows, _idle_split(rows), np.zeros(rows.way_s.shape))
    sessions = _least(np.where(rows.used, rows.sessions, _HUGE))
    return np.minimum(
        np.minimum(bound, lines), np.maximum(1.0, sessions) / np.maximum(idle_s, QUICKEST_S)
    )


def level(rows: Rows, rate: Array, caps: Array) -> Array:
    """Water-filling: layers in fractions, where one more would cost every stage the same."""
    layers = float(rows.demand.layers)
    whole_s = rows.fixed_s + rows.token_s
    whole_s = np.maximum(whole_s, QUICKEST_S)
    token_s = np.maximum(rows.token_s, QUICKEST_S)
    # while less than one token waits: n (f + t) + h, times 1 + rate / 2 of it
    slope = 1 / (rate * whole_s * whole_s)
    start = (1 + rate * rows.pass_s) / (rate * whole_s)
    kink = (1 / rate - rows.pass_s) / whole_s
    # from then on: 1.5 (n f + h) / (1 - rate n t)
    most = 1 / (rate * token_s)
    bend_squared = 1.5 * (rows.fixed_s + rows.pass_s * rate * token_s)
    bend = np.sqrt(bend_squared) * most
    caps = np.minimum(caps, 0.99 * MAX_LOAD * most)
    caps = np.where(rows.used, np.maximum(caps, 0.0), 0.0)
    floor = np.minimum(np.where(rows.used, 1.0, 0.0), caps)

    def at(price: Array) -> Array:
        alone = price * slope - start
        full = most - bend / np.sqrt(price)
        taken = np.where(alone < kink, alone, np.maximum(full, kink))
        return np.minimum(np.maximum(taken, floor), caps)

    low = np.full(rate.shape, 0.0)
    low = _least(np.where(rows.used, np.minimum(whole_s, 1.5 * rows.fixed_s), _HUGE)) * 0.5
    highest = np.where(
        rows.used,
        np.maximum(
            bend_squared / (0.0025), whole_s * (2 + 2 * rate * (whole_s * layers + rows.pass_s))
        ),
        0.0,
    )
    high = -_least(-highest) * 1.01
    for _ in range(LEVEL_STEPS):
        price = np.sqrt(low * high)
        short = total(at(price)) < layers
        low, high = np.where(short, price, low), np.where(short, high, price)
    under, over = at(low), at(high)
    lack, span = layers - total(under), total(over) - total(under)
    share = np.minimum(1.0, np.maximum(0.0, lack / np.maximum(span, 1e-12)))
    return under + (over - under) * share


def whole(rows: Rows, layers: Array, caps: Array) -> Array:
    """Whole layers: each stage's share rounded down, and the largest remainders up."""
    down = np.minimum(np.floor(layers + 1e-9), caps)
    remainder = np.where(down < caps, layers - down, -1.0)
    order = np.argsort(-remainder, axis=0, kind="stable")
    rank = np.argsort(order, axis=0, kind="stable")
    lack = rows.demand.layers - total(down)
    return down + np.where(rank < lack, 1.0, 0.0)


def polish(rows: Rows, layers: Array, limit_s: Array) -> Array:
    """Move single layers from stage to stage as long as that makes room for a higher rate."""
    for _ in range(POLISH_MOVES):
        rate = best_rate(rows, layers, limit_s)
        caps = room(rows, np.floor(rate * step_s(rows, layers, rate)) + 1)
        caps = np.maximum(caps, layers)
        here = stage_s(rows, layers, rate)
        fewer, more = stage_s(rows, layers - 1, rate), stage_s(rows, layers + 1, rate)
        saved = np.where(rows.used & (layers > 1), here - fewer, -_HUGE)
        spent = np.where(rows.used & (layers < caps), more - here, _HUGE)
        source, target = np.argmax(saved, axis=0), np.argmin(spent, axis=0)
        columns_of = np.arange(rate.shape[0])
        gain = saved[source, columns_of] - spent[target, columns_of]
        moves = (gain > 0) & (source != target)
        if not moves.any():
            break
        moved = layers.copy()
        moved[source, columns_of] -= np.where(moves, 1.0, 0.0)
        moved[target, columns_of] += np.where(moves, 1.0, 0.0)
        better = best_rate(rows, moved, limit_s) > rate
        layers = np.where(better, moved, layers)
    return layers
