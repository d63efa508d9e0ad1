"""The owner's side of a peer: its open sessions, and the routes that it chooses for them."""

from __future__ import annotations

import random

from gennode.errors import LocalError, NoRouteError
from gennode.mesh.directory.absence import Absence
from gennode.mesh.directory.directory import Directory
from gennode.mesh.distances.distances import Distances
from gennode.node.actions import Action
from gennode.node.sessions.choice import RouteChoice
from gennode.node.sessions.course import SessionTerms
from gennode.node.sessions.scouting import Routes, RouteScout
from gennode.node.sessions.session import SessionMachine
from gennode.sharding.route.route import Gap, Route
from gennode.wire.activations import codec as codec_of
from gennode.wire.fields import CodecName
from gennode.wire.ids import SESSION_NONCE_BYTES, Hop, ModelId, PeerId, SessionId, Span, session_id
from gennode.wire.messages import Step, ToOwner

SHUN_S = 5.0  # routes leave a peer out for so long after it could not be reached
MAX_OWN_SESSIONS = 256


class OwnerMachine:
    """All sessions of one owner. Sans-IO: every call returns what to do."""

    def __init__(
        self,
        peer: PeerId,
        rng: random.Random,
        directory: Directory,
        distances: Distances,
        absence: Absence,
    ) -> None:
        self._peer = peer
        self._rng = rng
        self._sessions: dict[SessionId, SessionMachine] = {}
        self._shunned: dict[PeerId, float] = {}
        self._choice = RouteChoice(peer, rng, directory, distances)
        self._routes = Routes(self._choice, absence)

    # -- routes -------------------------------------------------------------------------------

    def route(
        self,
        model: ModelId,
        span: Span,
        entry: PeerId,
        avoid: frozenset[PeerId],
        now_s: float,
        *,
        is_new: bool = True,
    ) -> Route | Gap:
        """The best chain over `span`, as `Routes.find` says."""
        return self._routes.find(model, span, entry, avoid, now_s, is_new=is_new)

    def be_frugal(self, frugal: bool) -> None:
        """Whether a low price counts for more than a quick answer, while there is room."""
        self._choice.frugal = frugal

    def warm_route(
        self, model: ModelId, span: Span, entry: PeerId, avoid: frozenset[PeerId], now_s: float
    ) -> Route | Gap:
        """The best chain over `span` for which nobody has to load a layer."""
        return self._choice.route(model, span, entry, avoid, now_s, allow_cold=False, is_new=True)

    # -- sessions -----------------------------------------------------------------------------

    def open_session(
        self,
        *,
        model: ModelId,
        layers: int,
        dim: int,
        codec: CodecName,
        max_positions: int,
        now_s: float,
        replicate: bool = False,
    ) -> tuple[SessionId, list[Action]]:
        """Begin a session on the best route; NoRouteError if some layers have nobody.

        `replicate`: keep a copy of every hop's cache on a stand-in where that can be. It costs
        the workers their upload, and makes repairs of long sessions short.
        """
        if len(self._sessions) >= MAX_OWN_SESSIONS:
            raise LocalError(f"{MAX_OWN_SESSIONS} sessions of ours are open already")
        shunned = frozenset(self._shunned)
        whole = Span(0, layers)
        self._choice.frames(model, codec_of(codec).row_bytes(dim))
        found = self.route(model, whole, self._peer, shunned, now_s)
        if isinstance(found, Gap) and shunned:
            found = self.route(model, whole, self._peer, frozenset(), now_s)
        if isinstance(found, Gap):
            raise NoRouteError(found.reason, hint="start a worker that has them: gennode join")
        session = session_id(self._peer, self._rng.randbytes(SESSION_NONCE_BYTES))
        terms = SessionTerms(
            session, self._peer, model, layers, dim, codec, max_positions, replicate
        )
        self._routes.now_s = now_s
        scout = RouteScout(self._routes, model, lambda: machine.has_begun)
        machine = SessionMachine(terms, found.hops, scout)
        self._sessions[session] = machine
        self._choice.opened(machine.path)
        return session, machine.start(now_s)

    def submit(
        self,
        session: SessionId,
        position: int,
        rows: int,
        reply_rows: int,
        payload: bytes,
        now_s: float,
    ) -> tuple[int, list[Action]]:
        """Send a step of a session down its route."""
        return self._sessions[session].submit(position, rows, reply_rows, payload, now_s)

    def path(self, session: SessionId) -> tuple[Hop, ...]:
        """The hops of a session, as they are now."""
        return self._sessions[session].path

    def standins(self, session: SessionId) -> tuple[tuple[Hop, ...] | None, ...]:
        """Who would take each of them over at once; None where nobody is known."""
        return self._sessions[session].standins

    def close_session(self, session: SessionId) -> list[Action]:
        """End a session. Idempotent."""
        machine = self._sessions.pop(session, None)
        if machine is None:
            return []
        self._choice.closed(machine.path)
        return machine.close()

    # -- what comes in ------------------------------------------------------------------------

    def heard(self, sender: PeerId, now_s: float) -> None:
        """A peer said something: it can be reached."""
        self._routes.now_s = now_s
        self._shunned.pop(sender, None)

    def owns(self, session: SessionId) -> bool:
        """Whether the session is open here."""
        return session in self._sessions

    def expects(self, message: Step) -> bool:
        """Whether a step is the result of one of ours, and not for us to compute."""
        machine = self._sessions.get(message.session)
        return machine is not None and message.layer == machine.terms.layers

    def receive(
        self, sender: PeerId, message: ToOwner, payload: bytes, now_s: float
    ) -> list[Action]:
        """React to a hop's message; RemoteError if it broke the protocol."""
        machine = self._sessions.get(message.session)
        return machine.receive(sender, message, payload, now_s) if machine else []

    def peer_down(self, peer: PeerId, reason: str, now_s: float) -> list[Action]:
        """A peer can't be reached any more."""
        self._routes.now_s = self._shunned[peer] = now_s
        if any(hop.peer == peer for one in self._sessions.values() for hop in one.path):
            self._choice.failed(peer, now_s)
        machines = list(self._sessions.values())
        return [action for one in machines for action in one.peer_down(peer, reason, now_s)]

    def peer_alive(self, peer: PeerId, now_s: float) -> None:
        """A peer takes in what we send."""
        for machine in self._sessions.values():
            machine.peer_alive(peer, now_s)

    def peer_in_trouble(self, peer: PeerId, reason: str, now_s: float) -> list[Action]:
        """A peer refuses us, and may be back in a moment: go round it where that is possible."""
        self._routes.now_s = now_s
        machines = list(self._sessions.values())
        return [action for one in machines for action in one.peer_in_trouble(peer, reason, now_s)]

    def tick(self, now_s: float) -> list[Action]:
        """Let time pass."""
        self._routes.now_s = now_s
        self._shunned = {
            peer: since_s for peer, since_s in self._shunned.items() if now_s - since_s < SHUN_S
        }
        machines = list(self._sessions.values())
        return [action for machine in machines for action in machine.tick(now_s)]
