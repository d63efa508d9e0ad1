"""The worker's side of sessions: a machine that takes frames in and passes frames on.

Everything a hop does is idempotent on (attempt, step number, position): a repeated frame is
dropped, a late one of an older attempt is ignored, and a step that starts before the end of
what is cached cuts the cache first.

A worker may host several models. A session is bound to one of them from its first Open on: no
hop lets it go over to another, so no answer mixes two versions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gennode.errors import GennodeError, LocalError, RemoteError
from gennode.node.actions import (
    Action,
    CloseJob,
    HopKey,
    Job,
    OpenJob,
    Outcome,
    Run,
    Send,
    StepJob,
)
from gennode.node.hops.retained import Retained
from gennode.sharding.route.preferences import reserved_seats
from gennode.wire.activations import Buffer, codec
from gennode.wire.fields import as_text
from gennode.wire.ids import Hop, ModelId, PeerId, Span
from gennode.wire.messages import (
    Accept,
    Close,
    Failed,
    Open,
    Ping,
    Pong,
    Progress,
    Refuse,
    Step,
    ToHop,
)

IDLE_S = 60.0  # an owner pings every few seconds; one silent for a minute is gone
UNUSED_S = 30.0  # from Open to the first step, while others wait: the other hops may have to load
ORPHAN_S = 10.0  # an owner whose link broke may still come back
MAX_SESSIONS = 16  # each has a cache in every layer


@dataclass(frozen=True)
class HopLimits:
    """What one worker takes on, over all models."""

    max_sessions: int = MAX_SESSIONS
    max_sessions_of_one_owner: int = 8
    max_sessions_when_full: int = 2
    """Of one owner, where less than a quarter of all is free: the rest is for others."""
    retained_bytes: int = 512 * 1024 * 1024
    """Output frames kept for replays, over all sessions."""
    queued_bytes: int = 256 * 1024 * 1024
    """Input frames that wait for the engine, over all sessions."""


@dataclass(frozen=True)
class HostedModel:
    """What hops need to know of a model. `can_host`: whether a span is loaded or still may be.
    `is_leaving`: whether some of it stays for those sessions alone that are here already.
    """

    model: ModelId
    layers: int
    dim: int
    max_positions: int
    can_host: Callable[[Span], bool]
    is_leaving: Callable[[Span], bool] = lambda _span: False


@dataclass
class _Hosted:
    """One session's passage through this worker."""

    owner: PeerId
    opened: Open
    heard_s: float
    opened_s: float
    ready: bool = False
    lost: bool = False  # a step failed, so that the engine may know nothing of it any more
    positions: int = 0  # received so far, computed or queued
    received: int = -1  # highest step of this attempt
    passed: int = -1  # highest step of this attempt that was passed on
    queued_rows: int = 0  # of this attempt, waiting for the engine
    retained: Retained = field(default_factory=Retained)

    @property
    def span(self) -> Span:
        return self.opened.path[self.opened.index].span

    @property
    def is_last(self) -> bool:
        return self.opened.index == len(self.opened.path) - 1

    @property
    def sender(self) -> PeerId:
        return self.opened.path[self.opened.index - 1].peer if self.opened.index else self.owner


class HopMachine:
    """Every session that passes through this worker. Sans-IO: returns what to send and run."""

    def __init__(self, peer: PeerId, limits: HopLimits) -> None:
        self._peer = peer
        self._limits = limits
        self._models: dict[ModelId, HostedModel] = {}
        self._retired: set[ModelId] = set()
        self._hosted: dict[HopKey, _Hosted] = {}
        self._queued_bytes = 0

    @property
    def sessions(self) -> int:
        """Sessions that pass through here now."""
        return len({key.session for key in self._hosted})

    def sessions_of(self, model: ModelId) -> int:
        """Those of them that run on one model."""
        return len({key.session for key, one in self._hosted.items() if one.opened.model == model})

    def host(self, model: HostedModel) -> None:
        """Take sessions of a model from now on."""
        self._models[model.model] = model
        self._retired.discard(model.model)

    def retire(self, model: ModelId) -> None:
        """Refuse new sessions of a model; those that run go on until they end."""
        if model in self._models:
            self._retired.add(model)

    def drop(self, model: ModelId) -> None:
        """Forget a model; LocalError while sessions of it run."""
        if self.sessions_of(model):
            raise LocalError(f"sessions of model {model[:12]} still run", hint="retire it first")
        self._models.pop(model, None)
        self._retired.discard(model)

    def receive(self, sender: PeerId, message: ToHop, payload: bytes, now_s: float) -> list[Action]:
        """React to a message; RemoteError if its sender broke the protocol."""
        match message:
            case Open():
                return self._open(sender, message, now_s)
            case Step():
                return self._step(sender, message, payload, now_s)
            case Ping():
                return self._ping(sender, message, now_s)
            case Close():
                return self._close(sender, message)
        return []

    def computed(self, job: Job, outcome: Outcome, now_s: float) -> list[Action]:
        """The engine has done a job (or failed at it)."""
        if not isinstance(job, OpenJob | StepJob):
            return []
        if isinstance(job, StepJob):
            self._queued_bytes -= len(job.payload)
        hosted = self._hosted.get(job.key)
        if hosted is None:
            return [Run(CloseJob(job.model, job.key))] if isinstance(job, OpenJob) else []
        if (job.attempt, job.model) != (hosted.opened.attempt, hosted.opened.model):
            return []
        if isinstance(job, StepJob):
            hosted.queued_rows -= job.rows
        if isinstance(job, OpenJob):
            return self._opened(job, hosted, outcome)
        if isinstance(outcome, GennodeError):
            # What failed here is begun anew if its owner comes back: the engine may have lost it.
            hosted.lost = hosted.lost or not isinstance(outcome, RemoteError)
            blamed = hosted.opened.index - isinstance(outcome, RemoteError)
            return [self._failed(hosted, blamed, job.number, str(outcome))]
        return self._pass_on(job, hosted, outcome) if isinstance(outcome, bytes) else []

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
                    told.append(self._failed(hosted, index, hosted.passed, "can't be reached"))
        return told

    def tick(self, now_s: float) -> list[Action]:
        """Forget sessions whose owner is silent, or never used them while others wait."""
        unused_s = UNUSED_S if self._is_crowded else float("inf")
        silent = {key for key, one in self._hosted.items() if now_s - one.heard_s > IDLE_S}
        unused = {k for k, one in self._hosted.items() if now_s - one.opened_s > unused_s}
        unused = {key for key in unused if not self._hosted[key].positions}
        return [self._forget(key) for key in list(self._hosted) if key in silent | unused]

    @property
    def _is_crowded(self) -> bool:
        """Whether less than a quarter of all sessions is free."""
        return 4 * self.sessions >= 3 * self._limits.max_sessions

    # -- opening ------------------------------------------------------------------------------

    def _open(self, sender: PeerId, message: Open, now_s: float) -> list[Action]:
        hop = self._own_hop(message)
        key = HopKey(message.session, hop.span.start)
        hosted = self._hosted.get(key)
        if hosted is not None and hosted.opened.model == message.model:
            if hosted.owner != sender:
                raise RemoteError("a session can be opened by its owner alone")
            hosted.heard_s = now_s
            if message.attempt <= hosted.opened.attempt:
                return []  # late or repeated; an accept is on its way, or was
            if hosted.span == hop.span and hosted.ready and not hosted.lost:
                return self._reopen(hosted, message)
        reason = self._objection(sender, message, hop.span)
        if reason:
            return [Send(sender, Refuse(message.session, message.attempt, message.index, reason))]
        self._hosted[key] = _Hosted(sender, message, heard_s=now_s, opened_s=now_s)
        job = OpenJob(message.model, key, message.attempt, hop.span, message.max_positions, sender)
        return [Run(job)]

    def _own_hop(self, message: Open) -> Hop:
        path, model = message.path, self._models.get(message.model)
        ends = [0, *(hop.span.end for hop in path)]
        if model and ends != [*(hop.span.start for hop in path), model.layers]:
            raise RemoteError("a route's spans must join and cover all layers")
        if any(hop.span.layers < 1 for hop in path):
            raise RemoteError("a route holds an empty span")
        if message.index >= len(path) or path[message.index].peer != self._peer:
            raise RemoteError("a route's index does not point at the peer that it was sent to")
        return path[message.index]

    def _objection(self, owner: PeerId, message: Open, span: Span) -> str:
        model = self._models.get(message.model)
        if model is None:
            return f"this worker does not host model {message.model[:12]}"
        if message.max_positions > model.max_positions:
            return f"sessions end at {model.max_positions} positions here"
        running = [one for key, one in self._hosted.items() if key.session == message.session]
        if any(one.opened.model != message.model for one in running):
            return "a session can't go over to another model"
        if not running and (reason := self._objection_to_new(owner, message, model, span)):
            return reason
        if not model.can_host(span):
            return f"layers {span} are not here and would not fit"
        return ""

    def _objection_to_new(
        self, owner: PeerId, message: Open, model: HostedModel, span: Span
    ) -> str:
        """Why no session begins here that has no hop here yet.

        The last seats are for those that lost a hop elsewhere. An owner may lie about that, and
        gets no more by it than its share of a full worker.
        """
        if model.model in self._retired:
            return f"model {model.model[:12]} is being retired here"
        if model.is_leaving(span):
            return f"layers {span} are leaving this worker"
        if self.sessions >= self._limits.max_sessions:
            return f"all {self._limits.max_sessions} sessions are taken"
        carries_on = 0 <= message.index <= message.rebuild_until
        reserved = 0 if carries_on else reserved_seats(self._limits.max_sessions)
        if self.sessions >= self._limits.max_sessions - reserved:
            return f"the last {reserved} sessions are kept for those that lost a hop"
        own = {key.session for key, hosted in self._hosted.items() if hosted.owner == owner}
        share = self._limits.max_sessions_of_one_owner
        if self._is_crowded:
            share = min(share, self._limits.max_sessions_when_full)
        if len(own) >= share:
            return f"one owner may hold {share} sessions" + " now" * self._is_crowded
        return ""

    def _reopen(self, hosted: _Hosted, message: Open) -> list[Action]:
        """A survivor learns its new path, and feeds the new worker below it if asked to."""
        reply = Accept(message.session, message.attempt, message.index)
        positions = message.replay_positions
        if positions and not hosted.retained.covers(positions):
            reason = "the frames for a replay are no longer retained"
            refusal = Refuse(message.session, message.attempt, message.index, reason)
            return [Send(hosted.owner, refusal)]
        hosted.opened = message
        hosted.received = hosted.passed = -1
        hosted.queued_rows = 0
        actions: list[Action] = []
        if positions:
            for frame in hosted.retained.frames:
                if frame.position + frame.rows <= positions:
                    actions.append(self._forward(hosted, frame, rebuild=True))
        return [*actions, Send(hosted.owner, reply)]

    def _opened(self, job: OpenJob, hosted: _Hosted, outcome: Outcome) -> list[Action]:
        message = hosted.opened
        if isinstance(outcome, GennodeError):
            reason = as_text(str(outcome))
            refusal = Refuse(message.session, message.attempt, message.index, reason)
            return [self._forget(job.key), Send(hosted.owner, refusal)]
        hosted.ready = True
        return [Send(hosted.owner, Accept(message.session, message.attempt, message.index))]

    # -- steps --------------------------------------------------------------------------------

    def _step(self, sender: PeerId, message: Step, payload: bytes, now_s: float) -> list[Action]:
        key = HopKey(message.session, message.layer)
        hosted = self._hosted.get(key)
        if hosted is None or message.attempt != hosted.opened.attempt:
            return []  # late: the session has moved on, or is over
        if sender != hosted.sender or message.number <= hosted.received or not hosted.ready:
            return []
        model = self._models[hosted.opened.model]
        if not codec(message.codec).fits(len(payload), message.rows, model.dim):
            raise RemoteError("a step's payload is not as long as its rows")
        objection = self._step_objection(hosted, message, len(payload))
        if objection is not None:
            blamed, reason = objection
            return [self._failed(hosted, blamed, message.number, reason)]
        hosted.heard_s = now_s
        hosted.received = message.number
        hosted.positions = message.position + message.rows
        hosted.queued_rows += message.rows
        self._queued_bytes += len(payload)
        job = StepJob(
            model.model, key, message.attempt, message.number, message.position, message.rows,
            min(message.reply_rows, message.rows), message.rebuild, message.codec, payload,
        )  # fmt: skip
        return [Run(job)]

    def _step_objection(
        self, hosted: _Hosted, message: Step, payload_bytes: int
    ) -> tuple[int, str] | None:
        """Whose fault it is, by place on the route, that a step can't be done, and why.

        The session's owner judges: for a RemoteError we would cut off the hop before, whom an
        owner may have told other terms to have us do just that.
        """
        opened = hosted.opened
        if message.codec != opened.codec or message.rows < 1:
            return opened.index - 1, "a step has no rows, or not the session's codec"
        if message.position + message.rows > opened.max_positions:
            return opened.index - 1, f"a step reaches past position {opened.max_positions}"
        if hosted.queued_rows + message.rows > opened.max_positions:
            return opened.index - 1, "more rows are waiting than a replay of all would send"
        if message.position > hosted.positions:
            return opened.index, "frames are missing"
        if self._queued_bytes + payload_bytes > self._limits.queued_bytes:
            return opened.index, "too much is waiting"
        return None

    def _pass_on(self, job: StepJob, hosted: _Hosted, payload: bytes) -> list[Action]:
        hosted.passed = job.number
        frame = replace(job, payload=payload)
        if not hosted.is_last and hosted.retained.complete:
            hosted.retained.add(frame)
            self._bound_retained()
        if job.rebuild and hosted.opened.index >= hosted.opened.rebuild_until:
            return []
        return [self._forward(hosted, frame, rebuild=job.rebuild)]

    def _forward(self, hosted: _Hosted, frame: StepJob, *, rebuild: bool) -> Send:
        opened, rows = hosted.opened, frame.rows
        payload: Buffer = memoryview(frame.payload)
        peer = hosted.owner if hosted.is_last else opened.path[opened.index + 1].peer
        if hosted.is_last:  # the owner samples from the last rows alone
            rows, dim = frame.reply_rows, self._models[opened.model].dim
            payload = codec(opened.codec).last_rows(payload, frame.rows, rows, dim)
        message = Step(
            session=opened.session,
            attempt=opened.attempt,
            number=frame.number,
            layer=hosted.span.end,
            position=frame.position + frame.rows - rows,
            rows=rows,
            reply_rows=frame.reply_rows,
            codec=opened.codec,
            rebuild=rebuild,
        )
        return Send(peer, message, payload)

    def _bound_retained(self) -> None:
        """Give up the largest session's frames when all take too much: it can still be
        rebuilt from tokens."""
        while True:
            held = [hosted.retained for hosted in self._hosted.values()]
            if sum(retained.size_bytes for retained in held) <= self._limits.retained_bytes:
                return
            max(held, key=lambda retained: retained.size_bytes).drop()

    # -- the rest -----------------------------------------------------------------------------

    def _ping(self, sender: PeerId, message: Ping, now_s: float) -> list[Action]:
        progress = []
        for key, hosted in self._hosted.items():
            if key.session == message.session and hosted.owner == sender:
                hosted.heard_s = now_s
                busy = hosted.queued_rows > 0 or not hosted.ready
                progress.append(Progress(key.layer, hosted.passed, busy))
        return [Send(sender, Pong(message.session, message.nonce, tuple(progress)))]

    def _close(self, sender: PeerId, message: Close) -> list[Action]:
        owned = [key for key, hosted in self._hosted.items() if hosted.owner == sender]
        return [self._forget(key) for key in owned if key.session == message.session]

    def _forget(self, key: HopKey) -> Action:
        hosted = self._hosted.pop(key)
        return Run(CloseJob(hosted.opened.model, key))

    def _failed(self, hosted: _Hosted, index: int, number: int, reason: str) -> Send:
        opened = hosted.opened
        place = max(0, index), max(0, number)
        failure = Failed(opened.session, opened.attempt, *place, as_text(reason))
        return Send(hosted.owner, failure)
