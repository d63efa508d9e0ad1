"""One pool, three placements, one judge: how much each achieves at the same latency.

"At equal latency": the rival chooses. Of the limits on a token's time from 25 ms to 10 s, each
√2 times the one before, it gets the least at which it reaches `ENOUGH` of what it reaches with
10 s. Tighter limits cost it rate and looser ones gain it little: it is the point that whoever
runs it would pick. Ours is then planned for that limit, and `flow` judges both at it. Latency at
equal throughput is the reverse: the least limit at which ours, as it was planned for the other,
still gives the rival's rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import _optimum, _parallax, _petals
from bench._pools import MODELS, Pool, pool_of
from gennode.errors import LocalError
from gennode.sharding.flow.flow import flow
from gennode.sharding.plan.plan import Plan, plan
from gennode.wire.ids import Hop, Span
from gennode.wire.snapshot import Candidate

LIMITS_S = (*(0.025 * 2 ** (step / 2) for step in range(17)), 10.0)
ENOUGH = 0.9
LATENCY_UP_TO = 16  # peers: the reverse asks for several more judgements
MAX_OPTIMUM_LIMIT_S = 100.0

# All that a planner's own bugs raise; the rest (no memory, say) ends the bench.
RAISED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LocalError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

Hosts = Sequence[tuple[Candidate, Span]]
Pipelines = Sequence[Sequence[Hop]]


class PlannerError(Exception):
    """Our planner raised, or returned what it must not."""


@dataclass(frozen=True)
class Task:
    """A pool by its seed, size and model; `optimum`: to be compared with that and nothing else."""

    seed: int
    size: int
    model: int
    optimum: bool = False

    def pool(self) -> Pool:
        """The pool itself."""
        return pool_of(self.seed, self.size, MODELS[self.model])

    def __str__(self) -> str:
        return f"seed={self.seed} size={self.size} model={MODELS[self.model].name}"


@dataclass(frozen=True)
class Duel:
    """Ours and a rival, tokens per second at the rival's limit.

    `ours_limit_s`: at which ours gives the rival's rate; 0 if that was not looked for.
    """

    rival: str
    limit_s: float
    theirs: float
    ours: float
    ours_limit_s: float = 0.0

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        return self.ours / self.theirs


@dataclass(frozen=True)
class Result:
    """What became of a task.

    `alone`: rivals that placed nothing that works. `optimum`: our share of it; None if the pool
    has none.
    """

    task: Task
    fits: bool
    crash: str = ""
    parallax_crashed: bool = False
    duels: tuple[Duel, ...] = ()
    alone: tuple[str, ...] = ()
    optimum: float | None = None


def run(task: Task) -> Result:
    """Judge one pool."""
    pool = task.pool()
    try:
        return _optimum_of(task, pool) if task.optimum else _duels(task, pool)
    except PlannerError as error:
        return Result(task, pool.layers_fit, crash=str(error))


def _duels(task: Task, pool: Pool) -> Result:
    if not pool.layers_fit:
        _planned(pool, pool.demand.step_limit_s)
        return Result(task, fits=False)
    hosts, pipelines = _parallax.placed(pool)
    rivals: tuple[tuple[str, Hosts, Pipelines], ...] = (
        ("parallax", hosts, pipelines),
        ("petals", _petals.placed(pool, task.seed), ()),
    )
    duels = []
    alone = []
    plans: dict[float, Plan] = {}
    for rival, held, meant in rivals:
        duel = _duel(pool, rival, held, meant, plans)
        if duel is None:
            alone.append(rival)
        else:
            duels.append(duel)
    return Result(
        task,
        fits=True,
        parallax_crashed=_parallax.crashes(pool),
        duels=tuple(duels),
        alone=tuple(alone),
    )


def _duel(
    pool: Pool, rival: str, hosts: Hosts, pipelines: Pipelines, plans: dict[float, Plan]
) -> Duel | None:
    """None if the rival's placement serves nobody, however long they wait.

    `plans`: ours by limit, as far as they were made.
    """
    most = _rate(pool, hosts, LIMITS_S[-1], pipelines)
    if most <= 0:
        return None
    rates = {LIMITS_S[-1]: most}

    def is_enough(limit_s: float) -> bool:
        rates[limit_s] = _rate(pool, hosts, limit_s, pipelines)
        return rates[limit_s] >= ENOUGH * most

    limit_s = _least(LIMITS_S, is_enough)
    if limit_s not in plans:
        plans[limit_s] = _planned(pool, limit_s)
    made = plans[limit_s]
    ours_hosts = _hosts_of(pool, made)
    ours = _rate(pool, ours_hosts, limit_s, made.pipelines)
    ours_limit_s = 0.0
    if len(pool.candidates) <= LATENCY_UP_TO and ours >= rates[limit_s]:
        ours_limit_s = _least(
            [one for one in LIMITS_S if one <= limit_s],
            lambda one: _rate(pool, ours_hosts, one, made.pipelines) >= rates[limit_s],
        )
    return Duel(rival, limit_s, rates[limit_s], ours, ours_limit_s)


def _least(limits_s: Sequence[float], is_enough: Callable[[float], bool]) -> float:
    """The first that is enough, by halving; the last one is known to be."""
    low, high = 0, len(limits_s) - 1
    while low < high:
        middle = (low + high) // 2
        if is_enough(limits_s[middle]):
            high = middle
        else:
            low = middle + 1
    return limits_s[high]


def _rate(pool: Pool, hosts: Hosts, limit_s: float, pipelines: Pipelines) -> float:
    return flow(hosts, pool.demand, limit_s, pipelines).rate_token_s


def _optimum_of(task: Task, pool: Pool) -> Result:
    """What flows through our placement as a share of the worth of the best pipelines, at the
    first limit that some can meet."""
    limit_s = pool.demand.step_limit_s
    while limit_s < MAX_OPTIMUM_LIMIT_S:
        demand = pool.model.demand(limit_s)
        best, groups = _optimum.disjoint(pool.candidates, demand)
        if _met(pool, groups, limit_s):
            made = _planned(pool, limit_s)
            ours = _rate(pool, _hosts_of(pool, made), limit_s, made.pipelines)
            return Result(task, fits=pool.layers_fit, optimum=ours / best)
        limit_s *= 2
    _planned(pool, pool.demand.step_limit_s)
    return Result(task, fits=pool.layers_fit)


def _met(pool: Pool, pipelines: Pipelines, limit_s: float) -> bool:
    by_peer = {one.peer: one for one in pool.candidates}
    hosts = [(by_peer[hop.peer], hop.span) for pipeline in pipelines for hop in pipeline]
    return _rate(pool, hosts, limit_s, pipelines) > 0


def _planned(pool: Pool, limit_s: float) -> Plan:
    """Our plan; PlannerError if there is none, or it does not do what plans promise."""
    try:
        made = plan(pool.snapshot(limit_s))
    except RAISED as error:
        raise PlannerError(repr(error)) from error
    by_peer = {one.peer: one for one in pool.candidates}
    for hop in made.hosts:
        one = by_peer[hop.peer]
        if hop.span.layers > one.capacity_layers or hop.span.end > pool.demand.layers:
            raise PlannerError(f"{hop.peer} can't hold {hop.span}")
    if bool(made.missing) == pool.layers_fit:
        raise PlannerError(f"says that it lacks {made.missing!r}")
    return made


def _hosts_of(pool: Pool, made: Plan) -> Hosts:
    by_peer = {one.peer: one for one in pool.candidates}
    return [(by_peer[hop.peer], hop.span) for hop in made.hosts]
