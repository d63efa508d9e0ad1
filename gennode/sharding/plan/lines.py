"""Beginnings of a plan: machines in a line, like beside like, cut into pipelines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gennode.sharding.plan.pipeline import Group, Pool, Search

# A pipeline is cut as short as its machines' room allows, or so many machines longer.
FEW_LENGTHS = (0, 1, 2, 4)
ALL_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8)
# Pieces begin this often in a pipeline's length, at least: that bounds the work.
LONG_STAGES = 16


def orders(pool: Pool, members: Sequence[int]) -> Iterator[list[int]]:
    """Ways to put machines in line, the best first: region by region, then like beside like.

    A pipeline's slowest line and least memory hold all of its machines back, so those that are
    alike in one of these belong together.
    """
    region, layer_s, room = pool.region, pool.layer_s, pool.capacity
    fine, coarse = pool.line, [step // 2 for step in pool.line]
    yield sorted(members, key=lambda one: (region[one], fine[one], layer_s[one], one))
    yield sorted(members, key=lambda one: (region[one], layer_s[one], one))
    yield sorted(members, key=lambda one: (region[one], coarse[one], layer_s[one], one))
    yield sorted(members, key=lambda one: (region[one], -room[one], layer_s[one], one))
    yield sorted(members, key=lambda one: (region[one], fine[one], -room[one], one))
    yield sorted(members, key=lambda one: (region[one], pool.curve[one], one))
    yield sorted(members, key=lambda one: (-room[one], layer_s[one], one))
    yield sorted(members, key=lambda one: (layer_s[one], -room[one], one))


def cut(pool: Pool, line: Sequence[int], lengths: Sequence[int]) -> Search:
    """The best way to cut a line into pipelines, or to leave machines out, by dynamic
    programming over where pipelines end.

    `lengths`: how many machines more than the fewest that hold the model a pipeline may have.
    """
    ending: list[list[tuple[int, Group]]] = [[] for _ in range(len(line) + 1)]
    for first, end in pieces(pool, line, lengths):
        ending[end].append((first, tuple(sorted(line[first:end]))))
    yield [group for pieces in ending for _, group in pieces]
    best = [0.0] * len(ending)
    last: list[tuple[int, Group] | None] = [None] * len(ending)
    for end in range(1, len(ending)):
        best[end] = best[end - 1]
        for first, group in ending[end]:
            value = best[first] + pool.worth(group)
            if value > best[end]:
                best[end], last[end] = value, (first, group)
    groups = []
    end = len(line)
    while end:
        piece = last[end]
        if piece is None:
            end -= 1
        else:
            end = piece[0]
            groups.append(piece[1])
    return sorted(groups)


def pieces(pool: Pool, line: Sequence[int], lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where pieces of the line begin and end that hold the model.

    Where many machines make one pipeline, not every one of them begins a piece.
    """
    end = held = 0
    next_first = 0
    for first, index in enumerate(line):
        while end < len(line) and held < pool.demand.layers:
            held += pool.capacity[line[end]]
            end += 1
        if held < pool.demand.layers:
            return
        if first >= next_first:
            next_first = first + max(1, (end - first) // LONG_STAGES)
            for more in lengths:
                if end + more <= len(line):
                    yield first, end + more
        held -= pool.capacity[index]


def dealt(pool: Pool, members: Sequence[int]) -> list[Group]:
    """As many groups as there may be room for: the largest machine to the group that holds least.

    The most groups are NP-hard to find (bin covering); if this many can't be filled, fewer are.
    """
    line = sorted(members, key=lambda one: (-pool.capacity[one], pool.layer_s[one], one))
    count = sum(pool.capacity[one] for one in line) // max(1, pool.demand.layers)
    while count:
        groups: list[list[int]] = [[] for _ in range(count)]
        held = [0] * count
        for index in line:
            poorest = min(range(count), key=lambda at: (held[at], at))
            if held[poorest] >= pool.demand.layers:
                break
            groups[poorest].append(index)
            held[poorest] += pool.capacity[index]
        if min(held) >= pool.demand.layers:
            return [tuple(sorted(group)) for group in groups]
        count = min(count - 1, count * 9 // 10)
    return []
