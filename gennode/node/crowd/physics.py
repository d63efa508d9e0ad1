"""How long a token takes now: `sharding.predict`'s formulas on what runs at each hop.

The plan's formulas ask for a rate and let queues grow without end; here each session has one
token under way, so that a pass never finds more than one of each session waiting. Both bounds
hold, and the lower one is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gennode.node.crowd.member import Member, Owner
from gennode.node.prompt import PREFILL_CHUNK
from gennode.sharding.predict import MAX_LOAD, link_s, stage_s
from gennode.wire.snapshot import Candidate, Demand

Leg = tuple[Member, int]
"""A hop: a worker, and how many layers it computes there."""


def stay_s(member: Member, layers: int, rate: float) -> float:
    """Seconds that a token spends at a worker with others there.

    `rate`: tokens per second times layers that the asker itself causes there; it does not wait
    for itself.
    """
    candidate = member.candidate
    cost = candidate.cost
    full_s = 1.5 * (layers * cost.fixed_s + candidate.pass_s + member.batch * cost.token_s)
    return min(full_s, stage_s(candidate, layers, max(0.0, member.rate - rate) / layers))


def frame_s(source: Candidate, target: Candidate, demand: Demand, frames: float) -> float:
    """Seconds of a token's frame; a line never holds more than one frame of each session."""
    time_s = link_s(source, target, demand, frames)
    if time_s < math.inf:
        return time_s
    return link_s(source, target, demand, 0.0) + demand.frame_bytes / source.upload_bytes_per_s


def step_s(owner: Owner, legs: Sequence[Leg], demand: Demand, rate: float, tokens: int) -> float:
    """Seconds of one token from the owner around its route. `rate`: tokens per second that the
    session has had. Workers are charged with what computing `tokens` tokens takes."""
    before = owner.candidate
    total_s, frames = 0.0, rate
    for member, layers in legs:
        stay = stay_s(member, layers, rate * layers)
        total_s += frame_s(before, member.candidate, demand, frames) + stay
        before, frames = member.candidate, max(0.0, member.rate) / layers
        member.busy_s += tokens * busy_s(stay, frames)
    return total_s + frame_s(before, owner.candidate, demand, frames)


def prefill_s(owner: Owner, legs: Sequence[Leg], demand: Demand, tokens: int) -> float:
    """Seconds until the last of so many tokens went around, in the product's chunks.

    All chunks are under way at once: the first takes the sum of all hops, each other one as
    long as the slowest hop or line.
    """
    chunk = min(tokens, PREFILL_CHUNK)
    first_s = slowest_s = 0.0
    before = owner.candidate
    for member, layers in legs:
        candidate = member.candidate
        free = 1 - min(MAX_LOAD, member.rate * candidate.cost.token_s)
        pass_s = member.prompt_s(layers, chunk)
        line_s = _line_s(before, demand, chunk)
        first_s += before.coordinate.rtt_s(candidate.coordinate) / 2 + line_s + pass_s / free
        slowest_s = max(slowest_s, pass_s / free, line_s)
        before = candidate
    back_s = before.coordinate.rtt_s(owner.candidate.coordinate) / 2
    return first_s + back_s + (math.ceil(tokens / PREFILL_CHUNK) - 1) * slowest_s


def busy_s(stay: float, rate: float) -> float:
    """Seconds of computing that one token accounts for where it stays so long.

    Of a stay P (1 + u / 2) with u = min(1, rate P) the pass P is shared by rate P tokens, or it
    is the token's own. `rate`: tokens per second of all there.
    """
    if rate <= 0:
        return stay
    if rate * stay >= 1.5:
        return 1 / rate
    return (math.sqrt(1 + 2 * rate * stay) - 1) / rate


def _line_s(source: Candidate, demand: Demand, frames: int) -> float:
    if source.upload_bytes_per_s <= 0:
        return 0.0
    return frames * demand.frame_bytes / source.upload_bytes_per_s
