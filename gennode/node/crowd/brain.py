"""Where the product's own code is asked: capacity, plan, rebalance and route, on a made-up pool."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from itertools import islice

import msgspec

from gennode.node.crowd.member import Member, Owner
from gennode.node.crowd.news import Sight
from gennode.node.crowd.pool import (
    DISK_BYTES_PER_S,
    MODELS,
    NUMBER_BYTES,
    SESSIONS,
    WEIGHT_BYTES,
    Specimen,
)
from gennode.node.prompt import PREFILL_CHUNK
from gennode.sharding import capacity, predict, rebalance, replan
from gennode.sharding.plan.plan import Plan, plan
from gennode.sharding.route.route import Preferences, Route, RouteBoard, Ways
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import Hop, ModelId, PeerId, Span
from gennode.wire.snapshot import Candidate, LayerCost, Snapshot

_MAX_LINKS = 1 << 20  # that are remembered, some 200 MB


class Found:
    """Routes, the best first. The others are searched for when they are asked for: mostly the
    first is taken. They can be gone through once."""

    def __init__(self, each: Iterator[Route]) -> None:
        self._first = next(each, None)
        self._others = each

    def __bool__(self) -> bool:
        return self._first is not None

    def __iter__(self) -> Iterator[list[Hop]]:
        if self._first is not None:
            yield list(self._first.hops)
        for route in self._others:
            yield list(route.hops)


class Brain:
    """What the peers of a swarm decide, each by itself, about one model."""

    def __init__(self, model: str, seed: int) -> None:
        self._rng = random.Random(f"{seed}/routes")
        self.shape = MODELS[model]
        self.model = ModelId(hashlib.sha256(model.encode()).hexdigest())
        self.whole = Span(0, self.shape.layers)
        self.demand = capacity.demand_of(
            self.shape, weight_bytes=WEIGHT_BYTES, number_bytes=NUMBER_BYTES
        )
        self._places: dict[PeerId, Candidate] = {}
        self._decided: tuple[Candidate, ...] = ()
        self._ways = Ways(self.link_time_s, is_metric=True, max_links=_MAX_LINKS)

    def candidate(self, specimen: Specimen) -> Candidate:
        """What a machine would be worth."""
        machine = specimen.machine
        layers = capacity.layers_that_fit(
            self.shape,
            machine.memory_bytes,
            sessions=SESSIONS,
            positions=capacity.PLANNED_POSITIONS,
            weight_bytes=WEIGHT_BYTES,
            number_bytes=NUMBER_BYTES,
        )
        layer_bytes = self.demand.layer_bytes
        fetch_s = layer_bytes / specimen.download_bytes_per_s
        candidate = Candidate(
            peer=specimen.peer,
            capacity_layers=layers,
            memory_bytes=machine.memory_bytes,
            max_sessions=256,
            cost=capacity.layer_cost(
                self.shape, machine, weight_bytes=WEIGHT_BYTES, number_bytes=NUMBER_BYTES
            ),
            pass_s=machine.pass_s,
            upload_bytes_per_s=machine.upload_bytes_per_s,
            coordinate=machine.coordinate,
            move_s=fetch_s + layer_bytes / DISK_BYTES_PER_S,
        )
        self._places[candidate.peer] = candidate
        return candidate

    def chunk_s(self, specimen: Specimen) -> float:
        """Seconds of one layer for a chunk of a prompt. Its rows share what they read of the
        cache, so the roofline counts few positions."""
        return capacity.layer_time(
            self.shape,
            specimen.machine,
            batch=PREFILL_CHUNK,
            weight_bytes=WEIGHT_BYTES,
            number_bytes=NUMBER_BYTES,
            positions=PREFILL_CHUNK,
        ).time_s

    def owner(self, peer: PeerId, place: Coordinate, upload_bytes_per_s: float) -> Candidate:
        """Somebody who only asks."""
        candidate = Candidate(peer, 0, 0, 0, LayerCost(0, 0), 0.0, upload_bytes_per_s, place)
        self._places[peer] = candidate
        return candidate

    def routes(
        self,
        sight: Sight,
        span: Span,
        owner: Owner,
        entry: PeerId,
        *,
        exclude: frozenset[PeerId],
        count: int,
        is_new: bool,
    ) -> Found:
        """Chains of workers for a session, the best first; none if there is none.

        The owner counts the sessions that it opened or ended itself since then.
        """
        if sight.board is None:
            sight.board = RouteBoard(sight.announcements, model=self.model, link_time_s=self._ways)
        preferences = Preferences(
            opened=owner.opened_since(sight.at_s),
            step_limit_s=self.demand.step_limit_s,
            is_new=is_new,
        )
        each = sight.board.each_route(
            span,
            entry,
            exclude=exclude,
            allow_cold=False,
            preferences=preferences,
            rng=self._rng,
        )
        return Found(islice(each, count))

    def link_time_s(self, source: PeerId, target: PeerId) -> float:
        """Seconds of a frame between two peers. No way is shorter by a third one: distances are
        those of a plane, with heights, and each hop takes its own line's time more."""
        return predict.link_s(self._places[source], self._places[target], self.demand, 0.0)

    def snapshot(self, members: Iterable[Member], epoch: int) -> Snapshot:
        """What is known of the workers that stay; who moves counts where it goes."""
        peers = (
            msgspec.structs.replace(one.candidate, held=one.target)
            for one in members
            if one.listed and not one.leaving
        )
        return Snapshot(self.model, epoch, self.demand, tuple(peers))

    def plan(self, members: Iterable[Member], epoch: int) -> Plan:
        """Phase one for the whole pool."""
        return plan(self.snapshot(members, epoch))

    def place(self, members: Iterable[Member], newcomer: Member, epoch: int) -> Span:
        """Where a newcomer helps most."""
        return rebalance.place(self.snapshot(members, epoch), newcomer.candidate)

    def next_moves(
        self, members: Iterable[Member], without: Iterable[PeerId], epoch: int
    ) -> tuple[rebalance.Move, ...]:
        """The moves that are due because nobody holds some layers."""
        snapshot = self.snapshot(members, epoch)
        return rebalance.next_moves(snapshot, without=frozenset(without))

    def follow(self, members: Iterable[Member]) -> None:
        """All hold what the last plan says."""
        self._decided = self.snapshot(members, 0).peers

    def decide(self, members: Iterable[Member], epoch: int) -> Plan | None:
        """A new plan for the whole pool, if it is worth its moves; none if nothing has changed
        since the last time, because the answer has not either."""
        snapshot = self.snapshot(members, epoch)
        if snapshot.peers == self._decided:
            return None
        self._decided = snapshot.peers
        return replan.decide(snapshot).plan
