"""The worker's side of sessions: a machine that takes frames in and passes frames on.

    Open ─▶ OpenJob ─▶ Accept            a session begins here, or learns its new path
    Step ─▶ StepJob ─▶ Step, Credit      a frame is computed, and passed on (`passing.py`)
    Feed ─▶ Step … | ExportJob ─▶ CachePart …   a stand-in gets what it lacks (`feeds.py`)
    CachePart ─▶ RestoreJob ─▶ Fed, Credit   this worker is the stand-in (`restoring.py`)
    drain ─▶ Leaving, again and again    until the owners have gone elsewhere

Everything a hop does is idempotent on (attempt, step number, position): a repeated frame is
dropped, a late one of an older attempt is ignored, and a step that starts before the end of
what is cached cuts the cache first.

A worker may host several models. A session is bound to one of them from its first Open on: no
hop lets it go over to another, so no answer mixes two versions.
"""

from __future__ import annotations

from collections.abc import Callable

from gennode.errors import GennodeError, RemoteError
from gennode.node.actions import (
    Action,
    CloseJob,
    ExportJob,
    HopKey,
    Job,
    OpenJob,
    Outcome,
    RestoreJob,
    Run,
    Send,
    StepJob,
)
from gennode.node.hops.admission import Admission, EngineQueue, HopLimits, HostedModel
from gennode.node.hops.feeds import Feeds
from gennode.node.hops.hosted import Hosted
from gennode.node.hops.passing import Passing
from gennode.node.hops.restoring import Restoring
from gennode.node.hops.spill import FrameStore, MemoryStore
from gennode.wire.activations import codec
from gennode.wire.ids import ModelId, PeerId, is_session_of
from gennode.wire.messages import (
    Acquaint,
    CachePart,
    Close,
    Credit,
    Feed,
    Open,
    Ping,
    Pong,
    Probe,
    Step,
    ToHop,
)

IDLE_S = 60.0  # an owner pings every few seconds; one silent for a minute is gone
UNUSED_S = 30.0  # from Open to the first step, while others wait: the other hops may have to load
ORPHAN_S = 10.0  # an owner whose link broke may still come back
ACQUAINT_INTERVAL_S = 5.0  # an owner chooses other stand-ins less often
LEAVING_INTERVAL_S = 2.0  # an owner that is just repairing hears it the next time


class HopMachine:
    """Every session that passes through this worker. Sans-IO: returns what to send and run."""

    def __init__(
        self,
        peer: PeerId,
        limits: HopLimits,
        *,
        store: FrameStore | None = None,
        knows: Callable[[PeerId], bool] = lambda _peer: True,
    ) -> None:
        """`store`: where frames go that take too much memory; without one they are given up.
        `knows`: whether a peer is one of the swarm's, so that owners can have us call it.
        """
        self._store = store or MemoryStore()
        self._knows = knows
        self._hosted: dict[HopKey, Hosted] = {}
        self._admission = Admission(peer, limits, self._hosted)
        self._feeds = Feeds(limits, self._admission.models, knows)
        self._passing = Passing(limits, self._hosted, self._feeds)
        self._queue = EngineQueue(limits.queued_bytes)
        self._restoring = Restoring(self._queue, self._admission.models)
        self._told_leaving_s = 0.0

    # -- being a worker -----------------------------------------------------------------------

    @property
    def sessions(self) -> int:
        """Sessions that pass through here now."""
        return self._admission.sessions

    @property
    def queued_bytes(self) -> int:
        """What waits for the engine."""
        return self._queue.size_bytes

    @property
    def retained_bytes(self) -> int:
        """The frames that are kept in memory."""
        return sum(hosted.retained.memory_bytes for hosted in self._hosted.values())

    def sessions_of(self, model: ModelId) -> int:
        """Those of them that run on one model."""
        return self._admission.sessions_of(model)

    def host(self, model: HostedModel) -> None:
        """Take sessions of a model from now on."""
        self._admission.host(model)

    def retire(self, model: ModelId) -> None:
        """Refuse new sessions of a model; those that run go on until they end."""
        self._admission.retire(model)

    def drop(self, model: ModelId) -> None:
        """Forget a model; LocalError while sessions of it run."""
        self._admission.drop(model)

    def drain(self, now_s: float) -> list[Action]:
        """Refuse new sessions, and tell the owners of those that run that we are about to leave."""
        self._admission.is_draining = True
        self._told_leaving_s = now_s
        return [
            hosted.leaving(self._model_of(hosted).cache_position_bytes(hosted.span))
            for hosted in self._hosted.values()
            if hosted.ready
        ]

    # -- what comes in ------------------------------------------------------------------------

    def receive(self, sender: PeerId, message: ToHop, payload: bytes, now_s: float) -> list[Action]:
        """React to a message; RemoteError if its sender broke the protocol."""
        match message:
            case Step():  # first, since there is one for each token
                return self._step(sender, message, payload, now_s)
            case Open():
                return self._open(sender, message, now_s)
            case Credit():
                return self._passing.credit(sender, message, now_s)
            case CachePart():
                hosted = self._hosted.get(HopKey(message.session, message.layer))
                return self._restoring.take(hosted, sender, message, payload, now_s)
            case Close():
                return self._close(sender, message)
            case Ping():
                return self._ping(sender, message, now_s)
            case Feed() | Acquaint():
                hosted = self._hosted.get(HopKey(message.session, message.layer))
                if hosted is None or hosted.owner != sender or not hosted.ready:
                    return []
                if isinstance(message, Feed):
                    return self._feeds.begin(hosted, message, now_s)
                return self._acquaint(hosted, message, now_s)

    def feeds(self, sender: PeerId, message: Credit) -> bool:
        """Whether a credit is for what a stand-in is fed from here."""
        return self._feeds.goes_to(sender, message)

    def computed(self, job: Job, outcome: Outcome, now_s: float) -> list[Action]:
        """The engine has done a job (or failed at it)."""
        if isinstance(job, CloseJob):
            return []
        if isinstance(job, ExportJob):
            return self._feeds.exported(job, outcome, now_s)
        if isinstance(job, StepJob | RestoreJob):
            self._queue.size_bytes -= len(job.payload)
        hosted = self._hosted.get(job.key)
        if hosted is None:
            return [Run(CloseJob(job.model, job.key))] if isinstance(job, OpenJob) else []
        if (job.attempt, job.model) != (hosted.opened.attempt, hosted.opened.model):
            return []
        if isinstance(job, OpenJob):
            return self._opened(hosted, outcome)
        if isinstance(job, RestoreJob):
            return self._restoring.restored(job, hosted, outcome)
        return self._stepped(job, hosted, outcome, now_s)

    def peer_down(self, peer: PeerId, now_s: float) -> list[Action]:
        """A peer can't be reached, or broke the protocol: tell owners whose next hop it was.

        The same of the hop before: where it was cut off for what it sent, nobody else knows.
        If it owns sessions here, they wait for it a little and are forgotten then.
        """
        told: list[Action] = []
        for hosted in self._hosted.values():
            if hosted.owner == peer:
                hosted.heard_s = min(hosted.heard_s, now_s + ORPHAN_S - IDLE_S)
            path, own = hosted.opened.path, hosted.opened.index
            for index in (own - 1, own + 1):
                if 0 <= index < len(path) and path[index].peer == peer:
                    told.append(hosted.failed(index, hosted.passed, "can't be reached"))
        return told + self._feeds.peer_down(peer)

    def tick(self, now_s: float) -> list[Action]:
        """Forget sessions whose owner is silent, or never used them while others wait."""
        unused_s = UNUSED_S if self._admission.is_crowded else float("inf")
        actions = self._feeds.tick(now_s)
        for key, hosted in list(self._hosted.items()):
            is_unused = now_s - hosted.opened_s > unused_s and not hosted.positions
            if is_unused or now_s - hosted.heard_s > IDLE_S:
                actions.append(self._forget(key))
        if self._admission.is_draining and now_s - self._told_leaving_s >= LEAVING_INTERVAL_S:
            actions += self.drain(now_s)
        return actions

    # -- opening and closing ------------------------------------------------------------------

    def _open(self, sender: PeerId, message: Open, now_s: float) -> list[Action]:
        if not is_session_of(message.session, sender):
            raise RemoteError("a session is named for another owner")
        hop = self._admission.own_hop(message)
        self._admission.check_terms(message)
        key = HopKey(message.session, hop.span.start)
        before = self._hosted.get(key)
        if before is not None and before.opened.model == message.model:
            before.heard_s = now_s
            if message.attempt <= before.opened.attempt:
                return []  # late or repeated; an accept is on its way, or was
            if before.span == hop.span and before.ready and not before.lost:
                return self._reopen(before, message, now_s)
        hosted = Hosted(key, sender, message, self._store, now_s)
        reason = self._admission.objection(sender, message, hop.span)
        if reason:
            return [hosted.refuse(message, reason)]
        left_out = [one for one in self._admission.superseded(message, hop.span) if one != key]
        closed = [self._forget(one) for one in left_out]
        if before is not None:
            self._forget(key)  # the engine begins it anew
        self._hosted[key] = hosted
        job = OpenJob(message.model, key, message.attempt, hop.span, message.max_positions, sender)
        return [*closed, Run(job)]

    def _opened(self, hosted: Hosted, outcome: Outcome) -> list[Action]:
        if isinstance(outcome, GennodeError):
            return [self._forget(hosted.key), hosted.refuse(hosted.opened, str(outcome))]
        hosted.ready = True
        return [hosted.accept()]

    def _reopen(self, hosted: Hosted, message: Open, now_s: float) -> list[Action]:
        """A survivor learns its new path, and feeds the new worker below it if asked to."""
        start, end = message.replay_from, message.replay_positions
        if not hosted.retained.covers(start, end):
            return [hosted.refuse(message, "the frames for a replay are no longer retained")]
        if end > start and not hosted.replays.may_take(now_s):
            return [hosted.refuse(message, "too many replays in a short time")]
        return [*self._passing.begin_anew(hosted, message), hosted.accept()]

    def _close(self, sender: PeerId, message: Close) -> list[Action]:
        owned = [key for key, hosted in self._hosted.items() if hosted.owner == sender]
        return [self._forget(key) for key in owned if key.session == message.session]

    def _forget(self, key: HopKey) -> Action:
        hosted = self._hosted.pop(key)
        hosted.retained.give_up()
        self._feeds.forget(key)
        return Run(CloseJob(hosted.opened.model, key))

    def _model_of(self, hosted: Hosted) -> HostedModel:
        return self._admission.models[hosted.opened.model]

    # -- steps --------------------------------------------------------------------------------

    def _step(self, sender: PeerId, message: Step, payload: bytes, now_s: float) -> list[Action]:
        key = HopKey(message.session, message.layer)
        hosted = self._hosted.get(key)
        if hosted is None or message.attempt != hosted.opened.attempt:
            return []  # late: the session has moved on, or is over
        if sender != hosted.sender or not hosted.ready:
            return []
        # What was only rebuilt comes again if it was not answered before.
        if message.number <= max(hosted.received, hosted.rebuilt if message.rebuild else -1):
            return [*hosted.took_step(len(payload))]
        model = self._model_of(hosted)
        objection = self._step_objection(hosted, message, len(payload), model.dim)
        if objection is not None:
            blamed, reason = objection
            return [hosted.failed(blamed, message.number, reason)]
        hosted.comes(message, now_s)
        self._queue.size_bytes += len(payload)
        job = StepJob(
            model.model, key, message.attempt, message.number, message.position, message.rows,
            min(message.reply_rows, message.rows), message.rebuild, message.codec, payload,
        )  # fmt: skip
        return [Run(job)]

    def _step_objection(
        self, hosted: Hosted, message: Step, payload_bytes: int, dim: int
    ) -> tuple[int, str] | None:
        """Whose fault it is, by place on the route, that a step can't be done, and why.

        The session's owner judges: for a RemoteError we would cut off the hop before, whom an
        owner may have told other terms to have us do just that.
        """
        opened = hosted.opened
        if message.codec != opened.codec or message.rows < 1:
            return opened.index - 1, "a step has no rows, or not the session's codec"
        if not codec(message.codec).fits(payload_bytes, message.rows, dim):
            return opened.index - 1, "a step's payload is not as long as its rows"
        if message.position + message.rows > opened.max_positions:
            return opened.index - 1, f"a step reaches past position {opened.max_positions}"
        if hosted.queued_rows + message.rows > opened.max_positions:
            return opened.index - 1, "more rows are waiting than a replay of all would send"
        if message.position > hosted.positions:
            return opened.index, "frames are missing"
        if not self._queue.has_room(payload_bytes):
            return opened.index, "too much is waiting"
        return None

    def _stepped(
        self, job: StepJob, hosted: Hosted, outcome: Outcome, now_s: float
    ) -> list[Action]:
        hosted.queued_rows -= job.rows
        if isinstance(outcome, GennodeError):
            # What failed here is begun anew if its owner comes back: the engine may have lost it.
            hosted.lost = hosted.lost or not isinstance(outcome, RemoteError)
            blamed = hosted.opened.index - isinstance(outcome, RemoteError)
            return [hosted.failed(blamed, job.number, str(outcome))]
        if not isinstance(outcome, bytes):
            return []
        hosted.goes(job, now_s)
        return self._passing.pass_on(hosted, job, outcome, self._model_of(hosted).dim)

    # -- the rest -----------------------------------------------------------------------------

    def _acquaint(self, hosted: Hosted, message: Acquaint, now_s: float) -> list[Action]:
        """Have a link to a stand-in, by sending it something."""
        if now_s - hosted.acquainted_s < ACQUAINT_INTERVAL_S or not self._knows(message.peer):
            return []
        hosted.acquainted_s = now_s
        return [Send(message.peer, Probe(0))]

    def _ping(self, sender: PeerId, message: Ping, now_s: float) -> list[Action]:
        progress = []
        for key, hosted in self._hosted.items():
            if key.session == message.session and hosted.owner == sender:
                hosted.heard_s = now_s
                progress.append(hosted.progress)
        return [Send(sender, Pong(message.session, message.nonce, tuple(progress)))]
