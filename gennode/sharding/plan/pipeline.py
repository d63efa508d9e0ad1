"""One pipeline: the order of its machines around the ring, and which layers each computes."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from heapq import nsmallest

from gennode.sharding.plan.fill import judge
from gennode.sharding.plan.rows import Array, facts_of
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import Hop, Span
from gennode.wire.snapshot import Candidate, Demand

Group = tuple[int, ...]
"""Machines of one pipeline: indices into the pool, rising."""

Search = Generator[list[Group], None, list[Group]]
"""Asks for groups to be judged, many at a time; returns disjoint groups."""

# In pools of so few machines every group's split is polished: groups whose caches are short seem
# worth half of what they are without.
POLISHED_MACHINES = 16
# Rings longer than this are only ordered along a curve: improving them is quadratic.
MAX_IMPROVED_RING = 24
RING_ROUNDS = 3
# Round trips within a country or so are shorter, those across oceans longer.
REGION_S = 0.05
MAX_REGIONS = 32
# Lines that send a frame in less are as good as any.
QUICK_FRAME_S = 1e-5
LINE_STEP = 4.0
MAX_LINE_STEP = 32
_CURVE_LEVELS = 16
_CURVE_CELLS = 1 << _CURVE_LEVELS
_AXIS_S = 10.0


@dataclass(frozen=True)
class Judged:
    """A pipeline: its machines in ring order, what it is worth and the layers of each.

    `worth` is below 0 if the machines can't hold the model.
    """

    ring: Group
    worth: float
    layers: tuple[int, ...]


NOTHING = Judged((), -1.0, ())


class Pool:
    """Machines that could host layers, and what groups of them would be worth.

    Remembers what it has judged; `evaluations` counts what was not known.
    """

    def __init__(self, candidates: Sequence[Candidate], demand: Demand) -> None:
        self.candidates = candidates
        self.demand = demand
        self.evaluations = 0
        self._facts: Array = facts_of(candidates, demand)
        self.capacity = [int(layers) for layers in self._facts[4, :-1]]
        self.layer_s = [one.cost.fixed_s + one.cost.token_s for one in candidates]
        self.line = [line_step(frame_s) for frame_s in self._facts[6, :-1].tolist()]
        self.curve = [curve_index(one.coordinate) for one in candidates]
        self._places = [
            (one.coordinate.x_s, one.coordinate.y_s, one.coordinate.height_s) for one in candidates
        ]
        self.region = regions([one.coordinate for one in candidates])
        self._known: dict[Group, Judged] = {(): NOTHING}

    def holds(self, group: Iterable[int]) -> bool:
        """Whether the machines have room for the model and one session's caches."""
        return sum(self.capacity[index] for index in group) >= self.demand.layers

    def judged(self, group: Group) -> Judged:
        """What is known of a group that was asked for."""
        return self._known[group]

    def worth(self, group: Group) -> float:
        """What a group is worth; 0 if it was not judged or can't hold the model."""
        return max(0.0, self._known.get(group, NOTHING).worth)

    def best(self, count: int) -> list[Group]:
        """So many of the groups that were judged: those that are worth most."""
        worthy = [(-found.worth, group) for group, found in self._known.items() if found.worth > 0]
        return [group for _, group in nsmallest(count, worthy)]

    def unknown(self, groups: Iterable[Group]) -> list[Group]:
        """Those of some groups that were not judged yet."""
        return [group for group in dict.fromkeys(groups) if group not in self._known]

    def judge(self, groups: Iterable[Group], *, careful: bool = False) -> None:
        """Find out what groups are worth, all at once; with `careful`, better and slower."""
        lines, ways_s, wanted = [], [], []
        for group in self.unknown(groups):
            if len(group) > self.demand.layers or not self.holds(group):
                self._known[group] = NOTHING
                continue
            ring, way_s = self.ring(group)
            wanted.append(group)
            lines.append(ring)
            ways_s.append(way_s)
        self.evaluations += len(wanted)
        few = len(self.candidates) <= POLISHED_MACHINES
        worths, splits = judge(self._facts, self.demand, lines, ways_s, careful, few)
        for group, line, worth, split in zip(wanted, lines, worths, splits, strict=True):
            self._known[group] = Judged(line, worth, tuple(split[: len(line)]))

    def refine(self, groups: Sequence[Group]) -> None:
        """Judge groups again, as well as we can."""
        for group in groups:
            del self._known[group]
        self.judge(groups, careful=True)

    def ring(self, group: Group) -> tuple[Group, float]:
        """A short way around the machines, and half of its round trips in seconds.

        Along a space-filling curve (Platzman and Bartholdi, "Spacefilling curves and the planar
        travelling salesman problem", Journal of the ACM 36, 1989), then 2-opt.
        """
        order = sorted(group, key=lambda index: (self.curve[index], index))
        if len(order) < 2:
            return tuple(order), 0.0
        if 3 < len(order) <= MAX_IMPROVED_RING:
            way = _improved([self._places[index] for index in order])
            order = [order[at] for at in way]
        way_s = 0.0
        before = self._places[order[-1]]
        for index in order:
            place = self._places[index]
            way_s += _apart_s(before, place) / 2 + place[2]
            before = place
        return tuple(order), way_s

    def hops(self, group: Group) -> tuple[Hop, ...]:
        """The pipeline of a group; it begins where machines keep most of what they hold."""
        found = self._known[group]
        pairs = list(zip(found.ring, found.layers, strict=True))
        ways = [pairs, pairs[::-1]] if len(pairs) <= MAX_IMPROVED_RING else [pairs]
        turned = [[*way[at:], *way[:at]] for way in ways for at in range(len(way))]
        if len(pairs) > MAX_IMPROVED_RING:
            turned = turned[:1]
        best = min(turned, key=lambda way: (-self._kept(way), self.candidates[way[0][0]].peer))
        hops, end = [], 0
        for index, layers in best:
            hops.append(Hop(self.candidates[index].peer, Span(end, end + layers)))
            end += layers
        return tuple(hops)

    def _kept(self, stages: Sequence[tuple[int, int]]) -> int:
        """How many layers machines need not load, if these are the stages in order."""
        end = kept = 0
        for index, layers in stages:
            held = self.candidates[index].held
            kept += max(0, min(end + layers, held.end) - max(end, held.start))
            end += layers
        return kept


Place = tuple[float, float, float]
"""A coordinate's x, y and height in seconds."""


def _apart_s(one: Place, other: Place) -> float:
    """A round trip's seconds between two places, heights aside: they count in any order."""
    x_s, y_s = one[0] - other[0], one[1] - other[1]
    return math.sqrt(x_s * x_s + y_s * y_s)


def _improved(places: Sequence[Place]) -> list[int]:
    """The order of a ring after 2-opt: two links are crossed over while that is shorter."""
    count = len(places)
    far = [[0.0] * count for _ in places]
    for at, place in enumerate(places):
        for before in range(at):
            far[at][before] = far[before][at] = _apart_s(place, places[before])
    way = list(range(count))
    for _ in range(RING_ROUNDS):
        changed = False
        for first in range(count - 2):
            one, two = way[first], way[first + 1]
            for last in range(first + 2, count - (first == 0)):
                three, four = way[last], way[(last + 1) % count]
                if far[one][three] + far[two][four] + 1e-12 < far[one][two] + far[three][four]:
                    way[first + 1 : last + 1] = way[first + 1 : last + 1][::-1]
                    two = way[first + 1]
                    changed = True
        if not changed:
            break
    return way


def regions(places: Sequence[Coordinate]) -> list[int]:
    """A number for each place: near ones share it. Those that come first lead the others."""
    leaders: list[Coordinate] = []
    numbers = []
    for place in places:
        far_s = [place.rtt_s(leader) for leader in leaders]
        nearest = min(range(len(leaders)), key=far_s.__getitem__, default=-1)
        if len(leaders) < MAX_REGIONS and (nearest < 0 or far_s[nearest] > REGION_S):
            nearest = len(leaders)
            leaders.append(place)
        numbers.append(nearest)
    return numbers


def line_step(frame_s: float) -> int:
    """How thin a line is, by the time that a frame takes, in steps of `LINE_STEP`."""
    step = 0
    while frame_s > QUICK_FRAME_S and step < MAX_LINE_STEP:
        frame_s /= LINE_STEP
        step += 1
    return step


def curve_index(place: Coordinate) -> int:
    """Where a point lies along Hilbert's curve, which keeps neighbours together."""
    x, y = (
        min(_CURVE_CELLS - 1, max(0, int((value_s + _AXIS_S) / (2 * _AXIS_S) * _CURVE_CELLS)))
        for value_s in (place.x_s, place.y_s)
    )
    index, side = 0, _CURVE_CELLS // 2
    while side:
        right, up = int(x & side > 0), int(y & side > 0)
        index += side * side * ((3 * right) ^ up)
        if not up:
            if right:
                x, y = _CURVE_CELLS - 1 - x, _CURVE_CELLS - 1 - y
            x, y = y, x
        side //= 2
    return index
