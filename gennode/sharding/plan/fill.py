"""How many layers each machine of a pipeline should compute: many pipelines at once.

At a given rate a stage's time is convex in its layers (but for a small kink), so a token is around
soonest when one layer more would cost every stage the same that has room for it: water-filling,
Boyd and Vandenberghe, "Convex Optimization", 2004, section 5.5.3. The highest rate whose best
split keeps the limit is then a root of one falling function.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gennode.sharding.plan.rows import (
    HUGE,
    QUICKEST_S,
    Array,
    Rows,
    best_rate,
    fewest,
    highest,
    laid,
    least,
    room,
    sessions_of,
    stage_s,
    stage_sessions,
    step_s,
    total,
    worth,
)
from gennode.sharding.predict import LATE_FACTOR, MAX_LOAD
from gennode.wire.snapshot import Demand

# Tries to find the rate of the best split, the sessions there is memory for, and the water's
# level. More of them change what pipelines are worth by less than a thousandth.
SEARCH_TRIES = 8
WALL_HALVINGS = 8
LEVEL_TRIES = 6
POLISH_MOVES = 12
# The split settles together with the sessions that it must hold: in so many turns, room being
# kept for a few more than it would take at the last turn's pace.
TURNS = 2
AHEAD = 1.03
OTHER_AHEAD = (1.0, 1.15, 1.4)
# So many stages at once stay within a processor's cache.
CHUNK_STAGES = 8192
# What is slower than this share of the limit when idle is also judged as if it were late.
NEARLY_LATE = 0.8
SLOWER = (LATE_FACTOR, 1.3)


def judge(
    facts: Array,
    demand: Demand,
    lines: Sequence[Sequence[int]],
    ways_s: Sequence[float],
    careful: bool = False,
    polish: bool = False,
) -> tuple[list[float], list[list[int]]]:
    """Worth (`predict.worth`) of pipelines and the layers of each stage in their best splits.

    `polish`: for pools of few machines; `careful`: for those of fewer still, and for what is
    planned in the end.
    `lines`: per pipeline its machines' columns in `facts`; `ways_s`: half the round trips
    around it, in all. A pipeline that can't hold the model is worth -1.
    """
    worths = [-1.0] * len(lines)
    splits: list[list[int]] = [[] for _ in lines]
    order = sorted(range(len(lines)), key=lambda at: (-len(lines[at]), at))
    while order:
        count = max(1, CHUNK_STAGES // len(lines[order[0]]))
        chunk, order = order[:count], order[count:]
        rows = laid(facts, demand, [lines[at] for at in chunk], [ways_s[at] for at in chunk])
        values, layers = _best(rows)
        if careful:
            values, layers = _carefully(rows, layers)
        elif polish:
            layers = polished(rows, layers)
            values = worth(rows, layers)
        for at, value, split in zip(
            chunk, values.tolist(), layers.T.astype(int).tolist(), strict=True
        ):
            worths[at], splits[at] = value, split
    return worths, splits


def _best(rows: Rows) -> tuple[Array, Array]:
    limit_s = rows.demand.step_limit_s
    idle = _idle_split(rows)
    idle_s = step_s(rows, idle, rows.zeros)
    layers = _searched(rows, np.maximum(limit_s, rows.zeros), idle_s)
    value = worth(rows, layers)
    late = (idle_s > NEARLY_LATE * limit_s) | (value <= 0)
    if late.any():
        part = rows.some(late)
        some_layers, some_value = layers[:, late], value[late]
        others = [idle[:, late]]
        for factor in SLOWER:
            limits_s = np.maximum(limit_s, idle_s[late] * factor)
            others.append(_searched(part, limits_s, idle_s[late]))
        for other in others:
            here = worth(part, other)
            some_layers = np.where(here > some_value, other, some_layers)
            some_value = np.maximum(here, some_value)
        layers[:, late], value[late] = some_layers, some_value
    return value, layers


def _carefully(rows: Rows, layers: Array) -> tuple[Array, Array]:
    """The best of several beginnings, each polished: sessions come in steps."""
    layers = polished(rows, layers)
    value = worth(rows, layers)
    limits_s = np.maximum(rows.demand.step_limit_s, rows.zeros)
    idle_s = step_s(rows, _idle_split(rows), rows.zeros)
    for ahead in OTHER_AHEAD:
        other = polished(rows, _searched(rows, limits_s, idle_s, ahead))
        here = worth(rows, other)
        layers = np.where(here > value, other, layers)
        value = np.maximum(here, value)
    return value, layers


def _idle_split(rows: Rows) -> Array:
    """The quickest split when nothing else runs: the quickest machine takes all that it holds."""
    price_s = np.where(rows.used, rows.fixed_s + rows.token_s, HUGE)
    order = np.argsort(price_s, axis=0, kind="stable")
    layers = np.where(rows.used, 1.0, 0.0)
    left = rows.demand.layers - total(layers)
    column = np.arange(order.shape[1])
    for stage in order:
        space = rows.capacity[stage, column] - layers[stage, column]
        taken = np.maximum(0.0, np.minimum(space, left))
        layers[stage, column] += taken
        left = left - taken
    return layers


def _searched(rows: Rows, limit_s: Array, idle_s: Array, ahead: float = AHEAD) -> Array:
    """The split that allows the highest rate within the limit, in whole layers."""
    wall = _most_sessions(rows)
    high = _rate_bound(rows, wall, idle_s)
    low = high * 1e-3
    pace_s = idle_s
    best = best_caps = rows.capacity
    best_rate = rows.zeros

    def split(rate: Array) -> tuple[Array, Array]:
        # The sessions at a rate depend on the time around, which depends on the split, which
        # depends on the room beside the sessions' caches: a few turns settle it.
        around_s = pace_s
        for _ in range(TURNS):
            sessions = np.minimum(wall, np.ceil(rate * np.minimum(around_s, limit_s) * ahead))
            caps = room(rows, sessions)
            layers = level(rows, rate, caps)
            around_s = step_s(rows, layers, rate)
        return layers, caps

    def slack(rate: Array) -> Array:
        nonlocal pace_s, best, best_caps, best_rate
        layers, caps = split(rate)
        around_s = step_s(rows, layers, rate)
        held = np.minimum(wall, np.maximum(1.0, sessions_of(rows, layers)))
        found = np.minimum(limit_s, held / rate) / around_s
        placed = total(layers) / rows.demand.layers
        found = np.where(placed > 0.9999, found, 0.9 * np.minimum(placed, found))
        fits = found >= 1
        pace_s = np.where(fits, around_s, pace_s)
        better = (fits & (rate > best_rate)) | (best_rate <= 0)
        best, best_caps = np.where(better, layers, best), np.where(better, caps, best_caps)
        best_rate = np.where(better & fits, rate, best_rate)
        return found

    highest(slack, low, high, SEARCH_TRIES)
    return whole(rows, best, best_caps)


def _most_sessions(rows: Rows) -> Array:
    """The most sessions whose caches fit beside all layers, however these are split."""
    most = least(np.where(rows.used, rows.sessions, HUGE))
    low, high = np.minimum(most, 1.0), most
    for _ in range(WALL_HALVINGS):
        middle = np.where(high - low < 8, (low + high) / 2, np.sqrt(low * high))
        caps = room(rows, middle)
        fits = (total(caps) >= rows.demand.layers) & (fewest(rows, caps) >= 1)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    caps = room(rows, most)
    fits = (total(caps) >= rows.demand.layers) & (fewest(rows, caps) >= 1)
    return np.where(fits, most, np.maximum(1.0, np.floor(low)))


def _rate_bound(rows: Rows, wall: Array, idle_s: Array) -> Array:
    """At least as many tokens per second as any split allows."""
    speeds = total(np.where(rows.used, 1 / rows.token_s, 0.0))
    lines = least(np.where(rows.frame_s > 0, MAX_LOAD / np.maximum(rows.frame_s, 1e-18), HUGE))
    machines = MAX_LOAD * speeds / rows.demand.layers
    return np.minimum(np.minimum(machines, lines), wall / np.maximum(idle_s, QUICKEST_S))


def level(rows: Rows, rate: Array, caps: Array) -> Array:
    """Water-filling: layers in fractions, where one more would cost every stage the same.

    `price` is what a layer more costs; the search runs over 1 / sqrt(price), in which a busy
    stage's layers are a straight line.
    """
    layers = float(rows.demand.layers)
    whole_s = rows.fixed_s + rows.token_s
    # while less than one token waits, a stage takes 1 + rate / 2 of it times n whole_s + pass_s
    slope = 1 / (rate * whole_s * whole_s)
    start = (1 + rate * rows.pass_s) / (rate * whole_s)
    kink = (1 / rate - rows.pass_s) / whole_s
    # from then on: 1.5 (n fixed_s + pass_s) / (1 - rate n token_s)
    most = 1 / (rate * rows.token_s)
    bend_squared = 1.5 * (rows.fixed_s + rows.pass_s * rate * rows.token_s)
    bend = np.sqrt(bend_squared) * most
    caps = np.maximum(0.0, np.minimum(caps, 0.999 * MAX_LOAD * most))
    floor = np.minimum(np.where(rows.used, 1.0, 0.0), caps)

    def at(inverse: Array) -> Array:
        alone = slope / (inverse * inverse) - start
        taken = np.where(alone < kink, alone, np.maximum(most - bend * inverse, kink))
        layers_at: Array = np.minimum(np.maximum(taken, floor), caps)
        return layers_at

    cheapest = np.where(rows.used, np.minimum(whole_s, 1.5 * rows.fixed_s), HUGE)
    dearest: Array = np.maximum(
        bend_squared * 400.0, whole_s * (2 + 2 * rate * (whole_s * layers + rows.pass_s))
    )
    high = 1.5 / np.sqrt(least(cheapest))  # few layers
    low = 0.9 / np.sqrt(-least(np.where(rows.used, -dearest, 0.0)))  # many
    few, many = at(high), at(low)
    few_gap, many_gap = layers - total(few), total(many) - layers
    for _ in range(LEVEL_TRIES):
        share = many_gap / np.maximum(many_gap + few_gap, 1e-12)
        inverse = low + (high - low) * np.minimum(0.95, np.maximum(0.05, share))
        here = at(inverse)
        gap = total(here) - layers
        enough = gap >= 0
        low, high = np.where(enough, inverse, low), np.where(enough, high, inverse)
        many, few = np.where(enough, here, many), np.where(enough, few, here)
        many_gap = np.where(enough, gap, many_gap / 2)
        few_gap = np.where(enough, few_gap / 2, -gap)
    lack, span = layers - total(few), total(many) - total(few)
    share = np.minimum(1.0, np.maximum(0.0, lack / np.maximum(span, 1e-12)))
    return few + (many - few) * share


def whole(rows: Rows, layers: Array, caps: Array) -> Array:
    """Whole layers: each stage's share rounded down, and the largest remainders up."""
    down = np.minimum(np.floor(layers + 1e-9), caps)
    remainder = np.where(down < caps, layers - down, -1.0)
    order = np.argsort(-remainder, axis=0, kind="stable")
    rank = np.argsort(order, axis=0, kind="stable")
    lack = rows.demand.layers - total(down)
    return down + np.where(rank < lack, 1.0, 0.0)


def polished(rows: Rows, layers: Array) -> Array:
    """Move single layers from stage to stage as long as a pipeline gains worth by it.

    Off the stage that saves most time, or off the one with the fewest caches.
    """
    limit_s = rows.demand.step_limit_s
    column = np.arange(rows.way_s.shape[0])
    value = worth(rows, layers)
    for _ in range(POLISH_MOVES):
        idle_s = step_s(rows, layers, rows.zeros)
        rate = best_rate(rows, layers, np.where(idle_s < limit_s, limit_s, LATE_FACTOR * idle_s))
        sessions = np.floor(rate * step_s(rows, layers, rate)) + 1
        here = stage_s(rows, layers, rate)
        spare = rows.used & (layers > 1)
        saved = np.where(spare, here - stage_s(rows, layers - 1, rate), -HUGE)
        caches = np.where(spare, stage_sessions(rows, layers), HUGE)
        spent = stage_s(rows, layers + 1, rate) - here
        before = value
        for source, caps in (
            (np.argmax(saved, axis=0), room(rows, sessions)),
            (np.argmin(caches, axis=0), room(rows, sessions + 1)),
        ):
            free = rows.used & (layers < caps)
            free[source, column] = False
            target = np.argmin(np.where(free, spent, HUGE), axis=0)
            moved = layers.copy()
            moved[source, column] -= 1.0
            moved[target, column] += 1.0
            after = worth(rows, moved)
            better = after > value
            layers, value = np.where(better, moved, layers), np.maximum(after, value)
        if not (value > before).any():
            break
    return layers
