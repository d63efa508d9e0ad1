"""What an owner knows of workers beside what they announce, and the routes that follow from it."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from gennode.mesh.directory.directory import Directory
from gennode.mesh.distances.distances import Distances
from gennode.sharding.route.preferences import Mode, Preferences, choose_mode
from gennode.sharding.route.route import Gap, Route, RouteBoard
from gennode.wire.announcement import Announcement
from gennode.wire.ids import Hop, ModelId, PeerId, Span

BOARD_S = 1.0  # links change slowly: a board of announcements is good for so long
FORGIVE_S = 60.0  # a failure counts half after so long
MIN_FAILURES = 0.05  # counts as none


@dataclass(frozen=True)
class _Known:
    """A board, the directory's version and the time that it is of, and the mode it was met in."""

    version: int
    made_s: float
    board: RouteBoard
    mode: Mode


class RouteChoice:
    """Chooses routes by announcements, measured links, own sessions and own experience."""

    def __init__(
        self, peer: PeerId, rng: random.Random, directory: Directory, distances: Distances
    ) -> None:
        self._peer = peer
        self._rng = rng
        self._directory = directory
        self._distances = distances
        self._frame_bytes: dict[ModelId, int] = {}
        self._boards: dict[ModelId, _Known] = {}
        self._announced: dict[PeerId, Announcement] = {}
        self._announced_version = -1
        self.frugal = False
        """Whether a low price counts for more than a quick answer, as long as there is room."""
        self._failures: dict[PeerId, tuple[float, float]] = {}
        self._sequences: dict[PeerId, int] = {}
        self._opened: Counter[tuple[PeerId, int]] = Counter()

    def frames(self, model: ModelId, token_bytes: int) -> None:
        """A token of this model takes so many bytes from hop to hop."""
        self._frame_bytes[model] = token_bytes

    def opened(self, path: Iterable[Hop]) -> None:
        """A session was opened, of which announcements don't tell yet."""
        for peer in {hop.peer for hop in path}:
            self._opened[peer, self._sequences.get(peer, 0)] += 1

    def closed(self, path: Iterable[Hop]) -> None:
        """A session was closed."""
        for peer in {hop.peer for hop in path}:
            self._opened[peer, self._sequences.get(peer, 0)] -= 1

    def failed(self, peer: PeerId, now_s: float) -> None:
        """A worker was lost in the middle of a session."""
        count, at_s = self._failures.get(peer, (0.0, now_s))
        self._failures[peer] = (_faded(count, now_s - at_s) + 1.0, now_s)

    def announced(self, peer: PeerId, now_s: float) -> Announcement | None:
        """What a peer says of itself, if that is known and still holds."""
        self._read(now_s)
        return self._announced.get(peer)

    def others(self, model: ModelId, classes: frozenset[str], now_s: float) -> frozenset[PeerId]:
        """Who hosts a model in none of these compute classes."""
        self._read(now_s)
        hostings = ((peer, one.hosting_of(model)) for peer, one in self._announced.items())
        return frozenset(
            peer for peer, held in hostings if held and held.compute_class not in classes
        )

    def _read(self, now_s: float) -> None:
        live = self._directory.live(now_s)
        if self._announced_version != self._directory.version:
            self._announced_version = self._directory.version
            self._announced = {one.peer: one for one in live}

    def route(
        self,
        model: ModelId,
        span: Span,
        entry: PeerId,
        avoid: frozenset[PeerId],
        now_s: float,
        *,
        allow_cold: bool,
        is_new: bool,
    ) -> Route | Gap:
        """The best chain of the moment over `span`, from `entry` and back to it.

        `is_new`: for a session that has not begun, which no worker gives its last seats.
        """
        known = self._boards.get(model)
        is_stale = known is None or known.version != self._directory.version
        if known is None or is_stale or now_s - known.made_s >= BOARD_S:
            board = self._make_board(model, now_s)
            mode = known.mode if known else Mode.QUICKEST
            if self.frugal:
                preferences = self._preferences(mode, now_s)
                mode = choose_mode(mode, board.load(span, entry, preferences=preferences))
            known = _Known(self._directory.version, now_s, board, mode)
            self._boards[model] = known
        return known.board.route(
            span,
            entry,
            exclude=avoid,
            allow_cold=allow_cold,
            preferences=replace(self._preferences(known.mode, now_s), is_new=is_new),
            rng=self._rng,
        )

    def _make_board(self, model: ModelId, now_s: float) -> RouteBoard:
        live = self._directory.live(now_s)
        coordinates = {one.peer: one.machine.coordinate for one in live if one.machine}
        uploads = {one.peer: one.machine.upload_bytes_per_s for one in live if one.machine}
        uploads[self._peer] = self._distances.upload_bytes_per_s
        frame = self._frame_bytes.get(model, 0)

        def link_time_s(source: PeerId, target: PeerId) -> float:
            upload = uploads.get(source, 0.0)
            line_s = frame / upload if upload > 0 else 0.0
            return self._distances.link_time_s(source, target, coordinates) + line_s

        board = RouteBoard(live, model=model, link_time_s=link_time_s)
        self._sequences = {one.peer: one.sequence for one in live}
        self._opened = Counter(
            {key: n for key, n in self._opened.items() if self._sequences.get(key[0]) == key[1]}
        )
        return board

    def _preferences(self, mode: Mode, now_s: float) -> Preferences:
        faded = {
            peer: left
            for peer, (count, at_s) in self._failures.items()
            if (left := _faded(count, now_s - at_s)) >= MIN_FAILURES
        }
        self._failures = {peer: self._failures[peer] for peer in faded}
        opened = {
            peer: count
            for (peer, number), count in self._opened.items()
            if number == self._sequences.get(peer)
        }
        return Preferences(mode=mode, failures=faded, opened=opened)


def _faded(count: float, age_s: float) -> float:
    return count * math.exp2(-age_s / FORGIVE_S)
