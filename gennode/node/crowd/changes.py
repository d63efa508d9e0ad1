"""Who hosts what over time: the first plan, joins, leaves, crashes, and moves while serving.

A move goes as in `node/move.py`: the files are fetched while the worker serves; then it stops
offering the layers that it gives up, once every one of them has another live copy; sessions
there finish, or fail over after a while; then the new layers are loaded and offered. Who goes
where is decided by `sharding` (`brain.py`). That workers take turns is modelled and not run:
they know of each other's copies without delay.
"""

from __future__ import annotations

from collections.abc import Mapping

from gennode.node.crowd.asking import Asking
from gennode.node.crowd.brain import Brain
from gennode.node.crowd.events import Events
from gennode.node.crowd.member import NOTHING, Member, Session
from gennode.node.crowd.news import News
from gennode.node.crowd.pool import DISK_BYTES_PER_S
from gennode.node.crowd.tally import Tally
from gennode.node.moves.move import DRAIN_LIMIT_S, GAP_DRAIN_S, GAP_SETTLE_S
from gennode.wire.ids import PeerId, Span

NOTICE_S = 10.0  # until others take a silent peer for gone
GOODBYE_S = 60.0  # that they have where the peer leaves
MOVE_LIMIT_S = 300.0  # a move that can't begin by then is given up
EPOCH_S = 300.0  # between looks at whether the whole pool is better planned anew


class Changes:
    """All workers of a swarm and what becomes of them."""

    def __init__(
        self,
        events: Events,
        tally: Tally,
        news: News,
        brain: Brain,
        members: dict[PeerId, Member],
        asking: Asking,
    ) -> None:
        self._events, self._tally, self._news, self._brain = events, tally, news, brain
        self._members, self._asking = members, asking
        asking.drained = self._drained
        self._copies = [0] * brain.demand.layers
        self._waiting: dict[Member, int] = {}  # moves that may not begin yet
        self._balancing = False
        self._failed: dict[PeerId, float] = {}
        self._epoch = 0

    def begin(self, hosts: Mapping[PeerId, Span]) -> None:
        """The swarm as its first plan has it: everything is loaded."""
        for peer, span in hosts.items():
            member = self._members[peer]
            member.hold(span, self._brain.demand)
            member.on_disk = span
            self._count(member, NOTHING, span)
        self._brain.follow(self._members.values())
        self._tally.covered(self._events.now_s, self._copies)
        self._news.changed()
        self._events.after(EPOCH_S, self._plan_anew)

    @property
    def living(self) -> list[Member]:
        """Workers that are there and mean to stay."""
        return [one for one in self._members.values() if one.alive and not one.leaving]

    # -- coming and going ---------------------------------------------------------------------

    def crash(self, member: Member) -> None:
        """It is gone without a word; owners notice by its silence, the others later."""
        now_s = self._events.now_s
        self._tally.crashes += 1
        self._tally.at(now_s).faults += 1
        self._tally.trace(now_s, "crash", member.peer)
        self._end(member)
        for session in list(member.sessions):
            self._asking.part(session, member, silent=True)
        self._events.after(NOTICE_S, self._forget, member)

    def leave(self, member: Member) -> None:
        """It takes no more sessions, and goes when those that it has are over, or soon."""
        now_s = self._events.now_s
        self._tally.leaves += 1
        self._tally.at(now_s).faults += 1
        self._tally.trace(now_s, "leave", member.peer)
        member.leaving = member.draining = True
        self._stop(member)
        self._offer(member, NOTHING)
        self._balance_soon()
        self._events.after(GOODBYE_S, self._leave_now, member)
        self._drained(member)

    def _leave_now(self, member: Member) -> None:
        if not member.alive:
            return
        self._end(member)
        for session in list(member.sessions):
            self._asking.part(session, member, silent=False)
        self._forget(member)

    def join(self, member: Member) -> None:
        """It places itself by what it sees, fetches and loads."""
        now_s = self._events.now_s
        self._tally.joins += 1
        self._tally.at(now_s).joins += 1
        self._members[member.peer] = member
        span = self._brain.place(self._members.values(), member, self._epoch)
        self._tally.trace(now_s, "join", member.peer, span)
        if span.layers:
            self.move(member, span)

    def _forget(self, member: Member) -> None:
        if self._members.get(member.peer) is member:
            del self._members[member.peer]
        member.listed = False
        self._news.changed()
        self._balance_soon()

    def _end(self, member: Member) -> None:
        self._stop(member)
        self._offer(member, NOTHING)
        member.alive = False

    # -- moves --------------------------------------------------------------------------------

    def _balance_soon(self) -> None:
        if not self._balancing:
            self._balancing = True
            self._events.after(GAP_SETTLE_S, self._balance)

    def _balance(self) -> None:
        """Make the moves that are due because of gaps, if any; then look again."""
        self._balancing = False
        now_s = self._events.now_s
        self._failed = {peer: at_s for peer, at_s in self._failed.items() if at_s > now_s}
        moves = self._brain.next_moves(self._members.values(), self._failed, self._epoch)
        for move in moves:
            member = self._members[move.peer]
            if member.alive:
                self.move(member, move.span, is_mending=True)
            else:  # it will be noticed
                self._failed[move.peer] = now_s + NOTICE_S
        if moves:
            self._balance_soon()

    def _plan_anew(self) -> None:
        """Follow a new plan for the whole pool where it is worth the moves."""
        self._epoch += 1
        self._events.after(EPOCH_S, self._plan_anew)
        plan = self._brain.decide(self._members.values(), self._epoch)
        if plan is None:
            return
        moves = [(self._members[host.peer], host.span) for host in plan.hosts]
        moves = [(one, span) for one, span in moves if one.alive and one.target != span]
        self._tally.trace(self._events.now_s, "plan", plan.digest.hex(), len(moves))
        self._tally.plans += bool(moves)
        for member, span in moves:
            self.move(member, span)

    def move(self, member: Member, span: Span, *, is_mending: bool = False) -> None:
        """Go over to a span: fetch what is missing of it, then wait for the turn to load it.

        `is_mending`: nobody holds some layers of it, so sessions in the way fail over soon.
        """
        self._stop(member)
        member.target, member.is_mending = span, is_mending
        self._tally.trace(self._events.now_s, "head for", member.peer, span)
        lacking = span.layers - max(_shared(span, member.on_disk), _shared(span, member.span))
        fetch_s = lacking * self._brain.demand.layer_bytes / member.specimen.download_bytes_per_s
        self._events.after(fetch_s, self._fetched, member, member.move)

    def _fetched(self, member: Member, move: int) -> None:
        if move != member.move or not member.alive or member.leaving:
            return
        member.on_disk = member.target
        self._waiting[member] = move
        self._events.after(MOVE_LIMIT_S, self._give_up, member, move)
        self._begin_moves()

    def _begin_moves(self) -> None:
        """Let those begin who can without leaving a layer bare."""
        for member in list(self._waiting):
            kept = _common(member.offered, member.target)
            if member not in self._waiting or not self._may_offer_only(member, kept):
                continue
            del self._waiting[member]
            member.draining = True
            self._offer(member, kept)
            drain_s = GAP_DRAIN_S if member.is_mending else DRAIN_LIMIT_S
            self._events.after(drain_s, self._part_all, member, member.move)
            self._drained(member)

    def _may_offer_only(self, member: Member, kept: Span) -> bool:
        given = [layer for layer in range(*member.offered) if not kept.start <= layer < kept.end]
        return all(self._copies[layer] > 1 for layer in given)

    def _drained(self, member: Member) -> None:
        """A session has left a worker that wants to be rid of some: was it the last?"""
        if not member.alive or not member.draining or self._users(member):
            return
        member.draining = False
        if member.leaving:
            self._leave_now(member)
            return
        new = member.target.layers - _shared(member.target, member.span)
        load_s = new * self._brain.demand.layer_bytes / DISK_BYTES_PER_S
        self._events.after(load_s, self._loaded, member, member.move)

    def _users(self, member: Member) -> list[Session]:
        """Sessions on layers that the worker no longer offers."""
        return [
            session
            for session in member.sessions
            if any(
                one is member and not member.offered.covers(span)
                for (one, _), span in zip(session.legs, session.spans, strict=True)
            )
        ]

    def _part_all(self, member: Member, move: int) -> None:
        if move != member.move or not member.alive or not member.draining:
            return
        for session in self._users(member):
            self._asking.part(session, member, silent=False)
        self._drained(member)

    def _loaded(self, member: Member, move: int) -> None:
        if move != member.move or not member.alive or member.leaving:
            return
        now_s, had = self._events.now_s, member.span
        before, target = member.offered, member.target
        member.hold(target, self._brain.demand)
        member.offered = before
        self._offer(member, target)
        if had.layers:
            self._tally.moves += 1
            self._tally.layers_moved += target.layers - _shared(target, had)
            self._tally.at(now_s).moves += 1
        self._tally.trace(now_s, "loaded", member.peer, target)

    def _give_up(self, member: Member, move: int) -> None:
        """A move that never could begin: the worker stays where it is."""
        if self._waiting.get(member) == move:
            self._stop(member)
            self._tally.moves_given_up += 1
            member.target, member.draining = member.span, False
            self._offer(member, member.span)

    def _stop(self, member: Member) -> None:
        """Whatever move the worker was at does not go on."""
        self._waiting.pop(member, None)
        member.move += 1

    # -- copies -------------------------------------------------------------------------------

    def _offer(self, member: Member, span: Span) -> None:
        """New sessions may use these layers of it, and no others, from now on."""
        before, member.offered = member.offered, span
        if span == before:
            return
        self._count(member, before, span)
        self._tally.covered(self._events.now_s, self._copies)
        self._news.changed()
        if span.layers > before.layers:
            self._begin_moves()

    def _count(self, member: Member, before: Span, after: Span) -> None:
        now_s = self._events.now_s
        for layer in range(*before):
            self._copies[layer] -= 1
        for layer in range(*after):
            self._copies[layer] += 1
        if before.layers and member.serving_since_s is not None:
            member.serving_s += now_s - member.serving_since_s
        member.serving_since_s = now_s if after.layers else None


def _shared(one: Span, other: Span) -> int:
    return max(0, min(one.end, other.end) - max(one.start, other.start))


def _common(one: Span, other: Span) -> Span:
    start, end = max(one.start, other.start), min(one.end, other.end)
    return Span(start, end) if start < end else NOTHING
