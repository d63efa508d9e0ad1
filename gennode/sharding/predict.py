"""What a pipeline would achieve: a token's time at a rate, and the best rate within a limit.

The same few formulas judge every plan, ours and others'. Only `+ - * /`, comparisons and square
roots are used, in a fixed order, so that all machines compute the same bits and agree on plans.

A stage works in passes: it takes all tokens that wait, one per session, through its layers. At
`rate` tokens per second a pass of `n` layers that takes `P` finds `rate * P` tokens waiting, and

    P = n * fixed_s + pass_s + rate * P * n * token_s
      = (n * fixed_s + pass_s) / (1 - rate * n * token_s)

A token waits for half of the pass that runs when it comes (if one does) and then for its own.
This is the fluid limit of a batch-service queue: Bailey, "On queueing processes with bulk
service", Journal of the Royal Statistical Society B 16, 1954; Little's law ties rate, time
and sessions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gennode.wire.snapshot import Candidate, Demand

# Nobody's share of a link or of a machine is planned to be fuller than this: queues explode.
MAX_LOAD = 0.95
# A search for the best rate halves its error this often: to a thousandth of a percent.
BISECTIONS = 24
# With no stage that meets the limit, a rate is worth something all the same: so much later
# than the very first token may the others be.
LATE_FACTOR = 1.1
# What is late is worth this share of what it would be by its pace: two pipelines that are too
# slow must never weigh up one that is not, however much flows there.
LATE_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Stage:
    """One hop of a pipeline that is planned: a machine, and how many layers it computes."""

    candidate: Candidate
    layers: int


def stage_s(candidate: Candidate, layers: int, rate: float) -> float:
    """Seconds that a token spends at a stage at `rate` tokens per second; infinite if too many."""
    load = rate * layers * candidate.cost.token_s
    if load >= MAX_LOAD:
        return math.inf
    alone_s = layers * (candidate.cost.fixed_s + candidate.cost.token_s) + candidate.pass_s
    full_s = (layers * candidate.cost.fixed_s + candidate.pass_s) / (1 - load)
    pass_s = max(alone_s, full_s)
    return pass_s * (1 + min(1.0, rate * pass_s) / 2)


def link_s(source: Candidate, target: Candidate, demand: Demand, rate: float) -> float:
    """Seconds of a token's frame from one machine to another at `rate` frames per second.

    Half a round trip, and the frame's own time on the source's line with the wait for others
    before it (M/D/1); infinite if the line is too thin. An unknown line costs nothing.
    """
    way_s = source.coordinate.rtt_s(target.coordinate) / 2
    if source.upload_bytes_per_s <= 0:
        return way_s
    frame_s = demand.frame_bytes / source.upload_bytes_per_s
    load = rate * frame_s
    if load >= MAX_LOAD:
        return math.inf
    return way_s + frame_s * (1 + load / (2 * (1 - load)))


def step_s(stages: Sequence[Stage], demand: Demand, rate: float) -> float:
    """Seconds of a token around a pipeline at `rate` tokens per second, in all.

    The owner is taken to sit on the way from the last stage to the first. A pipeline of one
    stage has no links.
    """
    total_s = 0.0
    for stage in stages:
        total_s += stage_s(stage.candidate, stage.layers, rate)
    if len(stages) > 1:
        before = stages[-1].candidate
        for stage in stages:
            total_s += link_s(before, stage.candidate, demand, rate)
            before = stage.candidate
    return total_s


def sessions_of(candidate: Candidate, layers: int, demand: Demand) -> int:
    """Sessions that a machine holds the caches of, beside the weights of so many layers."""
    if layers <= 0:
        return candidate.max_sessions
    left_bytes = candidate.memory_bytes - layers * demand.layer_bytes
    return min(candidate.max_sessions, max(0, left_bytes) // (layers * demand.session_bytes))


def max_sessions(stages: Sequence[Stage], demand: Demand) -> int:
    """Sessions that every stage of a pipeline holds the caches of."""
    return min((sessions_of(one.candidate, one.layers, demand) for one in stages), default=0)


def best_rate(stages: Sequence[Stage], demand: Demand, limit_s: float) -> float:
    """The most tokens per second at which none takes longer than `limit_s`, 0 if any would.

    Sessions are bounded by memory, and each has one token under way: rate · time ≤ sessions.
    """
    sessions = max_sessions(stages, demand)
    if not stages or sessions <= 0 or step_s(stages, demand, 0.0) > limit_s:
        return 0.0
    low, high = 0.0, sessions / step_s(stages, demand, 0.0)
    for _ in range(BISECTIONS):
        rate = (low + high) / 2
        around_s = step_s(stages, demand, rate)
        if around_s <= limit_s and rate * around_s <= sessions:
            low = rate
        else:
            high = rate
    return low


def worth(stages: Sequence[Stage], demand: Demand) -> float:
    """Tokens per second within the model's step limit; discounted if that can't be met.

    A pipeline that is slower even when it is idle counts with a hundredth of the rate it gives
    at that pace, times the square of how far it misses.
    """
    rate = best_rate(stages, demand, demand.step_limit_s)
    if rate > 0.0 or not stages:
        return rate
    limit_s = LATE_FACTOR * step_s(stages, demand, 0.0)
    if limit_s <= demand.step_limit_s:  # no memory for a single session
        return 0.0
    share = demand.step_limit_s / limit_s
    return best_rate(stages, demand, limit_s) * share * share * LATE_SHARE
