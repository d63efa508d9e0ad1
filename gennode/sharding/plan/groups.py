"""Which machines form pipelines together: all ways for a few, changes that help for more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from gennode.sharding.plan.lines import FEW_LENGTHS, orders, pieces
from gennode.sharding.plan.pipeline import Group, Pool, Search

# So few machines are grouped in the best of all ways: their subsets are all judged.
EXACT_MACHINES = 8
# Longer pipelines are left as they are: there are too many ways to change them.
MAX_CHANGED = 24
# Spare machines are put in line in so many ways to form groups of their own.
SPARE_ORDERS = 3
# A change must gain a group at least this share: smaller ones are errors of the judgement.
LEAST_GAIN = 1e-4


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


# -- changes -----------------------------------------------------------------------------------

Change = tuple[tuple[int, ...], tuple[Group, ...]]
"""Which groups it replaces, by their place; by what."""
Kind = Callable[[Pool, Sequence[Group], Sequence[int]], Iterator[Change]]
"""All changes of one kind, of groups and spare machines."""


def improved(pool: Pool, members: Sequence[int], start: Iterable[Group], effort: int) -> Search:
    """Change groups as long as that helps, small changes first (variable neighbourhood descent,
    Mladenović and Hansen, Computers & Operations Research 24, 1997).
    """
    worthy = [group for group in start if pool.worth(group) > 0]
    groups = [group for group in worthy if len(group) <= MAX_CHANGED]
    long = [group for group in worthy if len(group) > MAX_CHANGED]
    kind = 0
    while kind < len(KINDS) and effort > 0:
        spare = sorted(set(members).difference(*groups, *long))
        changes = list(KINDS[kind](pool, groups, spare))
        wanted = pool.unknown(group for _, news in changes for group in news)
        wanted = wanted[:: -(-len(wanted) // effort) or 1]
        effort -= len(wanted)
        yield wanted
        after = _changed(pool, groups, changes)
        kind = 0 if after else kind + 1
        groups = after or groups
    return groups + long


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
    for line in islice(orders(pool, spare), SPARE_ORDERS):
        for first, end in pieces(pool, line, FEW_LENGTHS[:2]):
            yield (), (tuple(sorted(line[first:end])),)
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
