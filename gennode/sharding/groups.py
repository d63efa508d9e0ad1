"""Which machines form pipelines together: good beginnings, then moves that make them better."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence

from gennode.sharding.pipeline import Group, Pool

Search = Generator[list[Group], None, list[Group]]
"""Asks for groups to be judged, many at a time; returns disjoint groups."""

# So few machines are grouped in the best of all ways: their subsets are all judged.
EXACT_MACHINES = 8
ROUNDS = 24


def best_groups(pool: Pool, members: Sequence[int]) -> Search:
    """Disjoint groups of `members` that are worth most together, as far as we find them."""
    if len(members) <= EXACT_MACHINES:
        return (yield from exact(pool, members))
    starts = beginnings(pool, members)
    yield sorted({group for start in starts for group in start})
    starts.sort(key=lambda start: -total(pool, start))
    best: list[Group] = []
    for start in starts[:2]:
        found = yield from improved(pool, members, start)
        if not best or total(pool, found) > total(pool, best):
            best = found
    return best


def total(pool: Pool, groups: Iterable[Group]) -> float:
    """What disjoint groups are worth together."""
    worth = 0.0
    for group in groups:
        worth += pool.worth(group)
    return worth


def exact(pool: Pool, members: Sequence[int]) -> Search:
    """The best way to form groups of a few machines, by trying all.

    For every subset: the best of giving up its first machine, or of any group that holds it.
    """
    subsets = [_chosen(members, mask) for mask in range(1 << len(members))]
    yield subsets[1:]
    best = [0.0] * len(subsets)
    choice = [0] * len(subsets)
    for mask in range(1, len(subsets)):
        lowest = mask & -mask
        rest = mask ^ lowest
        best[mask] = best[rest]
        part = rest
        while True:
            group = part | lowest
            value = pool.worth(subsets[group]) + best[mask ^ group]
            if value > best[mask]:
                best[mask], choice[mask] = value, group
            if not part:
                break
            part = (part - 1) & rest
    groups, mask = [], len(subsets) - 1
    while mask:
        if choice[mask]:
            groups.append(subsets[choice[mask]])
        mask ^= choice[mask] or mask & -mask
    return groups


def _chosen(members: Sequence[int], mask: int) -> Group:
    return tuple(sorted(one for place, one in enumerate(members) if mask >> place & 1))


def beginnings(pool: Pool, members: Sequence[int]) -> list[list[Group]]:
    """Ways to begin: large or quick machines first, close together or dealt out evenly."""
    usable = [index for index in members if pool.capacity[index]]
    cost = [one.cost.fixed_s + one.cost.token_s for one in pool.candidates]
    by_size = sorted(usable, key=lambda index: (-pool.capacity[index], cost[index], index))
    by_speed = sorted(usable, key=lambda index: (cost[index], -pool.capacity[index], index))
    by_place = sorted(usable, key=lambda index: (pool.curve[index], index))
    starts = []
    for line in (by_size, by_speed, by_place):
        for slack in (1.0, 1.25, 1.6, 2.2, 3.0):
            starts.append(_filled(pool, line, slack))
    room = sum(pool.capacity[index] for index in usable)
    count = room // max(1, pool.demand.layers)
    while count:
        starts.append(_dealt(pool, by_size, count))
        starts.append(_dealt(pool, by_speed, count))
        count = count * 3 // 4
    return starts


def _filled(pool: Pool, line: Sequence[int], slack: float) -> list[Group]:
    """One group after the other, each from the next machines, until it holds `slack` models."""
    groups: list[Group] = []
    group: list[int] = []
    held = 0
    for index in line:
        group.append(index)
        held += pool.capacity[index]
        if held >= slack * pool.demand.layers:
            groups.append(tuple(sorted(group)))
            group, held = [], 0
    if held >= pool.demand.layers:
        groups.append(tuple(sorted(group)))
    return groups


def _dealt(pool: Pool, line: Sequence[int], count: int) -> list[Group]:
    """Each machine to the group that holds least, until all are full."""
    groups: list[list[int]] = [[] for _ in range(count)]
    held = [0] * count
    for index in line:
        least = min(range(count), key=lambda at: (held[at], at))
        if held[least] >= pool.demand.layers:
            break
        groups[least].append(index)
        held[least] += pool.capacity[index]
    return [tuple(sorted(group)) for group in groups]


def improved(pool: Pool, members: Sequence[int], start: Sequence[Group]) -> Search:
    """Move or exchange machines between groups as long as that helps."""
    groups = [group for group in start if pool.worth(group) > 0]
    for _ in range(ROUNDS):
        spare = sorted(set(members).difference(*groups))
        yield _neighbours(groups, spare)
        changed = _step(pool, groups, spare)
        if changed is None:
            break
        groups = changed
    return groups


def _without(group: Group, index: int) -> Group:
    return tuple(one for one in group if one != index)


def _with(group: Group, index: int) -> Group:
    return tuple(sorted((*group, index)))


def _neighbours(groups: Sequence[Group], spare: Sequence[int]) -> list[Group]:
    everyone = [*spare, *(one for group in groups for one in group)]
    wanted = [(one,) for one in everyone]
    for group in groups:
        others = [one for one in everyone if one not in group]
        wanted += [_with(group, one) for one in others]
        for index in group:
            rest = _without(group, index)
            wanted.append(rest)
            wanted += [_with(rest, one) for one in others]
    for at, group in enumerate(groups):
        wanted += [tuple(sorted(group + other)) for other in groups[:at]]
    return [group for group in wanted if group]


Change = tuple[float, tuple[int, ...], tuple[Group, ...]]
"""What it gains; which groups it replaces; by what."""


def _step(pool: Pool, groups: list[Group], spare: Sequence[int]) -> list[Group] | None:
    """The best changes that don't touch each other; None if none helps."""
    changes = sorted(_changes(pool, groups, spare), key=lambda change: (-change[0], change[1:]))
    replaced: set[int] = set()
    taken: set[int] = set()
    added: list[Group] = []
    for gain, olds, news in changes:
        if gain <= 1e-9 * (1 + total(pool, groups)):
            break
        machines = {one for new in news for one in new}
        if replaced.intersection(olds) or taken & machines:
            continue
        replaced.update(olds)
        taken |= machines
        added += news
    if not replaced and not added:
        return None
    kept = [group for at, group in enumerate(groups) if at not in replaced]
    return sorted(group for group in kept + added if pool.worth(group) > 0)


def _changes(pool: Pool, groups: list[Group], spare: Sequence[int]) -> Iterable[Change]:
    worth = [pool.worth(group) for group in groups]

    def value(group: Group) -> float:
        return pool.worth(group) if group else 0.0

    for one in spare:
        yield value((one,)), (), ((one,),)
    for at, group in enumerate(groups):
        for one in spare:
            more = _with(group, one)
            yield value(more) - worth[at], (at,), (more,)
        for index in group:
            rest = _without(group, index)
            yield value(rest) + value((index,)) - worth[at], (at,), (rest, (index,))
            yield value(rest) - worth[at], (at,), (rest,)
            for one in spare:
                swapped = _with(rest, one)
                yield value(swapped) - worth[at], (at,), (swapped,)
        for other, target in enumerate(groups):
            if other == at:
                continue
            both = worth[at] + worth[other]
            for index in group:
                rest = _without(group, index)
                more = _with(target, index)
                yield value(rest) + value(more) - both, (at, other), (rest, more)
                if other < at:
                    continue
                for one in target:
                    left, right = _with(rest, one), _with(_without(target, one), index)
                    yield value(left) + value(right) - both, (at, other), (left, right)
            if other < at:
                union = tuple(sorted(group + target))
                yield value(union) - both, (other, at), (union,)
