"""Least-time paths through hosts whose spans overlap: who computes which layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import Span

# So many hosts are considered per stretch of layers, and as many first hosts: with more, those
# that are best for one first host, its neighbours above all.
SHORTLIST = 32

# What `whole` charges for a layer that a path leaves unused, as a multiple of computing it: more
# than a path could gain by taking a quicker host that does not fit.
_WASTE = 10.0
_NEVER_S = 1e9  # below infinity, and above all that can be

_Floats = NDArray[np.float64]
_Places = NDArray[np.intp]


class Visit(NamedTuple):
    """One host on a path, by its place in the list of hosts, and the layers it computes."""

    place: int
    start: int
    end: int


class Paths:
    """Hosts by where they are and what they hold, with the prices in seconds that they have now.

    A path of least time changes hosts only where some span starts or ends, so the layers are
    cut there into stretches. Only elementwise arithmetic and exact minima: all machines find
    the same paths. Ties go to the first host.
    """

    def __init__(self, hosts: Sequence[tuple[Coordinate, Span]], layers: int) -> None:
        self._layers = layers
        self._x_s = np.array([where.x_s for where, _ in hosts], dtype=np.float64)
        self._y_s = np.array([where.y_s for where, _ in hosts], dtype=np.float64)
        self._height_s = np.array([where.height_s for where, _ in hosts], dtype=np.float64)
        self._coming_s, self._layer_s, self._send_s = np.zeros((3, len(hosts)))
        self._width = np.array([span.layers for _, span in hosts], dtype=np.float64)
        cuts = {0, layers} | {cut for _, span in hosts for cut in span}
        self._cuts = sorted(cut for cut in cuts if 0 <= cut <= layers)
        self._starts = np.array([span.start for _, span in hosts], dtype=np.intp)
        self._ends = np.array([span.end for _, span in hosts], dtype=np.intp)
        self._cover: list[_Places] = [
            np.flatnonzero((self._starts <= cut) & (self._ends > cut)) for cut in self._cuts[:-1]
        ]

    def way_s(self, places: Sequence[int]) -> float:
        """Seconds on the way around so many hosts, half a round trip each; 0 for one."""
        total_s = 0.0
        if len(places) > 1:
            around = self._ways_s(np.array(places), np.array([*places[1:], places[0]]))
            for index in range(len(places)):
                total_s += float(around[index, index])
        return total_s

    def price(self, place: int, coming_s: float, layer_s: float, send_s: float) -> None:
        """What a token takes at a host from now on: to come at all, per layer, to be sent on."""
        self._coming_s[place] = coming_s
        self._layer_s[place] = layer_s
        self._send_s[place] = send_s

    def least(
        self, usable: Sequence[bool], limit_s: float, *, whole: bool = False
    ) -> list[tuple[Visit, ...]]:
        """Paths that share no host and take at most `limit_s`: the least one first; none: empty.

        The owner is on the way from the last host to the first, as in `predict.step_s`.
        `whole`: those first that leave few layers of their hosts over, in all `_WASTE` times
        the time that these would take: parts that are left over serve few others.
        """
        mask = np.array(usable, dtype=np.bool_)
        cover = [places[mask[places]] for places in self._cover]
        if not cover or not all(len(places) for places in cover):
            return []
        if max(len(places) for places in cover) <= SHORTLIST:
            return self._best(cover, limit_s, whole)
        firsts = cover[0]
        alone_s = self._coming_s[firsts] / self._width[firsts] + self._layer_s[firsts]
        leads = firsts[np.argsort(alone_s, kind="stable")]
        while len(leads):
            near = self._near(cover, leads)
            if found := self._best(near, limit_s, whole):
                return found
            leads = leads[~np.isin(leads, near[0])]
        return []

    def _near(self, cover: Sequence[_Places], leads: _Places) -> list[_Places]:
        """Per stretch, the hosts that seem best on a path that starts at the first of `leads`."""
        way_s = self._ways_s(leads[:1], np.arange(len(self._width)))[0]
        score_s = (self._coming_s + way_s) / self._width + self._layer_s
        short = []
        for stretch, places in enumerate(cover):
            among = leads if stretch == 0 else places
            order = np.argsort(score_s[among], kind="stable")[:SHORTLIST]
            short.append(np.sort(among[order]))
        if leads[0] not in short[0]:
            short[0] = np.sort(np.append(short[0][:-1], leads[0]))
        return short

    def _best(
        self, cover: Sequence[_Places], limit_s: float, whole: bool
    ) -> list[tuple[Visit, ...]]:
        """Dynamic programming over (first host, stretch, host)."""
        firsts = cover[0]
        wide = np.array(self._cuts[1:], dtype=np.float64) - np.array(self._cuts[:-1])
        begun_s = self._coming_s[firsts] + wide[0] * self._layer_s[firsts]
        reached_s = np.where(np.eye(len(firsts), dtype=np.bool_), begun_s, np.inf)
        origins: list[_Places] = []
        for stretch in range(1, len(cover)):
            before, here = cover[stretch - 1], cover[stretch]
            sent_s = reached_s + self._send_s[before]
            coming_s = self._coming_s[here]
            if whole:
                cut = self._cuts[stretch]
                sent_s = sent_s + _WASTE * (self._ends[before] - cut) * self._layer_s[before]
                coming_s = coming_s + _WASTE * (cut - self._starts[here]) * self._layer_s[here]
            arriving_s = sent_s[:, :, None] + self._ways_s(before, here)
            origin = np.argmin(arriving_s, axis=1)
            best_s = np.min(arriving_s, axis=1) + coming_s
            at = np.searchsorted(before, here)
            at[at == len(before)] = 0
            stays = before[at] == here
            staying_s = np.where(stays, reached_s[:, at], np.inf)
            staying = staying_s <= best_s
            origins.append(np.where(staying & stays, -1, origin))
            reached_s = np.where(staying, staying_s, best_s) + wide[stretch] * self._layer_s[here]
        last = cover[-1]
        home_s = self._send_s[last][:, None] + self._ways_s(last, firsts)
        home_s[last[:, None] == firsts] = 0.0
        total_s = reached_s + home_s.T
        ends = np.argmin(total_s, axis=1)
        ends_s = np.min(total_s, axis=1)
        found: list[tuple[Visit, ...]] = []
        taken: set[int] = set()
        for row in np.argsort(ends_s, kind="stable"):
            if not ends_s[row] <= (_NEVER_S if whole else limit_s):
                break
            path = self._path(cover, origins, int(row), int(ends[row]))
            places = {visit.place for visit in path}
            if not places & taken and (not whole or self._time_s(path) <= limit_s):
                taken |= places
                found.append(path)
        return found

    def _time_s(self, path: Sequence[Visit]) -> float:
        """What a token takes on a path at the present prices."""
        total_s = self.way_s([visit.place for visit in path])
        for place, start, end in path:
            total_s += float(self._coming_s[place] + (end - start) * self._layer_s[place])
            total_s += float(self._send_s[place]) if len(path) > 1 else 0.0
        return total_s

    def _path(
        self, cover: Sequence[_Places], origins: Sequence[_Places], row: int, column: int
    ) -> tuple[Visit, ...]:
        end = self._layers
        visits = []
        for stretch in range(len(cover) - 1, 0, -1):
            place = int(cover[stretch][column])
            origin = int(origins[stretch - 1][row, column])
            if origin < 0:
                column = int(np.searchsorted(cover[stretch - 1], place))
                continue
            visits.append(Visit(place, self._cuts[stretch], end))
            end = self._cuts[stretch]
            column = origin
        visits.append(Visit(int(cover[0][column]), 0, end))
        return tuple(reversed(visits))

    def _ways_s(self, sources: _Places, targets: _Places) -> _Floats:
        """Half the round trips between them: the same bits as `Coordinate.rtt_s` gives."""
        dx_s = self._x_s[sources][:, None] - self._x_s[targets]
        dy_s = self._y_s[sources][:, None] - self._y_s[targets]
        heights_s = self._height_s[sources][:, None]
        return (np.sqrt(dx_s * dx_s + dy_s * dy_s) + heights_s + self._height_s[targets]) / 2
