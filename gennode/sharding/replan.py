"""When a whole pool is better planned anew, and everybody moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gennode.sharding.flow.chains import chains_of
from gennode.sharding.flow.worth import worth_of
from gennode.sharding.plan.plan import Plan, plan
from gennode.sharding.rebalance import (
    after,
    hosts_of,
    named,
    next_moves,
    stage_rate,
    uncovered,
)
from gennode.wire.ids import Hop, Span
from gennode.wire.snapshot import Candidate, Demand, Snapshot

# A new plan has to be worth so much more than what there is, and to win back within ten minutes
# what moving costs: pools of strangers do not hold still for much longer.
MIN_GAIN = 0.2
PAYBACK_S = 600.0
_MANY_TIMES = 100.0


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to plan a whole pool anew: `plan` is None if not. `gain`: the share by which the
    new plan's rate exceeds that of what there is, infinite where nothing flows now. `why`, in
    words.
    """

    plan: Plan | None
    gain: float
    why: str


def decide(snapshot: Snapshot, accepted: Sequence[Hop] = ()) -> Decision:
    """Whether it is worth while to plan the pool anew, and everybody to move.

    It is where some layers have nobody and no moves of single peers mend that, or where the new
    plan's predicted rate exceeds that of what is held by `MIN_GAIN`, and what it wins in
    `PAYBACK_S` is more than what is lost while layers are loaded. They are loaded side by side,
    so the slowest decides, and that share of the rate is lost whose hosts move. `accepted`: who
    hosts what by the plan that is being carried out; a new one has to be better than that, too.
    """
    found = plan(snapshot)
    gaps = uncovered(snapshot)
    if found.missing:
        return Decision(None, 0.0, found.missing)
    if gaps:
        mended = snapshot
        for move in next_moves(snapshot):
            mended = after(mended, move)
        if not uncovered(mended):
            return Decision(None, math.inf, "moves of single peers close the gaps")
        return Decision(found, math.inf, f"nobody holds layers {named(gaps)}")
    demand = snapshot.demand
    by_peer = {one.peer: one for one in snapshot.peers}
    held = [(one, one.held) for one in hosts_of(snapshot)]
    now_rate = max(worth_of(held, demand, chains_in(held, demand, found)), _weakest(held, demand))
    aimed = {hop.peer: hop.span for hop in accepted if hop.peer in by_peer}
    if aimed:
        going = [(one, aimed.get(one.peer, one.held)) for one in snapshot.peers]
        now_rate = max(now_rate, worth_of(going, demand, chains_in(going, demand, found)))
    planned = [(by_peer[hop.peer], hop.span) for hop in found.hosts]
    return _weighed(found, worth_of(planned, demand, found.pipelines), now_rate, planned)


def _weakest(hosts: Sequence[tuple[Candidate, Span]], demand: Demand) -> float:
    """Tokens per second that the hosts of the weakest layer could compute.

    `flow` finds less in spans that cut through each other than routers do, by up to three times
    in pools of a thousand. So what is held is given the benefit of the doubt: no rate can be
    higher than this one, but for the time that links take.
    """
    supply = [0.0] * demand.layers
    for one, span in hosts:
        rate = stage_rate(one, span.layers, demand)
        for layer in range(span.start, min(span.end, demand.layers)):
            supply[layer] += rate
    return min(supply, default=0.0)


def _weighed(
    found: Plan, rate: float, now_rate: float, planned: Sequence[tuple[Candidate, Span]]
) -> Decision:
    """Gain against what moving costs."""
    gain = rate / now_rate - 1 if now_rate > 0 else (math.inf if rate > 0 else 0.0)
    if gain < MIN_GAIN:
        more = f"{100 * gain:.0f} % more" if gain >= 0.005 else "nothing more"
        why = f"a new plan would give {more}; less than {100 * MIN_GAIN:.0f} % is not worth it"
        return Decision(None, gain, why)
    moving_s, moved, held = 0.0, 0, 0
    for one, span in planned:
        kept = max(0, min(span.end, one.held.end) - max(span.start, one.held.start))
        moving_s = max(moving_s, (span.layers - kept) * one.move_s)
        moved += one.held.layers - kept
        held += one.held.layers
    won = (rate - now_rate) * max(0.0, PAYBACK_S - moving_s)
    lost = now_rate * moving_s * (moved / max(1, held))
    if won <= lost:
        why = f"moving would take {moving_s:.0f} s and cost more than {PAYBACK_S:.0f} s win back"
        return Decision(None, gain, why)
    more = "tokens, where now there are nearly none"
    if gain < _MANY_TIMES:
        more = f"{100 * gain:.0f} % more"
    return Decision(found, gain, f"a new plan gives {more}")


def chains_in(
    hosts: Sequence[tuple[Candidate, Span]], demand: Demand, found: Plan
) -> tuple[tuple[Hop, ...], ...]:
    """The pipelines of a plan that are there already, and chains of the other hosts."""
    spans = {one.peer: span for one, span in hosts}
    kept = tuple(
        pipeline
        for pipeline in found.pipelines
        if all(hop.peer in spans and spans[hop.peer].covers(hop.span) for hop in pipeline)
    )
    busy = {hop.peer for pipeline in kept for hop in pipeline}
    return kept + chains_of([host for host in hosts if host[0].peer not in busy], demand)
