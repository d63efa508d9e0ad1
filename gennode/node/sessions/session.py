"""The owner's side of one session: a machine that keeps a route alive under a stream of steps.

    OPENING ──accepts──▶ JOINING ──accepts──▶ READY ──a hop dies, stalls, refuses──▶ OPENING
        └──nobody has the layers──▶ SEEKING ──too long──▶ OVER

A repair raises the attempt, opens the new hops first and tells the survivors second (the one
above the first new hop replays the frames that it retained), then sends the unanswered steps
again. Answers of older attempts are ignored, so no step is ever answered twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gennode.errors import LocalError, NoRouteError, RemoteError
from gennode.node.actions import Action, Arrived, Lost, Opened, Rerouted, Send
from gennode.node.sessions.patience import Patience
from gennode.node.sessions.repair import FindHops, mend
from gennode.node.sessions.watch import Watch
from gennode.wire.activations import codec
from gennode.wire.fields import CodecName
from gennode.wire.ids import Hop, ModelId, PeerId, SessionId
from gennode.wire.messages import (
    Accept,
    Close,
    Credit,
    Failed,
    Fed,
    Leaving,
    Open,
    Ping,
    Pong,
    Step,
    ToOwner,
)

PING_INTERVAL_S = 0.25  # while something is awaited
KEEPALIVE_S = 10.0  # otherwise: a hop forgets an owner that is silent for a minute
WORK_LIMIT_S = 120.0  # the longest that one step, or loading layers, may take
SEEK_INTERVAL_S = 0.5
SEEK_LIMIT_S = 15.0  # how long to wait for somebody to cover the missing layers
REPAIR_LIMIT_S = 4 * SEEK_LIMIT_S  # the same over all of a repair, if routes are found and break
AVOID_S = 5.0  # a peer that failed may be tried again after this, if nobody else is there


@dataclass(frozen=True)
class SessionTerms:
    """What all hops of a session agree on."""

    session: SessionId
    owner: PeerId
    model: ModelId
    layers: int
    dim: int
    codec: CodecName
    max_positions: int


@dataclass(frozen=True)
class OwnerStep:
    """One pass down the route, as the owner sends it."""

    number: int
    position: int
    rows: int
    reply_rows: int
    payload: bytes


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
    since_s: float
    lost: list[PeerId]
    reason: str


class SessionMachine:
    """One session as its owner sees it. Sans-IO: every call returns what to do."""

    def __init__(self, terms: SessionTerms, path: tuple[Hop, ...], find_hops: FindHops) -> None:
        self.terms = terms
        self.path = path
        self._find_hops = find_hops
        self._state = _State.OPENING
        self._since_s = 0.0
        self._seeking_s: float | None = None  # since when nobody covers some layers
        self._attempt = 0
        self._steps: list[OwnerStep] = []  # in position order: any hop can be rebuilt from them
        self._next_number = 0
        self._answered = 0  # steps below this number are answered
        self._new = set(range(len(path)))  # indices of hops that lack the session's context
        self._waiting: set[int] = set()  # indices whose accept is awaited
        self._avoid: dict[PeerId, float] = {}  # since when
        self._from_tokens = False  # rebuild from our own steps, not from a survivor's frames
        self._opened = False
        self._repair: _Repair | None = None
        self._lost: NoRouteError | None = None  # why it is over, unless it was closed
        self._patience = Patience()
        self._watch = Watch(path)

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
        while self._steps and self._steps[-1].position >= position:
            if self._steps.pop().number >= self._answered:
                raise LocalError("a step that is under way can't be replaced")
        step = OwnerStep(self._next_number, position, rows, reply_rows, payload)
        self._next_number += 1
        self._steps.append(step)
        if self._state is not _State.READY:
            return step.number, []
        self._patience.sent(step.number, step.rows, now_s)
        return step.number, [self._send(step, rebuild=False)]

    def close(self) -> list[Action]:
        """Tell every hop that the session is over."""
        if self._state is _State.OVER:
            return []
        self._state = _State.OVER
        return self._goodbye(self.path)

    # -- what comes in ------------------------------------------------------------------------

    def receive(
        self,
        sender: PeerId,
        message: ToOwner,
        payload: bytes,
        now_s: float,
    ) -> list[Action]:
        """React to a hop's message; RemoteError if it broke the protocol."""
        if self._state is _State.OVER:
            return []
        if isinstance(message, Pong):
            return self._heard(sender, message, now_s)
        if isinstance(message, Credit | Fed | Leaving) or message.attempt != self._attempt:
            return []  # late
        if isinstance(message, Step):
            return self._result(sender, message, payload, now_s)
        if message.index >= len(self.path):
            raise RemoteError("a reply names a hop that the route does not have")
        if isinstance(message, Failed):
            return self._failed(sender, message, now_s)
        if self.path[message.index].peer != sender:
            raise RemoteError("a reply names a hop that is not its sender")
        if isinstance(message, Accept):
            return self._accepted(message.index, now_s)
        if message.index in self._new or self._from_tokens:
            return self._mend({sender}, f"refused: {message.reason}", now_s)
        self._from_tokens = True  # a survivor that no longer has the frames
        return self._mend(set(), message.reason, now_s)

    def peer_down(self, peer: PeerId, reason: str, now_s: float) -> list[Action]:
        """A peer can't be reached any more."""
        if self._state is _State.OVER or all(hop.peer != peer for hop in self.path):
            return []
        return self._mend({peer}, reason, now_s)

    def peer_in_trouble(self, peer: PeerId, reason: str, now_s: float) -> list[Action]:
        """A peer may be dead: replace it if others have what it holds, else wait and see."""
        lost, avoid = frozenset({peer}), frozenset({peer, *self._avoid})
        found = mend(self.path, self.terms.owner, lost, avoid, self._find_hops)
        return [] if isinstance(found, str) else self.peer_down(peer, reason, now_s)

    def tick(self, now_s: float) -> list[Action]:
        """Let time pass: ping, lose patience, look for a route again."""
        if self._state is _State.OVER:
            return []
        if self._state is _State.SEEKING:
            return self._seek(now_s) if now_s - self._since_s >= SEEK_INTERVAL_S else []
        if self._state is _State.READY:
            late_s = self._patience.late_s(now_s)
            if late_s < PING_INTERVAL_S:
                return self._ping(now_s, KEEPALIVE_S)
            awaited = {hop.peer for hop in self.path}
            silent = self._watch.silent(now_s) if self._patience.is_out(now_s) else set()
        else:
            late_s = now_s - self._since_s
            awaited = {self.path[index].peer for index in self._waiting}
            silent = self._watch.silent(now_s, awaited)
        if silent:
            return self._mend(silent, "did not answer a ping", now_s)
        if late_s > WORK_LIMIT_S:
            return self._mend(awaited, f"took more than {WORK_LIMIT_S:.0f} s", now_s)
        return self._ping(now_s, PING_INTERVAL_S)

    # -- steps and answers --------------------------------------------------------------------

    def _send(self, step: OwnerStep, *, rebuild: bool) -> Send:
        message = Step(
            session=self.terms.session,
            attempt=self._attempt,
            number=step.number,
            layer=0,
            position=step.position,
            rows=step.rows,
            reply_rows=step.reply_rows,
            codec=self.terms.codec,
            rebuild=rebuild,
        )
        return Send(self.path[0].peer, message, step.payload)

    def _result(self, sender: PeerId, message: Step, payload: bytes, now_s: float) -> list[Action]:
        if sender != self.path[-1].peer or message.layer != self.terms.layers or message.rebuild:
            raise RemoteError("a result came from a peer that is not the last hop")
        if self._state is not _State.READY or message.number < self._answered:
            return []
        if message.number != self._answered or message.number >= self._next_number:
            raise RemoteError("a result came for a step that is not the next one awaited")
        step = self._steps[message.number - self._next_number]  # the unanswered are the tail
        wire, dim, rows = codec(self.terms.codec), self.terms.dim, message.rows
        if rows != step.reply_rows or not wire.fits(len(payload), rows, dim):
            raise RemoteError("a result has not the rows that were asked for")
        try:
            states = wire.decode(payload, dim, rows)
        except RemoteError as error:
            return self._mend({sender}, str(error), now_s)
        self._answered += 1
        self._patience.answered(message.number, now_s)
        self._watch.moved()
        return [Arrived(self.terms.session, message.number, states)]

    def _failed(self, sender: PeerId, message: Failed, now_s: float) -> list[Action]:
        near = self.path[max(0, message.index - 1) : message.index + 2]
        if all(hop.peer != sender for hop in near):
            raise RemoteError("a failure names a hop that is no neighbour of its sender")
        return self._mend({self.path[message.index].peer}, message.reason, now_s)

    def _ping(self, now_s: float, interval_s: float) -> list[Action]:
        ping = Ping(self.terms.session, self._attempt)
        return [Send(peer, ping) for peer in self._watch.due(now_s, interval_s)]

    def _heard(self, sender: PeerId, message: Pong, now_s: float) -> list[Action]:
        self._watch.heard(sender)
        current = self._state is _State.READY and message.nonce == self._attempt
        if not current or not self._patience.is_out(now_s):
            return []
        stuck = self._watch.stuck(sender, message, self._answered)
        if stuck is not None:
            return self._mend({stuck}, "idle while a step waits for it", now_s)
        if self._patience.is_hopeless(now_s):
            return self._mend({self._watch.behind()}, "computes without an end", now_s)
        return []

    # -- opening and repairing ----------------------------------------------------------------

    def _enter(self, state: _State, now_s: float) -> None:
        self._state, self._since_s = state, now_s

    def _mend(self, dead: set[PeerId], reason: str, now_s: float) -> list[Action]:
        """Leave `dead` out from now on and find hops for what they held."""
        if self._repair is None:
            self._repair = _Repair(self.path, now_s, [], reason)
        self._repair.lost += sorted(dead - set(self._repair.lost))
        self._avoid.update(dict.fromkeys(dead, now_s))
        self._new |= {index for index, hop in enumerate(self.path) if hop.peer in dead}
        return self._seek(now_s)

    def _seek(self, now_s: float) -> list[Action]:
        if self._state is _State.SEEKING:  # nobody else: those that failed may be back
            self._avoid = {p: at_s for p, at_s in self._avoid.items() if now_s - at_s < AVOID_S}
        lost = frozenset(self._repair.lost if self._repair else ())
        avoid = frozenset(self._avoid)
        found = mend(self.path, self.terms.owner, lost, avoid, self._find_hops)
        if isinstance(found, str):
            if self._seeking_s is None:
                self._seeking_s = now_s
            if self._is_hopeless(now_s):
                self._enter(_State.OVER, now_s)
                hint = "start a worker that hosts these layers: gennode join --layers I:J"
                self._lost = NoRouteError(found, hint=hint)
                return [*self._goodbye(self.path), Lost(self.terms.session, self._lost)]
            self._enter(_State.SEEKING, now_s)
            return []
        kept = {hop for index, hop in enumerate(self.path) if index not in self._new}
        left = [hop for hop in self.path if all(hop.peer != other.peer for other in found)]
        self.path = found
        self._new = {index for index, hop in enumerate(found) if hop not in kept}
        self._attempt += 1
        return [*self._goodbye(left), *self._open_new(now_s)]

    def _is_hopeless(self, now_s: float) -> bool:
        if self._repair is None or now_s - self._repair.since_s > REPAIR_LIMIT_S:
            return True
        return self._seeking_s is not None and now_s - self._seeking_s > SEEK_LIMIT_S

    def _goodbye(self, hops: tuple[Hop, ...] | list[Hop]) -> list[Action]:
        close = Close(self.terms.session)
        return [Send(peer, close) for peer in dict.fromkeys(hop.peer for hop in hops)]

    def _open_new(self, now_s: float) -> list[Action]:
        self._watch = Watch(self.path)
        self._enter(_State.OPENING, now_s)
        self._waiting = set(self._new)
        if not self._waiting:
            return self._open_survivors(now_s)
        return [self._open(index, 0) for index in sorted(self._new)]

    def _open_survivors(self, now_s: float) -> list[Action]:
        self._enter(_State.JOINING, now_s)
        survivors = [index for index in range(len(self.path)) if index not in self._new]
        self._waiting = set(survivors)
        if not survivors:
            return self._resume(now_s)
        source = min(self._new) - 1 if self._new and not self._from_tokens else -1
        positions = self._answered_positions()
        return [self._open(index, positions if index == source else 0) for index in survivors]

    def _open(self, index: int, replay_positions: int) -> Send:
        message = Open(
            session=self.terms.session,
            attempt=self._attempt,
            model=self.terms.model,
            path=self.path,
            index=index,
            codec=self.terms.codec,
            max_positions=self.terms.max_positions,
            replay_positions=replay_positions,
            rebuild_until=max(self._new, default=-1) if self._opened else -1,
        )
        return Send(self.path[index].peer, message)

    def _accepted(self, index: int, now_s: float) -> list[Action]:
        if index not in self._waiting:
            return []
        self._waiting.remove(index)
        if self._waiting:
            return []
        self._seeking_s = None  # somebody took the layers on
        return self._open_survivors(now_s) if self._state is _State.OPENING else self._resume(now_s)

    def _answered_positions(self) -> int:
        ends = [step.position + step.rows for step in self._steps if step.number < self._answered]
        return max(ends, default=0)

    def _resume(self, now_s: float) -> list[Action]:
        """All hops know the path: rebuild from our steps if need be, send the unanswered."""
        self._enter(_State.READY, now_s)
        from_tokens = self._from_tokens or 0 in self._new
        actions = self._tell()
        self._from_tokens, self._new = False, set()
        self._patience.restart()
        for step in self._steps:
            if step.number >= self._answered:
                self._patience.sent(step.number, step.rows, now_s)
                actions.append(self._send(step, rebuild=False))
            elif from_tokens:
                actions.append(self._send(step, rebuild=True))
        return actions

    def _tell(self) -> list[Action]:
        repair, self._repair = self._repair, None
        if not self._opened:
            self._opened = True
            return [Opened(self.terms.session, self.path)]
        if repair is None:
            return []
        lost = tuple(repair.lost)
        return [Rerouted(self.terms.session, repair.before, self.path, lost, repair.reason)]
