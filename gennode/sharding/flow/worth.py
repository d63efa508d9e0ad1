"""What a placement is worth: what flows within the step limit, or how far it misses that."""

from __future__ import annotations

from collections.abc import Sequence

from gennode.sharding.flow.flow import flow
from gennode.wire.ids import Hop, Span
from gennode.wire.snapshot import Candidate, Demand

# Where no token keeps to the step limit, what longer limits give is compared: so many doublings.
_DOUBLINGS = 8


def worth_of(
    hosts: Sequence[tuple[Candidate, Span]],
    demand: Demand,
    pipelines: Sequence[Sequence[Hop]],
) -> float:
    """What flows, times the square of how far that misses the step limit, as in `predict.worth`."""
    rate, limit_s = flowing(hosts, demand, pipelines)
    share = demand.step_limit_s / limit_s
    return rate * share * share


def flowing(
    hosts: Sequence[tuple[Candidate, Span]],
    demand: Demand,
    pipelines: Sequence[Sequence[Hop]],
) -> tuple[float, float]:
    """Tokens per second within the step limit, or within the least multiple of it (by twos) that
    some keep to; and that limit."""
    limit_s = demand.step_limit_s
    for _ in range(_DOUBLINGS):
        rate = flow(hosts, demand, limit_s, pipelines).rate_token_s
        if rate > 0:
            return rate, limit_s
        limit_s *= 2
    return 0.0, limit_s
