"""How long a token takes now: `sharding.predict`'s formulas on what runs at each hop.

The plan's formulas ask for a rate and let queues grow without end; here each session has one
token under way, so that a pass never finds more than one of each session waiting. Both bounds
hold, and the lower one is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gennode.node.crowd.member import Leg, Member, Owner
from gennode.node.prompt import PREFILL_CHUNK
from gennode.sharding.predict import MAX_LOAD
from gennode.wire.snapshot import Candidate, Demand


def stay_s(member: Member, layers: int, rate: float) -> float:
    """Seconds that a token spends at a worker with others there.

    `rate`: tokens per second times layers that the asker itself causes there; it does not wait
    for itself. Where a pass is not full this is `predict.stage_s`, to the last bit; written out,
    since most of a run's time is spent here.
    """
    candidate = member.candidate
    cost = candidate.cost
    idle_s = layers * cost.fixed_s + candidate.pass_s
    full_s = 1.5 * (idle_s + member.batch * cost.token_s)
    others = member.rate - rate
    others = others / layers if others > 0.0 else 0.0
    load = others * layers * cost.token_s
    if load >= MAX_LOAD:
        return full_s
    alone_s = layers * (cost.fixed_s + cost.token_s) + candidate.pass_s
    pass_s = idle_s / (1 - load)
    pass_s = max(pass_s, alone_s)
    found = others * pass_s
    stay = pass_s * (1 + (found if found < 1.0 else 1.0) / 2)
    return stay if stay < full_s else full_s


def frame_s(source: Owner | Member, target: Owner | Member, demand: Demand, frames: float) -> float:
    """Seconds of a token's frame, as in `predict.link_s`; but a line never holds more than one
    frame of each session."""
    upload_bytes_per_s = source.candidate.upload_bytes_per_s
    if upload_bytes_per_s <= 0:
        return way_s(source, target)
    alone_s = demand.frame_bytes / upload_bytes_per_s
    load = frames * alone_s
    if load >= MAX_LOAD:
        return way_s(source, target) + alone_s + alone_s
    return way_s(source, target) + alone_s * (1 + load / (2 * (1 - load)))


def way_s(source: Owner | Member, target: Owner | Member) -> float:
    """Half of a round trip. Nobody moves, so each pair is worked out once."""
    known_s = source.ways_s.get(target)
    if known_s is None:
        known_s = source.candidate.coordinate.rtt_s(target.candidate.coordinate) / 2
        source.ways_s[target] = known_s
    return known_s


def step_s(owner: Owner, legs: Sequence[Leg], demand: Demand, rate: float, tokens: int) -> float:
    """Seconds of one token from the owner around its route. `rate`: tokens per second that the
    session has had. Workers are charged with what computing `tokens` tokens takes."""
    before: Owner | Member = owner
    total_s, frames = 0.0, rate
    for member, layers in legs:
        stay = stay_s(member, layers, rate * layers)
        total_s += frame_s(before, member, demand, frames) + stay
        before, frames = member, max(0.0, member.rate) / layers
        member.busy_s += tokens * busy_s(stay, frames)
    return total_s + frame_s(before, owner, demand, frames)


def prefill_s(owner: Owner, legs: Sequence[Leg], demand: Demand, tokens: int) -> float:
    """Seconds until the last of so many tokens went around, in the product's chunks.

    All chunks are under way at once: the first takes the sum of all hops, each other one as
    long as the slowest hop or line.
    """
    chunk = min(tokens, PREFILL_CHUNK)
    first_s = slowest_s = 0.0
    before: Owner | Member = owner
    for member, layers in legs:
        free = 1 - min(MAX_LOAD, member.rate * member.candidate.cost.token_s)
        pass_s = member.prompt_s(layers, chunk)
        line_s = _line_s(before.candidate, demand, chunk)
        first_s += way_s(before, member) + line_s + pass_s / free
        slowest_s = max(slowest_s, pass_s / free, line_s)
        before = member
    chunks = math.ceil(tokens / PREFILL_CHUNK)
    return first_s + way_s(before, owner) + (chunks - 1) * slowest_s


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
