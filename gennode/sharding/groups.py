"""Which machines form pipelines together: good beginnings, then changes that make them better."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from gennode.sharding.pipeline import Group, Pool

Search = Generator[list[Group], None, list[Group]]
"""Asks for groups to be judged, many at a time; returns disjoint groups."""

# So few machines are grouped in the best of all ways: their subsets are all judged.
EXACT_MACHINES = 8
# How many models' worth of room a group begins with: what exceeds 1 is left for caches. Over
# random pools, 1.25 within a region and the quick machines together came closest.
SLACKS = (1.25, 1.6, 1.0, 1.1, 1.4, 2.2)
# Of so many beginnings, the best after a judgement, all are improved.
IMPROVED_STARTS = 2
# A change must gain a group at least this share: smaller ones are errors of the judgement.
LEAST_GAIN = 1e-4


def best_groups(pool: Pool, members: Sequence[int], effort: int) -> Search:
    """Disjoint groups of `members` that are worth most together, as far as we find them.

    `effort`: about how many groups may be judged.
    """
    if len(members) <= EXACT_MACHINES:
        return (yield from exact(pool, members))
    starts = beginnings(pool, members)
    yield _distinct(group for start in starts for group in start)
    starts.sort(key=lambda start: -total(pool, start))
    best: list[Group] = []
    for start in starts[:IMPROVED_STARTS]:
        found = yield from improved(pool, members, start, effort // IMPROVED_STARTS)
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
    yield subsets
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


def _distinct(groups: Iterable[Group]) -> list[Group]:
    return list(dict.fromkeys(groups))


# -- beginnings --------------------------------------------------------------------------------


def beginnings(pool: Pool, members: Sequence[int]) -> list[list[Group]]:
    """Ways to begin: quick or large machines together, region by region or all alike.

    The last two are how others go about it: the largest first into as few stages as possible,
    and dealt out evenly.
    """
    by_speed = sorted(members, key=lambda one: (pool.layer_s[one], -pool.capacity[one], one))
    by_size = sorted(members, key=lambda one: (-pool.capacity[one], pool.layer_s[one], one))
    starts = [_by_region(pool, by_speed, slack) for slack in SLACKS]
    starts += [_by_region(pool, by_size, slack) for slack in SLACKS[:3]]
    starts += [_filled(pool, by_speed, slack)[0] for slack in SLACKS[:3]]
    starts.append(_filled(pool, by_size, 1.0)[0])
    room = sum(pool.capacity[index] for index in members)
    starts.append(_dealt(pool, by_size, room // max(1, pool.demand.layers)))
    return starts


def _by_region(pool: Pool, line: Sequence[int], slack: float) -> list[Group]:
    """Groups within regions; then of what is left, the nearest regions first."""
    groups: list[Group] = []
    left: list[int] = []
    for region in sorted({pool.region[one] for one in line}):
        here = [one for one in line if pool.region[one] == region]
        found, rest = _filled(pool, here, slack)
        groups += found
        left += rest
    return groups + _filled(pool, left, slack)[0]


def _filled(pool: Pool, line: Sequence[int], slack: float) -> tuple[list[Group], list[int]]:
    """One group after the other, each from the next machines, until it holds `slack` models.

    Also what is left; a last group may hold less, if it holds a model.
    """
    groups: list[Group] = []
    group: list[int] = []
    held = 0
    for index in line:
        group.append(index)
        held += pool.capacity[index]
        if held >= slack * pool.demand.layers:
            groups.append(tuple(sorted(group)))
            group, held = [], 0
    if group and held >= pool.demand.layers:
        groups.append(tuple(sorted(group)))
        group = []
    return groups, group


def _dealt(pool: Pool, line: Sequence[int], count: int) -> list[Group]:
    """Each machine to the group that holds least, until all are full."""
    groups: list[list[int]] = [[] for _ in range(count)]
    held = [0] * count
    for index in line if count else ():
        poorest = min(range(count), key=lambda at: (held[at], at))
        if held[poorest] >= pool.demand.layers:
            break
        groups[poorest].append(index)
        held[poorest] += pool.capacity[index]
    return [tuple(sorted(group)) for group in groups]


# -- changes -----------------------------------------------------------------------------------

Change = tuple[tuple[int, ...], tuple[Group, ...]]
"""Which groups it replaces, by their place; by what."""
Kind = Callable[[Pool, Sequence[Group], Sequence[int]], Iterator[Change]]
"""All changes of one kind, of groups and spare machines."""


def improved(pool: Pool, members: Sequence[int], start: Iterable[Group], effort: int) -> Search:
    """Change groups as long as that helps, small changes first (variable neighbourhood descent,
    Mladenović and Hansen, Computers & Operations Research 24, 1997).
    """
    groups = [group for group in start if pool.worth(group) > 0]
    kind = 0
    while kind < len(KINDS) and effort > 0:
        spare = sorted(set(members).difference(*groups))
        changes = list(KINDS[kind](pool, groups, spare))
        wanted = pool.unknown(group for _, news in changes for group in news)[:effort]
        effort -= len(wanted)
        yield wanted
        after = _changed(pool, groups, changes)
        kind = 0 if after else kind + 1
        groups = after or groups
    return groups


def _changed(pool: Pool, groups: Sequence[Group], changes: Iterable[Change]) -> list[Group] | None:
    """Groups after the best changes that don't touch each other; None if none helps."""
    worth = [pool.worth(group) for group in groups]
    found: list[tuple[float, Change]] = []
    for change in changes:
        before = after = 0.0
        for place in change[0]:
            before += worth[place]
        for group in change[1]:
            after += pool.worth(group)
        if after - before > LEAST_GAIN * after:
            found.append((before - after, change))
    if not found:
        return None
    replaced: set[int] = set()
    taken: set[int] = set()
    added: list[Group] = []
    for _, (olds, news) in sorted(found):
        machines = {one for group in news for one in group}
        if replaced.isdisjoint(olds) and taken.isdisjoint(machines):
            replaced.update(olds)
            taken |= machines
            added += news
    kept = [group for place, group in enumerate(groups) if place not in replaced]
    return sorted(group for group in kept + added if pool.worth(group) > 0)


def _without(group: Group, index: int) -> Group:
    return tuple(one for one in group if one != index)


def _with(group: Group, index: int) -> Group:
    return tuple(sorted((*group, index)))


def _near(pool: Pool, group: Group, others: Sequence[int]) -> list[int]:
    """Those of others that are in a region of the group's; all, if they are few."""
    if len(others) <= EXACT_MACHINES:
        return list(others)
    regions = {pool.region[one] for one in group}
    return [one for one in others if pool.region[one] in regions]


def _takes_and_drops(pool: Pool, groups: Sequence[Group], spare: Sequence[int]) -> Iterator[Change]:
    line = sorted(spare, key=lambda one: (pool.layer_s[one], one))
    for slack in SLACKS[:3]:
        for group in _by_region(pool, line, slack):
            yield (), (group,)
    for place, group in enumerate(groups):
        for index in group:
            yield (place,), (_without(group, index),)
            yield (place,), (_without(group, index), (index,))
        for one in _near(pool, group, spare):
            yield (place,), (_with(group, one),)


def _moves_and_merges(
    pool: Pool, groups: Sequence[Group], spare: Sequence[int]
) -> Iterator[Change]:
    for place, group in enumerate(groups):
        for other, target in enumerate(groups):
            near = _near(pool, target, group) if other != place else []
            if near and other < place:
                yield (other, place), (tuple(sorted(group + target)),)
            for index in near:
                yield (place, other), (_without(group, index), _with(target, index))


def _swaps_with_spare(
    pool: Pool, groups: Sequence[Group], spare: Sequence[int]
) -> Iterator[Change]:
    for place, group in enumerate(groups):
        for one in _near(pool, group, spare):
            for index in group:
                yield (place,), (_with(_without(group, index), one),)


def _swaps(pool: Pool, groups: Sequence[Group], spare: Sequence[int]) -> Iterator[Change]:
    for place, group in enumerate(groups):
        for other, target in enumerate(groups[:place]):
            for index in _near(pool, target, group):
                for one in _near(pool, group, target):
                    left, right = _with(_without(group, index), one), _without(target, one)
                    yield (other, place), (left, _with(right, index))


KINDS: tuple[Kind, ...] = (_takes_and_drops, _moves_and_merges, _swaps_with_spare, _swaps)
