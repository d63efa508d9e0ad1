"""Large pools: cells of neighbours are planned each on its own, so that time grows with peers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from gennode.sharding.plan.groups import EXACT_MACHINES, exact, improved, total
from gennode.sharding.plan.lines import ALL_LENGTHS, FEW_LENGTHS, cut, dealt, orders
from gennode.sharding.plan.pipeline import Group, Pool, Search

# Pools up to this size are improved as a whole, from several beginnings; larger ones in cells.
WHOLE_MACHINES = 64
BEGINNINGS = 3
CELL_MACHINES = 28
# Pools of at most so many machines begin from so many lines, all below the first.
ALL_ORDERS_MACHINES = 100
ORDERS = ((400, 3), (1 << 30, 1))
# Groups judged while improving: some for the pool, and some for each machine.
EFFORT = 3500
EFFORT_PER_MACHINE = 1
ROUNDS = 2


def grouped(pool: Pool) -> list[Group]:
    """Disjoint groups of a pool's machines that are worth most together, as far as we find."""
    members = [one for one, layers in enumerate(pool.capacity) if layers]
    count = len(members)
    if count <= EXACT_MACHINES:
        return _together(pool, [exact(pool, members)], careful=True)[0]
    each = EFFORT_PER_MACHINE + EFFORT // count
    starts = _beginnings(pool, members)
    if count > WHOLE_MACHINES:
        groups = starts[0]
        for turn in range(ROUNDS):
            groups = _again(pool, members, groups, each, turn)
        return groups
    effort = each * count // BEGINNINGS
    searches = [improved(pool, members, start, effort) for start in starts[:BEGINNINGS]]
    return max(_together(pool, searches), key=lambda found: total(pool, found))


def _beginnings(pool: Pool, members: Sequence[int]) -> list[list[Group]]:
    """Several ways to group machines, the one that is worth most first."""
    small = len(members) <= ALL_ORDERS_MACHINES
    lines = orders(pool, members)
    if not small:
        lines = islice(lines, next(few for most, few in ORDERS if len(members) <= most))
    lengths = ALL_LENGTHS if small else FEW_LENGTHS
    starts = _together(pool, [cut(pool, line, lengths) for line in lines])
    if small:
        starts.append(dealt(pool, members))
        pool.judge(starts[-1])
    distinct = sorted({tuple(start) for start in starts})
    return sorted(map(list, distinct), key=lambda start: -total(pool, start))


def _again(
    pool: Pool, members: Sequence[int], groups: Sequence[Group], each: int, turn: int
) -> list[Group]:
    """Improve groups in cells that lie across the edges of the first; spare machines too."""
    line = sorted(members, key=lambda one: (pool.region[one], pool.curve[one], one))
    place = {one: at for at, one in enumerate(line)}
    spare = sorted(set(line).difference(*groups), key=place.__getitem__)
    things: list[Group] = [*groups, *((one,) for one in spare)]
    things.sort(key=lambda group: (place[group[len(group) // 2]], group))
    cells: list[list[Group]] = [[]]
    held = CELL_MACHINES // 2 if not turn % 2 else 0
    for thing in things:
        if held >= CELL_MACHINES:
            cells.append([])
            held = 0
        cells[-1].append(thing)
        held += len(thing)
    known = set(groups)
    searches = []
    for cell in cells:
        inside = [one for thing in cell for one in thing]
        start = [thing for thing in cell if thing in known]
        searches.append(improved(pool, inside, start, each * len(inside) // ROUNDS))
    found = _together(pool, searches)
    return sorted(group for groups in found for group in groups)


def _together(
    pool: Pool, searches: Sequence[Search], *, careful: bool = False
) -> list[list[Group]]:
    """Run searches side by side: what they ask for in one round is judged at once."""
    results: list[list[Group]] = [[] for _ in searches]
    running = list(enumerate(searches))
    while running:
        wanted: list[Group] = []
        still = []
        for at, search in running:
            try:
                wanted += next(search)
            except StopIteration as end:
                results[at] = end.value
            else:
                still.append((at, search))
        pool.judge(wanted, careful=careful)
        running = still
    return [sorted(groups) for groups in results]
