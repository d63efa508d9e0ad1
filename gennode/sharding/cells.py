"""Large pools: cells of neighbours are planned each on its own, so that time grows with peers."""

from __future__ import annotations

from collections.abc import Sequence

from gennode.sharding.groups import Search, best_groups, improved
from gennode.sharding.pipeline import Group, Pool

# A pool up to this size is one cell; larger ones are cut into cells of about CELL_MACHINES.
WHOLE_MACHINES = 40
CELL_MACHINES = 28
# Groups judged: some for the pool, and some for each machine.
EFFORT = 3000
EFFORT_PER_MACHINE = 6
# Shares of the effort: cells, then what they left over, then cells that overlap the first.
ROUNDS = 2


def grouped(pool: Pool) -> list[Group]:
    """Disjoint groups of a pool's machines that are worth most together, as far as we find."""
    usable = [one for one, layers in enumerate(pool.capacity) if layers]
    line = sorted(usable, key=lambda one: (pool.region[one], pool.curve[one], one))
    count = len(line)
    if not count:
        return []
    each = EFFORT_PER_MACHINE + EFFORT // count
    if count <= WHOLE_MACHINES:
        return _together(pool, [best_groups(pool, line, each * count)])
    searches = [best_groups(pool, cell, each * len(cell)) for cell in _cells(line)]
    groups = _together(pool, searches)
    for turn in range(ROUNDS):
        groups = _again(pool, line, groups, each, turn)
    return groups


def _cells(line: Sequence[int]) -> list[list[int]]:
    count = max(1, round(len(line) / CELL_MACHINES))
    edges = [len(line) * at // count for at in range(count + 1)]
    return [list(line[edges[at] : edges[at + 1]]) for at in range(count)]


def _again(
    pool: Pool, line: Sequence[int], groups: Sequence[Group], each: int, turn: int
) -> list[Group]:
    """Improve groups in cells that lie across the edges of the first; spare machines too."""
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
        members = [one for thing in cell for one in thing]
        start = [thing for thing in cell if thing in known]
        searches.append(improved(pool, members, start, each * len(members) // 2))
    return _together(pool, searches)


def _together(pool: Pool, searches: Sequence[Search]) -> list[Group]:
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
        pool.judge(wanted)
        running = still
    return sorted(group for groups in results for group in groups)
