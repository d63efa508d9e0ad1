"""What workers ask for their layers, as an owner sees it, and the few that a route is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt

from gennode.sharding.route.chain import Row
from gennode.sharding.route.preferences import Mode, Preferences, reserved_seats
from gennode.sharding.route.runs import Runs
from gennode.sharding.route.ways import Ways
from gennode.wire.announcement import Announcement
from gennode.wire.ids import ModelId, PeerId, Span

# A route is searched among this many workers per layer, the nearest and quickest. It bounds the
# work (a link is asked for per pair: a thousand workers have a million) and changes nothing in
# a swarm where each layer has no more.
SHORTLIST = 12

# Loading is paid once and a step for each token of an answer, so one second of loading weighs
# as much as this many seconds in every step of a short answer. So does what a failure takes.
LOAD_WEIGHT = 1 / 64

PRICED_TOKENS = 1_000_000  # that a price is for

# By so much an owner with an `rng` takes each queue for longer or shorter than it knows it to be:
# announcements are seconds old, and others who trust them would all go to the same workers.
_DOUBT = 0.7
# A token waits for the sessions of its own pass, and on average for half of a pass before it.
_PASSES_WAITED = 1.5
_ROOMY = 0.75  # so full a worker may be before capacity-first counts its seats

_MAX_KEPT = 64  # entries, and spans, that a pool remembers what it made ready for
_FIRST_LOOK = 128  # workers, the best first, that mostly fill every layer's shortlist

Numbers = npt.NDArray[np.float64]
_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Entry:
    """Seconds from where a route begins to each worker, by index, back from it, and both."""

    there_s: list[float]
    back_s: list[float]
    around_s: Numbers


@dataclass(frozen=True, slots=True)
class Cells:
    """Layers between two of `edges`, rising, have the same hosts: [workers, cells]. `layers`:
    how many each worker has of all, at least 1; `is_host`: who has any."""

    edges: list[int]
    hosts: _Flags
    layers: Numbers
    is_host: _Flags


class Pool:
    """The workers of one model by peer id, as columns."""

    def __init__(self, announcements: Iterable[Announcement], model: ModelId, ways: Ways) -> None:
        serving = [(one, held) for one in announcements if (held := one.hosting_of(model))]
        serving.sort(key=lambda pair: pair[0].peer)
        self.peers = [one.peer for one, _ in serving]
        self.index = {peer: index for index, peer in enumerate(self.peers)}
        self.hostings = [held for _, held in serving]
        self.sessions = _column(one.sessions for one, _ in serving)
        self.max_sessions = _column(held.max_sessions for held in self.hostings)
        self.reserved = _column(reserved_seats(held.max_sessions) for held in self.hostings)
        self.layer_time_s = _column(held.layer_time_s for held in self.hostings)
        self.further_time_s = _column(
            held.layer_time_s if held.further_time_s is None else held.further_time_s
            for held in self.hostings
        )
        self.price = _column(held.price for held in self.hostings)
        layers = max((held.spans[-1].end for held in self.hostings if held.spans), default=0)
        self._hosts: _Flags = np.zeros((len(serving), layers), dtype=bool)
        for index, held in enumerate(self.hostings):
            for span in held.spans:
                self._hosts[index, span.start : span.end] = True
        self._held_layers: Numbers = np.count_nonzero(self._hosts, axis=1).astype(np.float64)
        self._edges = {edge for held in self.hostings for span in held.spans for edge in span}
        self.loads_cold = any(held.cold_layers for held in self.hostings)
        self.ways = ways
        self.into_s = [ways.into(peer) for peer in self.peers]
        self._entries: dict[PeerId, Entry] = {}
        self._cells: dict[Span, Cells] = {}
        self._in_line: tuple[int, Numbers] | None = None

    def entered_from(self, peer: PeerId) -> Entry:
        """The links between a route's first sender and all workers."""
        entry = self._entries.get(peer)
        if entry is None:
            if len(self._entries) >= _MAX_KEPT:
                self._entries.clear()
            from_all_s = self.ways.into(peer)
            there_s = [links_s[peer] for links_s in self.into_s]
            back_s = [from_all_s[one] for one in self.peers]
            entry = Entry(there_s, back_s, _column(there_s) + _column(back_s))
            self._entries[peer] = entry
        return entry

    def queue_s(self, sessions: Numbers, layers: int) -> Numbers:
        """Seconds per layer that a token waits at each worker for those of other sessions.

        A session is at one worker at a time, and on average as long as that worker's share of
        the model's `layers`. So many of its sessions a token finds there, as if itself were no
        part of the swarm (the arrival theorem: Reiser, Lavenberg, "Mean-value analysis of closed
        multichain queueing networks", Journal of the ACM 27, 1980). How many more sessions a
        worker would take is no measure of time: seats are memory.
        """
        if self._in_line is None or self._in_line[0] != layers:
            share = np.maximum(1.0, self._held_layers) / max(1, layers)
            in_line: Numbers = np.minimum(1.0, _PASSES_WAITED * share)
            self._in_line = layers, self.further_time_s * in_line
        return sessions * self._in_line[1]

    def hosts(self, span: Span) -> _Flags:
        """Who has which layer of `span` loaded: [workers, layers of the span]."""
        known = self._hosts[:, span.start : span.end]
        lacking = np.zeros((len(self.peers), span.layers - known.shape[1]), dtype=bool)
        return np.concatenate((known, lacking), axis=1) if lacking.shape[1] else known

    def cells(self, span: Span) -> Cells:
        """The layers of a span in cells: those of one have the same hosts."""
        cells = self._cells.get(span)
        if cells is None:
            if len(self._cells) >= _MAX_KEPT:
                self._cells.clear()
            inner = sorted(edge for edge in self._edges if span.start < edge < span.end)
            edges = [span.start, *inner, span.end]
            hosts = self.hosts(span)
            layers = np.count_nonzero(hosts, axis=1)
            at = np.array(edges[:-1]) - span.start
            shared = np.maximum(1, layers).astype(np.float64)
            cells = Cells(edges, hosts[:, at], shared, layers > 0)
            self._cells[span] = cells
        return cells


def _column(values: Iterable[float]) -> Numbers:
    return np.fromiter(values, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Asking:
    """What each worker of a pool costs one owner, by index.

    `time_s`: predicted seconds per layer. `extra_s`: what else a layer is charged, in seconds.
    `visit_s`: what a visit is charged, however many its layers. `is_known`: who is not excluded,
    `is_open`: who of them is not full either.
    """

    time_s: Numbers
    extra_s: Numbers
    visit_s: Numbers
    is_known: _Flags
    is_open: _Flags

    @property
    def cost_s(self) -> Numbers:
        """Per layer, all in all."""
        return self.time_s + self.extra_s

    def frugal_s(self, price: Numbers) -> tuple[Numbers, float]:
        """What cost-first charges instead of seconds: per layer the price, per hop one layer.

        The median price counts as much as the median layer takes; who asks for a fortune must
        not make all other prices look alike.
        """
        layer_s = _median(self.time_s[self.is_open])
        median_price = _median(price[self.is_open & (price > 0)])
        return price * (layer_s / max(1.0, median_price)), layer_s


def _median(values: Numbers) -> float:
    """The middle one, the upper of two; 0 without any."""
    return float(np.sort(values)[len(values) // 2]) if len(values) else 0.0


def sessions_now(pool: Pool, preferences: Preferences) -> Numbers:
    """Sessions of each worker: those announced, and those that the owner knows of beside them."""
    sessions = pool.sessions.copy()
    for peer, opened in preferences.opened.items():
        if peer in pool.index:
            sessions[pool.index[peer]] += opened
    return np.maximum(sessions, 0.0)


def asking(
    pool: Pool,
    layers: int,
    exclude: frozenset[PeerId],
    preferences: Preferences,
    rng: Random | None,
) -> Asking:
    """What all workers cost an owner who has these preferences.

    `layers`: about how many the model has. The owner says it, since who announces a layer that
    no model has must not make all queues look short.
    """
    sessions = sessions_now(pool, preferences)
    is_known = np.ones(len(pool.peers), dtype=bool)
    for peer in exclude:
        if peer in pool.index:
            is_known[pool.index[peer]] = False
    seats = pool.max_sessions - pool.reserved if preferences.is_new else pool.max_sessions
    is_open = is_known & (sessions < seats)
    queue_s = pool.queue_s(sessions, layers)
    time_s = pool.layer_time_s + queue_s
    extra_s = pool.price * (preferences.seconds_per_credit / PRICED_TOKENS)
    if preferences.mode is Mode.CAPACITY_FIRST:
        full = sessions / np.maximum(1.0, pool.max_sessions)
        last_seats = np.maximum(0.0, full - _ROOMY) / (1 - _ROOMY)
        extra_s = extra_s + last_seats * time_s
    if rng is not None:
        extra_s = extra_s + queue_s * (_DOUBT * (2 * _lots(rng, len(pool.peers)) - 1))
    visit_s = np.zeros(len(pool.peers))
    for peer in preferences.standing.keys() | preferences.failures.keys():
        if peer in pool.index:
            loss_s = preferences.failure_chance(peer) * preferences.failover_s
            visit_s[pool.index[peer]] = loss_s * LOAD_WEIGHT
    return Asking(time_s, extra_s, visit_s, is_known, is_open)


def _lots(rng: Random, count: int) -> Numbers:
    """Numbers from 0 to 1, drawn all at once."""
    words = np.frombuffer(rng.randbytes(4 * count), dtype="<u4")
    return words / np.float64(1 << 32)


def shortlisted(pool: Pool, asked: Asking, span: Span, entry: PeerId) -> Runs | None:
    """The same shortlists of loaded workers as in a table without cold ones, as runs; None if
    some layer has nobody."""
    cells = pool.cells(span)
    links_s = (pool.entered_from(entry).around_s + asked.visit_s) / cells.layers
    usable = (asked.is_open & cells.is_host).nonzero()[0]
    order = usable[(asked.cost_s + links_s)[usable].argsort(kind="stable")]
    first = order[:_FIRST_LOOK]
    has = cells.hosts[first]
    place = has.cumsum(axis=0, dtype=np.int16)
    if len(order) > _FIRST_LOOK and (place[-1] < SHORTLIST).any():
        first, has = order, cells.hosts[order]
        place = has.cumsum(axis=0, dtype=np.int16)
    if not len(first) or not place[-1].all():
        return None
    listed = np.zeros((len(first), len(cells.edges) + 1), dtype=np.int8)
    listed[:, 1:-1] = has & (place <= SHORTLIST)
    change = listed[:, 1:] - listed[:, :-1]
    at, where = change.nonzero()
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    signs = change[at, where].tolist()
    for worker, edge, sign in zip(first[at].tolist(), where.tolist(), signs, strict=True):
        (begins if sign > 0 else ends).setdefault(edge, []).append(worker)
    places = sorted(begins.keys() | ends.keys())
    return Runs(
        [cells.edges[edge] for edge in places],
        [begins.get(edge, []) for edge in places],
        [ends.get(edge, []) for edge in places],
    )


class Table:
    """For each layer of a span a shortlist of the workers that can compute it, and at what cost."""

    def __init__(self, pool: Pool, asked: Asking, span: Span, entry: PeerId) -> None:
        self.pool, self.asked, self.span = pool, asked, span
        self.entry = pool.entered_from(entry)
        self.rows: list[Row] = [{} for _ in range(span.layers)]
        self.cold: set[tuple[int, int]] = set()
        self.hosts = pool.hosts(span)
        self._add_warm()

    def _add_warm(self) -> None:
        """What is loaded, the best first: a visit's links are shared by its layers."""
        asked, layers = self.asked, np.count_nonzero(self.hosts, axis=1)
        cost_s = asked.cost_s
        links_s = (self.entry.around_s + asked.visit_s) / np.maximum(1, layers)
        usable = np.nonzero(asked.is_open & (layers > 0))[0]
        order = usable[np.argsort((cost_s + links_s)[usable], kind="stable")]
        first = order[:_FIRST_LOOK]
        has = self.hosts[first]
        place = np.cumsum(has, axis=0, dtype=np.int16)
        at, layer = np.nonzero(has & (place <= SHORTLIST))
        workers = first[at]
        offers = zip(layer.tolist(), workers.tolist(), cost_s[workers].tolist(), strict=True)
        rows = self.rows
        for one, worker, own_s in offers:
            rows[one][worker] = own_s
        if len(order) > _FIRST_LOOK:
            self._look_further(order[_FIRST_LOOK:])

    def _look_further(self, order: npt.NDArray[np.intp]) -> None:
        """Fill the shortlists that the best workers did not: of layers that few have."""
        cost_s = self.asked.cost_s
        for layer, row in enumerate(self.rows):
            if len(row) < SHORTLIST:
                workers = order[self.hosts[order, layer]][: SHORTLIST - len(row)]
                row.update(zip(workers.tolist(), cost_s[workers].tolist(), strict=True))

    def add_cold(self) -> None:
        """What each worker would load on request: of what it lacks, the layers with least cover.

        Deciding this before the search keeps every promise (`cold_layers` holds for the whole
        route, even if it visits a worker twice) and the search exact, and leaves no layer without
        an offer if the swarm has room for it at all.
        """
        pool, length = self.pool, len(self.rows)
        short = sum(len(row) < SHORTLIST for row in self.rows)
        cover = [len(row) for row in self.rows]
        ranked = []
        for worker in np.nonzero(self.asked.is_open)[0].tolist():
            held = pool.hostings[worker]
            if held.cold_layers:
                own_s = float(self.asked.cost_s[worker]) + held.load_time_s * LOAD_WEIGHT
                links_s = float(self.entry.around_s[worker] + self.asked.visit_s[worker])
                rank = own_s + links_s / min(held.cold_layers, length)
                ranked.append((rank, worker, own_s))
        for _, worker, own_s in sorted(ranked):
            if not short:
                break
            lacking = np.nonzero(~self.hosts[worker])[0].tolist()
            lacking.sort(key=cover.__getitem__)
            for layer in lacking[: pool.hostings[worker].cold_layers]:
                cover[layer] += 1
                row = self.rows[layer]
                if len(row) < SHORTLIST:
                    row[worker] = own_s
                    self.cold.add((layer, worker))
                    short -= len(row) == SHORTLIST
