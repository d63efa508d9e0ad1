"""The owner's side of one session: a machine that keeps a route alive under a stream of steps.

    OPENING ──accepts──▶ JOINING ──accepts──▶ READY ──a hop dies, stalls, refuses──▶ OPENING
        └──nobody has the layers──▶ SEEKING ──too long──▶ OVER
    READY ──a stand-in is fed: the hop that leaves, or is slow, is let go──▶ JOINING

A repair raises the attempt, opens the new hops first and tells the survivors second (the lowest
one above the new hops that still has its frames replays them), then sends the unanswered steps
again. Answers of older attempts are ignored, so no step is ever answered twice.

A planned change feeds the new hops first, under an attempt of their own, while the old one goes
on (`handover.py`); what then is left to do is to tell the survivors.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gennode.errors import LocalError, NoRouteError, RemoteError
from gennode.node.actions import Action, Arrived, Lost, Opened, Rerouted, Send
from gennode.node.sessions.course import Course, SessionTerms
from gennode.node.sessions.handover import FromHop, Handovers
from gennode.node.sessions.joining import Joining
from gennode.node.sessions.repair import mend
from gennode.node.sessions.scout import Scout
from gennode.node.sessions.standins import StandIns
from gennode.node.sessions.vigil import Vigil
from gennode.wire.activations import codec
from gennode.wire.ids import Hop, PeerId
from gennode.wire.messages import (
    Accept,
    Credit,
    Failed,
    Fed,
    Leaving,
    Ping,
    Pong,
    Refuse,
    Step,
    ToOwner,
)

SEEK_INTERVAL_S = 0.5
SEEK_LIMIT_S = 15.0  # how long a session waits for somebody to cover the missing layers
FIRST_SEEK_LIMIT_S = 7.5  # before it has begun: gaps are mostly closed by then, and who asks waits
REPAIR_LIMIT_S = 60.0  # from a fault to the next answered step, if routes are found and break
AVOID_S = 5.0  # a peer that failed may be tried again after this, if nobody else is there


class _State(Enum):
    OPENING = "opening"  # waiting for the new hops to accept
    JOINING = "joining"  # waiting for the survivors to learn the new path
    SEEKING = "seeking"  # nobody covers some layers; looking again soon
    READY = "ready"
    OVER = "over"


@dataclass
class _Repair:
    """What is being repaired: from the first fault until the route stands again."""

    before: tuple[Hop, ...]
    lost: list[PeerId]
    reason: str
    is_planned: bool = False


class SessionMachine:
    """One session as its owner sees it. Sans-IO: every call returns what to do."""

    def __init__(self, terms: SessionTerms, path: tuple[Hop, ...], scout: Scout) -> None:
        self.terms = terms
        self._course = Course(terms, path)
        self._scout = scout
        self._state = _State.OPENING
        self._since_s = 0.0
        self._seeking_s: float | None = None  # since when nobody covers some layers
        self._ailing_s: float | None = None  # when the first fault was that no answer followed yet
        self._joining = Joining(self._course)
        self._avoid: dict[PeerId, float] = {}  # since when
        self._opened = False
        self._repair: _Repair | None = None
        self._lost: NoRouteError | None = None  # why it is over, unless it was closed
        self._flow = self._course.flow(path[0].peer, 0)
        self._vigil = Vigil(path, row_bytes=codec(terms.codec).row_bytes(terms.dim))
        self.peer_alive = self._vigil.alive
        self._standins = StandIns(self._course, scout)
        self._handovers = Handovers(self._course, scout, self._standins)

    @property
    def path(self) -> tuple[Hop, ...]:
        """The hops, as they are now."""
        return self._course.path

    @property
    def standins(self) -> tuple[tuple[Hop, ...] | None, ...]:
        """Who would take each hop's place; None where nobody is known."""
        return tuple(self._standins.of(hop) or None for hop in self.path)

    @property
    def has_begun(self) -> bool:
        """Whether all hops have accepted once: from then on it is carried on, not opened."""
        return self._opened

    # -- what the owner does ------------------------------------------------------------------

    def start(self, now_s: float) -> list[Action]:
        """Ask every hop of the path to take part."""
        return self._open_new(now_s)

    def submit(
        self, position: int, rows: int, reply_rows: int, payload: bytes, now_s: float
    ) -> tuple[int, list[Action]]:
        """Send a step down the route, as soon as there is one; returns its number.

        Steps at `position` or beyond are forgotten; all of them must have been answered.
        NoRouteError if the session was lost meanwhile: nobody would ever answer.
        """
        if self._state is _State.OVER:
            raise self._lost or LocalError("a step is sent in a session that is closed")
        goes_back = position < self._course.steps.positions
        step = self._course.steps.add(position, rows, reply_rows, payload)
        actions = self._handovers.lower(position) if goes_back else []
        if self._state is _State.READY:
            self._vigil.sent(step.number, step.rows, now_s)
            actions += self._flow.send(step, rebuild=False)
        return step.number, actions

    def close(self) -> list[Action]:
        """Tell everybody who takes part that the session is over."""
        if self._state is _State.OVER:
            return []
        self._state = _State.OVER
        return self._goodbye_to_all()

    # -- what comes in ------------------------------------------------------------------------

    def receive(
        self, sender: PeerId, message: ToOwner, payload: bytes, now_s: float
    ) -> list[Action]:
        """React to a hop's message; RemoteError if it broke the protocol."""
        if self._state is _State.OVER:
            return []
        if isinstance(message, Pong):
            return self._heard(sender, message, now_s)
        if isinstance(message, Step):
            is_late = message.attempt != self._course.attempt
            return [] if is_late else self._result(sender, message, payload, now_s)
        if message.attempt == self._course.attempt:
            return self._told(sender, message, now_s)
        feeding = self._handovers.under(message.attempt)
        if feeding is None:
            return []  # late
        return self._handovers.receive(feeding, sender, message, now_s)

    def _told(self, sender: PeerId, message: FromHop, now_s: float) -> list[Action]:
        """React to what was said under the attempt that runs."""
        if isinstance(message, Credit):
            if sender != self._flow.peer:
                raise RemoteError("a credit comes from a peer that was sent nothing")
            return [*self._flow.credit(message.taken_bytes)]
        if message.index >= len(self.path):
            raise RemoteError("a reply names a hop that the route does not have")
        hop = self.path[message.index]
        if hop.peer != sender and not isinstance(message, Failed):
            raise RemoteError("a reply names a hop that is not its sender")
        match message:
            case Accept():
                return self._accepted(message.index, message.positions, now_s)
            case Refuse():
                return self._refused(message.index, message.reason, now_s)
            case Failed():
                return self._failed(sender, message, now_s)
            case Fed():
                self._fed(message, now_s)
            case Leaving():
                self._handovers.is_leaving(hop, message.positions, message.cache_bytes)
        return []

    def peer_down(self, peer: PeerId, reason: str, now_s: float) -> list[Action]:
        """A peer can't be reached any more."""
        if self._state is _State.OVER:
            return []
        self._standins.spurn(peer, now_s)
        actions = self._handovers.lost(peer, now_s)
        if peer in self._course.peers:
            actions += self._mend({peer}, reason, now_s)
        return actions

    def peer_in_trouble(self, peer: PeerId, reason: str, now_s: float) -> list[Action]:
        """A peer may be dead: replace it if others have what it holds, else wait and see."""
        if self._state is _State.OVER or peer not in self._course.peers:
            return []
        found = self._find(frozenset({peer}), frozenset({peer, *self._avoid}))
        return [] if isinstance(found, str) else self._mend({peer}, reason, now_s)

    def tick(self, now_s: float) -> list[Action]:
        """Let time pass: ping, lose patience, look for a route again, prepare for the worst."""
        if self._state is _State.OVER:
            return []
        if self._state is _State.SEEKING:
            return self._seek(now_s) if now_s - self._since_s >= SEEK_INTERVAL_S else []
        is_ready = self._state is _State.READY
        if is_ready:
            fault = self._vigil.fault(now_s)
        else:
            awaited = {self.path[index].peer for index in self._joining.awaited}
            fault = self._vigil.silence(awaited, now_s - self._since_s, now_s)
        if fault:
            return self._mend(*fault, now_s)
        actions = self._ping(self._vigil.pings(now_s, is_opening=not is_ready))
        return actions + self._prepare(now_s) if is_ready else actions

    # -- steps and answers --------------------------------------------------------------------

    def _result(self, sender: PeerId, message: Step, payload: bytes, now_s: float) -> list[Action]:
        steps, last = self._course.steps, self._course.path[-1]
        if sender != last.peer or message.layer != self.terms.layers:
            raise RemoteError("a result came from a peer that is not the last hop")
        if self._state is not _State.READY or message.number < steps.answered:
            return []
        try:
            step, states = self._course.read_result(message, payload)
        except RemoteError as error:  # no breach: a liar above may have led the last hop to it
            return self._mend({sender}, str(error), now_s)
        self._ailing_s = None
        steps.answer(step)
        self._vigil.answered(step.number, step.rows, now_s)
        return [Arrived(self.terms.session, step.number, states), *self._switch(now_s)]

    def _failed(self, sender: PeerId, message: Failed, now_s: float) -> list[Action]:
        near = self.path[max(0, message.index - 1) : message.index + 2]
        if all(hop.peer != sender for hop in near):
            if sender in self._avoid:
                return []  # it was let go meanwhile, and may have been feeding its stand-in
            raise RemoteError("a failure names a hop that is no neighbour of its sender")
        blamed = self.path[message.index].peer
        suspects = self._vigil.suspects(sender, blamed, message.attempt)
        return self._mend(suspects, message.reason, now_s)

    def _fed(self, message: Fed, now_s: float) -> None:
        """A part of a replay has arrived: a long one is no hang."""
        if self._joining.fed(message) and self._vigil.moved(now_s):
            self._ailing_s = now_s

    def _ping(self, peers: tuple[PeerId, ...]) -> list[Action]:
        ping = Ping(self.terms.session, self._course.attempt)
        return [Send(peer, ping) for peer in peers]

    def _heard(self, sender: PeerId, message: Pong, now_s: float) -> list[Action]:
        awaited = self._course.steps.answered
        is_current = self._state is _State.READY and message.nonce == self._course.attempt
        fault = self._vigil.heard(sender, message, awaited, now_s, is_current=is_current)
        return self._mend(*fault, now_s) if fault else []

    # -- preparing for the worst --------------------------------------------------------------

    def _prepare(self, now_s: float) -> list[Action]:
        """Have stand-ins ready, see who is slow, carry on with planned changes."""
        slow = self._vigil.slow(now_s)
        if slow is not None:
            self._handovers.is_slow(slow)
        actions = self._standins.tick(self._avoid, now_s) + self._handovers.tick(self._avoid, now_s)
        return actions + self._switch(now_s)

    def _switch(self, now_s: float) -> list[Action]:
        """Change over to a stand-in that is fed, if there is one and the moment is right."""
        feeding = self._handovers.due(now_s)
        if feeding is None:
            return []
        course, peer = self._course, feeding.hop.peer
        reason = self._handovers.reason(feeding.hop)
        self._repair = _Repair(self.path, [peer], reason, is_planned=True)
        self._avoid[peer] = now_s
        is_as_fed = feeding.is_current and course.steps.is_idle and not self._joining.is_rebuilding
        self._handovers.taken()
        self._joining.hold(dict.fromkeys(feeding.takers, feeding.fed))
        actions = self._take(feeding.path)
        if not is_as_fed or feeding.attempt < course.attempt:
            # What was fed may bear the numbers of steps that are still to be sent.
            course.attempt = course.next_attempt()
            return [*actions, *self._open_new(now_s)]
        course.attempt = feeding.attempt
        self._begin_attempt()
        self._flow = feeding.flow or self._flow
        return [*actions, *self._open_survivors(now_s)]

    # -- opening and repairing ----------------------------------------------------------------

    def _enter(self, state: _State, now_s: float) -> None:
        self._state, self._since_s = state, now_s

    def _mend(self, dead: set[PeerId], reason: str, now_s: float) -> list[Action]:
        """Leave `dead` out from now on and find hops for what they held."""
        if self._repair is None:
            self._repair = _Repair(self.path, [], reason)
        self._repair.is_planned = self._repair.is_planned and not dead
        self._repair.lost += sorted(dead - set(self._repair.lost))
        self._avoid.update(dict.fromkeys(dead, now_s))
        self._joining.lose(dead)
        if self._ailing_s is None:
            self._ailing_s = now_s
        elif now_s - self._ailing_s > REPAIR_LIMIT_S:
            return self._lose(f"no route has carried a step for a minute: {reason}", now_s)
        return self._seek(now_s)

    def _seek(self, now_s: float) -> list[Action]:
        if self._state is _State.SEEKING:  # nobody else: those that failed may be back
            self._avoid = {p: at_s for p, at_s in self._avoid.items() if now_s - at_s < AVOID_S}
        lost = frozenset(self._repair.lost if self._repair else ())
        found = self._find(lost, frozenset(self._avoid))
        if isinstance(found, str):
            if self._seeking_s is None:
                self._seeking_s = now_s
            limit_s = SEEK_LIMIT_S if self._opened else FIRST_SEEK_LIMIT_S
            if now_s - self._seeking_s > limit_s:
                return self._lose(found, now_s)
            self._enter(_State.SEEKING, now_s)
            return []
        self._joining.hold(self._handovers.held())
        self._course.attempt = self._course.next_attempt()
        return [*self._take(found), *self._open_new(now_s)]

    def _find(self, lost: frozenset[PeerId], avoid: frozenset[PeerId]) -> tuple[Hop, ...] | str:
        standins = self._standins.usable(lost | avoid)
        return mend(self.path, self.terms.owner, lost, avoid, self._scout.find_hops, standins)

    def _lose(self, why: str, now_s: float) -> list[Action]:
        self._enter(_State.OVER, now_s)
        hint = "start a worker that hosts these layers: gennode join --layers I:J"
        self._lost = NoRouteError(why, hint=hint)
        return [*self._goodbye_to_all(), Lost(self.terms.session, self._lost)]

    def _take(self, path: tuple[Hop, ...]) -> list[Action]:
        """Go along another path from now on, and say goodbye to who is not on it."""
        left = self._course.peers - {hop.peer for hop in path}
        self._joining.take(path)
        self._standins.follow()
        return [*self._course.goodbye(sorted(left)), *self._handovers.follow()]

    def _goodbye_to_all(self) -> list[Action]:
        everybody = [hop.peer for hop in self.path] + sorted(self._handovers.peers())
        return [*self._course.goodbye(everybody)]

    def _begin_attempt(self) -> None:
        self._vigil.follow(self.path)
        self._flow = self._course.flow(self.path[0].peer, self._course.attempt)
        self._joining.begin(carries_on=self._opened)

    def _open_new(self, now_s: float) -> list[Action]:
        self._begin_attempt()
        self._enter(_State.OPENING, now_s)
        opens = self._joining.open_new()
        return opens or self._open_survivors(now_s)

    def _open_survivors(self, now_s: float) -> list[Action]:
        self._enter(_State.JOINING, now_s)
        opens = self._joining.open_survivors()
        return opens or self._resume(now_s)

    def _accepted(self, index: int, positions: int, now_s: float) -> list[Action]:
        if self._state is _State.SEEKING or index not in self._joining.awaited:
            return []  # that attempt was given up, or it is said twice
        if not self._joining.accepted(index, positions):
            return self._mend(set(), "has lost what it had cached", now_s)
        if not self._joining.is_done:
            return []
        self._seeking_s = None  # somebody took the layers on
        return self._open_survivors(now_s) if self._state is _State.OPENING else self._resume(now_s)

    def _refused(self, index: int, reason: str, now_s: float) -> list[Action]:
        if self._joining.excuses(index):
            return self._mend(set(), reason, now_s)
        return self._mend({self.path[index].peer}, f"refused: {reason}", now_s)

    def _resume(self, now_s: float) -> list[Action]:
        """All hops know the path: rebuild from our steps if need be, send the unanswered."""
        self._enter(_State.READY, now_s)
        replayed_rows, sends = self._joining.finish(self._flow)
        self._vigil.restart(replayed_rows, now_s)
        for step in self._course.steps.unanswered():
            self._vigil.sent(step.number, step.rows, now_s)
            sends += self._flow.send(step, rebuild=False)
        return [*self._tell(), *sends]

    def _tell(self) -> list[Action]:
        repair, self._repair = self._repair, None
        if not self._opened:
            self._opened = True
            return [Opened(self.terms.session, self.path)]
        if repair is None:
            return []
        before, lost, why = repair.before, tuple(repair.lost), repair.reason
        return [Rerouted(self.terms.session, before, self.path, lost, why, repair.is_planned)]
