"""The life of sessions: asked, routed, opened, computed chunk by chunk, repaired, ended."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from gennode.node.crowd.arrivals import GAPS, draw_lengths
from gennode.node.crowd.brain import Brain, Found
from gennode.node.crowd.events import Events
from gennode.node.crowd.member import Leg, Member, Owner, Session, legs_of
from gennode.node.crowd.news import MAX_AGE_S, STEP_S, News
from gennode.node.crowd.physics import prefill_s, step_s
from gennode.node.crowd.tally import Tally
from gennode.node.prompt import PREFILL_CHUNK
from gennode.node.sessions.owning import SHUN_S
from gennode.node.sessions.patience import MIN_PATIENCE_S
from gennode.node.sessions.session import AVOID_S, REPAIR_LIMIT_S, SEEK_INTERVAL_S, SEEK_LIMIT_S
from gennode.node.sessions.watch import PONG_LIMIT_S
from gennode.wire.ids import Hop, PeerId, Span

CHUNK_TOKENS = 32  # that a session advances by in one event, as often as hops sign receipts
DETECT_S = MIN_PATIENCE_S + PONG_LIMIT_S  # until an owner is sure that a silent hop is gone
MAX_PAUSE_S = 2.0  # between two looks for a route
ALTERNATIVES = 3  # routes that are asked for when hops have failed

_Patch = tuple[int, int, list[Hop], list[Member]]
"""A range of a session's legs, and what takes their place."""


class Asking:
    """All sessions of a swarm."""

    def __init__(
        self,
        events: Events,
        tally: Tally,
        news: News,
        brain: Brain,
        members: Mapping[PeerId, Member],
        owners: Sequence[Owner],
        *,
        seed: int,
        arrivals: str,
        gap_s: float,
    ) -> None:
        self._events, self._tally, self._news, self._brain = events, tally, news, brain
        self._members, self._owners = members, owners
        self._rng = random.Random(f"{seed}/arrivals")
        self._views = random.Random(f"{seed}/views")
        self._draw_gap_s, self._gap_s = GAPS[arrivals], gap_s
        self.live: dict[Session, None] = {}
        self.drained: Callable[[Member], None] = lambda _: None
        """Told of each worker that wants to be rid of sessions, when one has left it."""

    def begin(self) -> None:
        """Plan the first session."""
        self._events.after(self._draw_gap_s(self._rng, self._gap_s), self._ask)

    def _ask(self) -> None:
        now_s = self._events.now_s
        self._tally.asked += 1
        owner = self._rng.choice(self._owners)
        session = Session(self._tally.asked, owner, draw_lengths(self._rng), now_s)
        self.live[session] = None
        self._tally.trace(now_s, "ask", session.number, owner.peer, session.lengths)
        self._open(session, session.turn)
        self.begin()

    # -- finding a way ------------------------------------------------------------------------

    def _routes(self, session: Session, span: Span, entry: PeerId, count: int) -> Found:
        sight = self._news.seen(self._views.uniform(0.0, MAX_AGE_S - STEP_S))
        exclude = session.excluded(self._events.now_s)
        owner, is_new = session.owner, not session.has_run
        return self._brain.routes(
            sight, span, owner, entry, exclude=exclude, count=count, is_new=is_new
        )

    def _open(self, session: Session, turn: int) -> None:
        """Find a route for all layers and take it, or try again, or give up."""
        if session.ended or turn != session.turn:
            return
        found = self._routes(session, self._brain.whole, session.owner.peer, 1)
        taken = self._take(session, found)
        if isinstance(taken, float):
            self._again(session, taken)
            return
        hops, members = taken
        session.legs, session.spans = legs_of(hops, members)
        session.enter(members, self._events.now_s)
        self._tally.trace(self._events.now_s, "route", session.number, *hops)
        if session.opened_s is None:
            session.opened_s = self._events.now_s
        self._compute(session, session.legs)

    def _take(self, session: Session, found: Found) -> tuple[list[Hop], list[Member]] | float:
        """The first of these routes whose workers all take the session, or after how many
        seconds to look again. Who refused or is gone is left out for a while."""
        wait_s = 0.0
        if found:
            session.seeking_s = None
        elif session.seeking_s is None:
            session.seeking_s = self._events.now_s
        for hops in found:
            members, late_s = self._ask_hops(session, hops)
            if members:
                return hops, members
            wait_s = max(wait_s, late_s)
        self._tally.detours += bool(found)
        return wait_s if found else SEEK_INTERVAL_S

    def _ask_hops(self, session: Session, hops: Sequence[Hop]) -> tuple[list[Member], float]:
        """The workers of a route, or none and how long it takes to learn that one of them
        can't: a refusal comes back after a round trip, silence lasts."""
        members: list[Member] = []
        now_s, wait_s = self._events.now_s, 0.0
        for hop in hops:
            member = self._members.get(hop.peer)
            if member is None or not member.alive:
                wait_s = DETECT_S
                session.owner.shun(hop.peer, now_s + SHUN_S)
                continue
            entered = session in member.sessions
            is_full = member.is_full(for_new=not session.has_run) and not entered
            if is_full or not member.offered.covers(hop.span):
                owner = session.owner.candidate.coordinate
                session.avoid[hop.peer] = now_s + AVOID_S
                wait_s = max(wait_s, owner.rtt_s(member.candidate.coordinate))
                continue
            members.append(member)
        return (members, 0.0) if len(members) == len(hops) else ([], wait_s)

    def _again(self, session: Session, wait_s: float) -> None:
        """Look once more in a moment, up to the product's limits; then it is over.

        Each pause is longer than all before it together, since looking is what takes us time.
        """
        now_s = self._events.now_s
        seeking_s = now_s if session.seeking_s is None else session.seeking_s
        is_hopeless = now_s - seeking_s > SEEK_LIMIT_S
        if is_hopeless or now_s - session.stalled_s > REPAIR_LIMIT_S:
            self._give_up(session)
            return
        wait_s = max(wait_s, min(now_s - session.stalled_s, MAX_PAUSE_S))
        session.turn += 1
        look = self._repair if session.legs else self._open
        self._events.after(wait_s, look, session, session.turn)

    def _give_up(self, session: Session) -> None:
        if session.has_run:
            self._tally.lost += 1
            self._tally.lost_covered += self._tally.coverage[-1].weakest > 0
        else:
            self._tally.refused += 1
        self._end(session, "lost" if session.has_run else "refused")

    # -- computing ----------------------------------------------------------------------------

    def _compute(self, session: Session, legs: Sequence[Leg]) -> None:
        """Run the prompt, and all tokens so far, through these hops; then tokens follow."""
        tokens = session.lengths.prompt + session.done
        demand = self._brain.demand
        time_s = prefill_s(session.owner, legs, demand, tokens)
        session.rest()
        chunk = min(tokens, PREFILL_CHUNK)
        for member, layers in legs:
            member.busy_s += tokens / chunk * member.prompt_s(layers, chunk)
        session.beat(tokens / time_s, chunk, legs)
        session.chunk = 0
        session.turn += 1
        self._events.after(time_s, self._computed, session, session.turn)

    def _computed(self, session: Session, turn: int) -> None:
        """The prompt is through, for the first time or on new hops."""
        if turn != session.turn or session.ended:
            return
        now_s, tally = self._events.now_s, self._tally
        session.has_run = True
        if session.done == 0:
            tally.first_s.add(now_s - session.asked_s)
            tally.prompt_tokens += session.lengths.prompt
        else:
            tally.pause_s.add(now_s - session.stalled_s)
            tally.token_s.add(now_s - session.stalled_s)
        self._count(session, 1)
        self._chunk(session)

    def _chunk(self, session: Session) -> None:
        """Begin the next few tokens at the pace that there is now."""
        left = session.lengths.answer - session.done
        if left <= 0:
            self._tally.answered += 1
            self._end(session, "answered")
            return
        session.chunk = min(CHUNK_TOKENS, left)
        session.chunk_since_s = self._events.now_s
        session.step_s = step_s(
            session.owner, session.legs, self._brain.demand, session.rate, session.chunk
        )
        session.beat(1 / session.step_s, 1, session.legs)
        session.turn += 1
        self._events.after(session.chunk * session.step_s, self._advanced, session, session.turn)

    def _advanced(self, session: Session, turn: int) -> None:
        if turn != session.turn or session.ended:
            return
        self._tally.token_s.add(session.step_s, session.chunk)
        self._count(session, session.chunk)
        self._chunk(session)

    def _count(self, session: Session, tokens: int) -> None:
        session.done += tokens
        self._tally.tokens += tokens
        self._tally.at(self._events.now_s).tokens += tokens

    # -- losing a hop -------------------------------------------------------------------------

    def part(self, session: Session, member: Member, *, silent: bool) -> None:
        """A worker computes no more for a session: it died, or said so."""
        now_s = self._events.now_s
        if session.chunk and session.rate:
            done = min(session.chunk, int((now_s - session.chunk_since_s) / session.step_s))
            if done:
                self._tally.token_s.add(session.step_s, done)
                self._count(session, done)
        if not session.lost:
            session.stalled_s, session.seeking_s = now_s, None
        session.rest()
        session.chunk = 0
        session.lost[member] = None
        session.quit([member], now_s)
        session.turn += 1
        self._tally.trace(now_s, "part", session.number, member.peer)
        self._events.after(DETECT_S if silent else 0.0, self._repair, session, session.turn)

    def _repair(self, session: Session, turn: int) -> None:
        """Put others in the place of hops that are gone."""
        if turn != session.turn or session.ended:
            return
        patches: list[_Patch] = []
        for first, end in session.gaps():
            span = Span(session.spans[first].start, session.spans[end - 1].end)
            entry = session.legs[first - 1][0].peer if first else session.owner.peer
            found = self._routes(session, span, entry, ALTERNATIVES)
            if not found:  # then others for all of the route, as in node/sessions/repair.py
                first, end = 0, len(session.legs)
                found = self._routes(session, self._brain.whole, session.owner.peer, 1)
                patches.clear()
            taken = self._take(session, found)
            if isinstance(taken, float):
                self._again(session, taken)
                return
            patches.append((first, end, *taken))
            if end - first == len(session.legs):
                break
        self._patch(session, patches)

    def _patch(self, session: Session, patches: Sequence[_Patch]) -> None:
        fresh: list[Leg] = []
        before = [member for member, _ in session.legs]
        for first, end, hops, members in reversed(patches):
            legs, spans = legs_of(hops, members)
            session.legs[first:end], session.spans[first:end] = legs, spans
            session.enter(members, self._events.now_s)
            fresh = legs + fresh
        now = [member for member, _ in session.legs]
        self._quit(session, [member for member in before if member not in now])
        session.lost.clear()
        session.avoid.clear()
        self._tally.trace(
            self._events.now_s, "repair", session.number, *(one.peer for one, _ in fresh)
        )
        self._failed_over(session)
        self._compute(session, fresh)

    def _failed_over(self, session: Session) -> None:
        self._tally.failovers += 1
        self._tally.failed_over += not session.has_failed_over
        session.has_failed_over = True
        self._tally.at(self._events.now_s).failovers += 1

    def _end(self, session: Session, how: str) -> None:
        now_s = self._events.now_s
        session.rest()
        session.ended = True
        del self.live[session]
        if session.opened_s is not None:
            self._tally.under_way(session.opened_s, now_s)
        self._tally.trace(now_s, how, session.number, session.done)
        self._quit(session, [member for member, _ in session.legs])

    def _quit(self, session: Session, members: Sequence[Member]) -> None:
        session.quit(members, self._events.now_s)
        for member in members:
            if member.draining:
                self.drained(member)

    def close(self) -> int:
        """The run is over; how many sessions are under way."""
        for session in self.live:
            if session.opened_s is not None:
                self._tally.under_way(session.opened_s, self._events.now_s)
        return len(self.live)
