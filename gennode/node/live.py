"""The live shell: the peer machine on asyncio, real links, the engine's thread, a real clock."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from gennode.engine.seam import OwnerEngine
from gennode.errors import LocalError, NetworkError, RemoteError
from gennode.mesh.links.limits import Use
from gennode.mesh.links.links import Links
from gennode.mesh.transport import Transport
from gennode.node.actions import Job, Lost, Opened, OpenJob, Outcome, Rerouted, Run, Send
from gennode.node.computing import Computing
from gennode.node.hops.spill import FrameStore
from gennode.node.meeting import Meeting, Where
from gennode.node.peer import PeerAction, PeerMachine
from gennode.node.peers import PeerBook
from gennode.node.plans.planning import Accepted, Judge, PlanEvent
from gennode.node.plans.proposals import Refused
from gennode.node.sessions.live import LivePipeline, LiveSessions
from gennode.node.worker import Work, Worker
from gennode.sharding.route.route import Gap
from gennode.wire.announcement import Announcement
from gennode.wire.fields import CodecName, Reach, as_text
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.messages import Message, Step
from gennode.wire.signing import Key, Signed

log = logging.getLogger(__name__)

T = TypeVar("T")

TICK_S = 0.05
WARM_PATIENCE_S = 3.0  # a directory exchange takes a second
HEAR_TIMEOUT_S = 10.0
QUIET_S = 1.5  # longer than the directory's exchange interval


class LiveNode:
    """One running peer: worker, owner or both. An async context manager."""

    def __init__(
        self,
        transport: Transport,
        key: Key,
        *,
        codec_name: CodecName = "int8-outlier",
        on_event: Callable[[Opened | Rerouted], None] = lambda _event: None,
        book: PeerBook | None = None,
        store: FrameStore | None = None,
    ) -> None:
        """`store`: where frames go that take too much memory."""
        instance = time.time_ns() // 1_000_000
        self.machine = PeerMachine(key, rng=random.SystemRandom(), instance=instance, store=store)
        self.transport = transport
        self.codec = codec_name
        self.step_bytes = 0
        """What the steps took that were sent from here, with all headers."""
        self.on_plan: Callable[[PlanEvent], None] = lambda _event: None
        """Heeds what becomes of plans."""
        self.workers: dict[ModelId, Worker] = {}
        """What is hosted, retired models too until they are dropped."""
        self._seeking: dict[ModelId, asyncio.Task[None]] = {}
        self.replicate = False
        """Whether stand-ins get copies of the caches of our own sessions."""
        self.is_leaving = False
        """Whether it only waits for its sessions to go over to others."""
        self._past_work = Work()
        self._book = book or PeerBook(None)
        self._rival = 0
        self._sessions = LiveSessions(self.machine.owning, codec_name, self.act, on_event)
        self._directory_seen = -1
        self._directory_changed = asyncio.Event()
        self._crash: BaseException | None = None
        self._has_left = False
        self._stack = AsyncExitStack()

    # -- life ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            self._computing = Computing(self._computed, self.fail)
            stack.callback(self._computing.close)
            self.links = Links(
                self.transport,
                self._on_message,
                self._on_down,
                on_trouble=self._on_trouble,
                on_alive=lambda peer: self.machine.owning.peer_alive(peer, self._now_s()),
            )
            self._meeting = Meeting(self.transport, self._book, self.links.learn)
            await stack.enter_async_context(self.links)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            self.locate(reach="unknown", relay=False)
            ticking = group.create_task(self._keep_ticking())
            stack.callback(ticking.cancel)
            keeping = group.create_task(self._meeting.keep_book(self._good))
            stack.callback(keeping.cancel)
            self._group = group
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._book.save(self._good())
        with suppress(NetworkError):  # the links' own tasks have failed: nobody can be told
            self.act(self.machine.leave(self._now_s(), self._meeting.known))
        self._has_left = True  # what still comes in finds nobody to act on it
        try:
            await self._stack.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            if self._crash is not None:
                raise self._crash from group
            if group.exceptions != (error,):
                raise
            # what the body raised goes on as it is, not inside an exception group

    def release(self, signed: Signed) -> int:
        """Publish a release of our own; to how many workers it goes straight."""
        actions = self.machine.release(signed, self._now_s())
        self.act(actions)
        return len(actions)

    def drain(self) -> None:
        """Take nothing on any more, and ask the owners of what runs here to go elsewhere."""
        self.is_leaving = True
        self.act(self.machine.drain(self._now_s()))

    def fail(self, error: BaseException) -> None:
        """End the node: `error` is raised out of its context."""
        self._crash = self._crash or error

    async def in_engine_thread(self, call: Callable[[], T]) -> T:
        """Run something long, such as loading layers, where jobs run: one at a time."""
        return await self._computing.call(call)

    async def serve(self, worker: Worker) -> None:
        """Host a model's layers from now on, beside others; measures them first."""
        model = worker.engine.model
        await self.in_engine_thread(worker.hosting)
        self.workers[model] = worker
        self.machine.serve(worker.terms(), worker.hosting())
        self.act(self.machine.tick(self._now_s(), self._meeting.known))  # announced from here on
        if model not in self._seeking:
            self._seeking[model] = self._group.create_task(self._meeting.keep_rendezvous(model))
            self._stack.callback(self._seeking[model].cancel)

    @property
    def tasks(self) -> asyncio.TaskGroup:
        """What runs as a part of this node."""
        return self._group

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something for as long as the node runs; what it raises ends the node."""
        task = self._group.create_task(work)
        self._stack.callback(task.cancel)

    def locate(self, *, reach: Reach, relay: bool) -> None:
        """Announce the transport's addresses of now, and how this node can be reached."""
        self.machine.locate(self.transport.addresses(), reach=reach, relay=relay)

    async def drop(self, model: ModelId) -> None:
        """Host a model no longer: it must be idle. Its memory is free when this returns."""
        self.machine.drop(model)
        worker = self.workers.pop(model, None)
        seeking = self._seeking.pop(model, None)
        if seeking is not None:
            seeking.cancel()
        if worker is not None:
            self._past_work = self._past_work + worker.work
            self._computing.forget(model)
            await self.in_engine_thread(lambda: None)  # jobs that were queued for it are over

    async def bootstrap(self, addresses: Sequence[str]) -> None:
        """Connect to the first peers, or without any to those that we knew in earlier runs.

        NetworkError if there are addresses and none of them answers.
        """
        await self._meeting.bootstrap(addresses)

    @property
    def is_alone(self) -> bool:
        """Whether we know of nobody to exchange the directory with."""
        return not self._meeting.known

    async def find_workers(self, model: ModelId, layers: int, *, timeout_s: float) -> None:
        """Wait until the directory covers a model's layers, or the time is over.

        For a moment only layers that are loaded count: the first worker that we hear of would
        often load all the others' as well.
        """
        await self._meeting.rendezvous(model, provide=False)
        start_s, whole, own = self._now_s(), Span(0, layers), self.machine.peer
        for find, patience_s in (
            (self.machine.owning.warm_route, min(WARM_PATIENCE_S, timeout_s)),
            (self.machine.owning.route, timeout_s),
        ):
            while isinstance(find(model, whole, own, frozenset(), self._now_s()), Gap):
                if not await self._directory_changes(start_s + patience_s - self._now_s()):
                    break
            else:
                return

    async def hear(self, model: ModelId) -> None:
        """Wait for the first announcement, then until no more come for a moment."""
        await self._meeting.rendezvous(model, provide=False)
        deadline_s = self._now_s() + HEAR_TIMEOUT_S
        quiet_s = QUIET_S if self.live() else HEAR_TIMEOUT_S
        while await self._directory_changes(min(quiet_s, deadline_s - self._now_s())):
            quiet_s = QUIET_S

    async def _directory_changes(self, within_s: float) -> bool:
        """Wait for the next change; whether there was one in time."""
        self._directory_changed.clear()
        try:
            async with asyncio.timeout(within_s):
                await self._directory_changed.wait()
        except TimeoutError:
            return False
        return True

    # -- what keeps going ---------------------------------------------------------------------

    async def _keep_ticking(self) -> None:
        while True:
            if self._crash is not None:
                raise self._crash
            self.act(self.machine.tick(self._now_s(), self._meeting.known))
            self._notice_twin()
            for fork in self.machine.releases.take_forks():
                log.warning("release_forked line=%s number=%d", fork.line, fork.number)
            await asyncio.sleep(TICK_S)

    def _good(self) -> list[Where]:
        return [(peer, self.machine.addresses(peer)) for peer in self.machine.good_neighbours]

    def _notice_twin(self) -> None:
        """Two nodes with one key: the one that began later ends, once the other has seen it."""
        rival = self.machine.rival
        if rival is not None and rival.instance != self._rival:
            self._rival = rival.instance
            log.warning(
                "duplicate_identity peer=%s instance=%d stays=%s addresses=%s",
                rival.peer, rival.instance, not self.machine.is_superseded, rival.addresses,
            )  # fmt: skip
        if self.machine.is_superseded:
            hint = "stop that one, or give this one a folder of its own with --state"
            self.fail(NetworkError("another node runs with this node's key", hint=hint))

    def live(self) -> tuple[Announcement, ...]:
        """Every announcement that is alive."""
        return self.machine.live(self._now_s())

    def uses(self) -> tuple[Use, ...]:
        """The limits towards other peers, and what is used of them."""
        return self.links.uses()

    @property
    def work(self) -> Work:
        """What this node has computed for others."""
        return sum((worker.work for worker in self.workers.values()), self._past_work)

    def _now_s(self) -> float:
        return time.monotonic()

    # -- messages in, actions out -------------------------------------------------------------

    def _on_message(self, sender: PeerId, message: Message, payload: bytes) -> None:
        try:
            actions = self.machine.receive(sender, message, payload, self._now_s())
        except RemoteError:
            raise
        except Exception as error:  # noqa: BLE001 - task root: no message may end the node
            self._lose(message, error)
        else:
            self.act(actions)

    def _lose(self, message: Message, error: Exception) -> None:
        """A fault of ours costs the session that it befell, if it is one of our own."""
        log.error("fault_of_ours message=%s", type(message).__name__, exc_info=error)
        session = getattr(message, "session", None)
        if session is not None and self.machine.owning.owns(session):
            self._sessions.tell(Lost(session, LocalError(f"a fault of ours: {error!r}")))

    def _on_down(self, peer: PeerId, reason: str, _breach: bool) -> None:
        self.act(self.machine.peer_down(peer, as_text(reason), self._now_s()))

    def _on_trouble(self, peer: PeerId, reason: str) -> None:
        self.act(self.machine.peer_in_trouble(peer, as_text(reason), self._now_s()))

    def act(self, actions: Sequence[PeerAction]) -> None:
        """Do what a machine of this node decided."""
        if self._has_left:
            return
        for action in actions:
            match action:
                case Send():
                    sent_bytes = self.links.send(action.peer, action.message, action.payload)
                    if isinstance(action.message, Step):
                        self.step_bytes += sent_bytes
                case Run():
                    self._run(action.job)
                case Judge() | Accepted() | Refused():
                    self.on_plan(action)
                case _:
                    self._sessions.tell(action)
        if self.machine.directory_version != self._directory_seen:
            self._directory_seen = self.machine.directory_version
            self._directory_changed.set()
            for seen, teller in self.machine.take_news():
                self.links.learn(seen.peer, seen.addresses)
                self._book.hear(seen, teller)

    # -- computing ----------------------------------------------------------------------------

    def _run(self, job: Job) -> None:
        worker = self.workers.get(job.model)
        if worker is None:
            return
        self._computing.submit(worker, job)

    def _computed(self, job: Job, outcome: Outcome) -> None:
        worker = self.workers.get(job.model)
        if worker is None:
            return
        if isinstance(job, OpenJob):
            hosting = worker.hosting()
            if hosting not in self.machine.hosting:
                self.machine.learn(hosting)
        self.act(self.machine.computed(job, outcome, self._now_s()))

    # -- owning -------------------------------------------------------------------------------

    def open(
        self, owner: OwnerEngine, *, max_positions: int
    ) -> AbstractAsyncContextManager[LivePipeline]:
        """A session on the best route of the moment; satisfies `prompt.Swarm`."""
        return self._sessions.open(owner, max_positions=max_positions, replicate=self.replicate)
