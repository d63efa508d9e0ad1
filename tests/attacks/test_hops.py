"""A hop among neighbours who say anything, at any time: it keeps its limits, and never breaks."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from random import Random

import msgspec
import pytest

from gennode.errors import RemoteError, ResourceError
from gennode.node.actions import (
    Action,
    CloseJob,
    Exported,
    ExportJob,
    Job,
    Outcome,
    RestoreJob,
    Run,
    Send,
    StepJob,
)
from gennode.node.hops.admission import HopLimits, HostedModel
from gennode.node.hops.hop import HopMachine
from gennode.node.hops.hosted import Hosted
from gennode.node.hops.spill import MemoryStore
from gennode.wire.frames import decode_header, encode
from gennode.wire.ids import Hop, PeerId, session_id
from gennode.wire.messages import (
    Acquaint,
    CachePart,
    Close,
    Credit,
    Feed,
    Ping,
    Step,
    ToHop,
)
from tests.node.conftest import (
    FIRST,
    LAYERS,
    MODEL,
    OWNER,
    PATH,
    SECOND,
    SPARE,
    THIRD,
    opening,
)

ROW = 1024 * 1024  # bytes, so that windows fill; all frames are parts of one
ROWS = memoryview(bytes(4 * ROW))
LIMITS = HopLimits(
    max_sessions=4, max_sessions_of_one_owner=3, max_sessions_when_full=2,
    retained_bytes=40 * ROW, queued_bytes=30 * ROW, max_cache_feeds=2,
    max_cache_feeds_of_one_owner=1,
)  # fmt: skip
SPILLED_BYTES = 20 * ROW
MAX_POSITIONS = 64
EVENTS = 3000

PEERS = (OWNER, FIRST, THIRD, SPARE)
OWNERS = (OWNER, OWNER, OWNER, FIRST, SPARE)  # of five sessions
SESSIONS = {session_id(owner, bytes([n]) * 8): owner for n, owner in enumerate(OWNERS)}
PATHS = (
    PATH,
    (PATH[0], PATH[1], Hop(SPARE, PATH[2].span)),
    (Hop(SECOND, PATH[0].span), *PATH[1:]),
    (PATH[0], Hop(SECOND, PATH[1].span), Hop(SECOND, PATH[2].span)),
    (PATH[0], Hop(OWNER, PATH[1].span), Hop(SECOND, PATH[2].span)),
)


def _frame(rows: int) -> bytes:
    return bytes(ROWS[: rows * ROW])


FRAMES = [_frame(rows) for rows in range(5)]


class Liars:
    """All around one worker, its engine and its disk. Most of what they say is plausible."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.store = MemoryStore(SPILLED_BYTES)
        self.machine = HopMachine(SECOND, LIMITS, store=self.store)
        self.machine.host(
            HostedModel(
                MODEL, LAYERS, ROW // 4, MAX_POSITIONS, lambda _span: True,
                cache_position_bytes=lambda _span: ROW,
            )
        )  # fmt: skip
        self.jobs: deque[Job] = deque()
        self.is_stuck = False
        self.now_s = 0.0
        self.said: Counter[str] = Counter()
        self.blamed: list[PeerId] = []

    def act(self, actions: list[Action]) -> None:
        """Note what the worker wants; what it says has to keep to the bounds of the wire."""
        for action in actions:
            if isinstance(action, Run):
                self.jobs.append(action.job)
                self.said[type(action.job).__name__] += 1
            elif isinstance(action, Send):
                header, _ = encode(action.message, action.payload)
                decode_header(header[8:])
                reason = getattr(action.message, "reason", "")
                self.said[f"{type(action.message).__name__} {reason}".strip()] += 1

    def hear(self, sender: PeerId, message: ToHop, payload: bytes = b"") -> None:
        """Have a message come in. Who breaks the protocol is cut off."""
        try:
            self.act(self.machine.receive(sender, message, payload, self.now_s))
        except RemoteError:
            self.blamed.append(sender)
            self.act(self.machine.peer_down(sender, self.now_s))

    # -- what may happen ----------------------------------------------------------------------

    def some(self) -> Hosted | None:
        """One of the hops that are here."""
        hosted = list(self.machine._hosted.values())
        return self.rng.choice(hosted) if hosted else None

    def sender(self, likely: PeerId) -> PeerId:
        """Who is expected to say something, or another."""
        return likely if self.rng.random() < 0.9 else self.rng.choice(PEERS)

    def open(self) -> None:
        """Mostly a new attempt of a session that is here."""
        rng, hosted = self.rng, self.some()
        path = rng.choice(PATHS)
        index = rng.choice([place for place, hop in enumerate(path) if hop.peer == SECOND])
        attempt, session, held = 0, rng.choice(list(SESSIONS)), 0
        if hosted is not None and rng.random() < 0.6:
            attempt, session = hosted.opened.attempt + rng.randint(0, 3), hosted.key.session
            held = hosted.positions
        end = rng.choice((0, held, rng.randint(0, held)))
        start = rng.choice((0, rng.randint(0, end)))
        message = msgspec.structs.replace(
            opening(index, attempt=attempt, path=path), session=session,
            replay_from=start, replay_positions=end,
            rebuild_until=rng.randint(-1, 2), max_positions=MAX_POSITIONS,
            donor=rng.choice((None, *PEERS)),
        )  # fmt: skip
        self.hear(self.sender(SESSIONS[session]), message)

    def step(self) -> None:
        """Mostly the next step of a session that is here."""
        rng, hosted = self.rng, self.some()
        if hosted is None:
            return
        rows, position = rng.randint(1, 4), hosted.positions
        number = max(hosted.received, hosted.rebuilt) + 1
        if rng.random() < 0.2:
            position = max(0, position - rng.randint(-2, 9))
        if rng.random() < 0.1:
            number = max(0, number - rng.randint(0, 5))
        attempt = max(0, hosted.opened.attempt - (rng.random() < 0.05))
        message = Step(
            hosted.key.session, attempt, number, hosted.key.layer, position, rows,
            rng.randint(0, 5), "raw" if rng.random() < 0.99 else "bf16", rng.random() < 0.2,
        )  # fmt: skip
        payload = FRAMES[rows if rng.random() < 0.99 else rows - 1]
        self.hear(self.sender(hosted.sender), message, payload)

    def credit(self) -> None:
        """Of the next hop or of a stand-in: too little, too much, or just right."""
        rng, hosted = self.rng, self.some()
        if hosted is None:
            return
        sent_bytes, layer = hosted.flow._sent_bytes, hosted.span.end
        peer, attempt = hosted.receiver, hosted.opened.attempt
        entry = self.machine._feeds._entries.get(hosted.key)
        if entry is not None and rng.random() < 0.5:
            asked, layer = entry.feed.asked, entry.feed.layer
            peer, attempt, sent_bytes = asked.peer, asked.attempt, entry.feed.flow._sent_bytes
        taken = sent_bytes - rng.choice((0, 0, ROW, 5 * ROW, -ROW))
        message = Credit(hosted.key.session, attempt, layer, max(0, taken))
        self.hear(self.sender(peer), message)

    def feed(self) -> None:
        """An owner wants a stand-in to be fed."""
        rng, hosted = self.rng, self.some()
        if hosted is None:
            return
        attempt, start = hosted.opened.attempt + rng.randint(0, 4), rng.randint(0, 8)
        is_cache = rng.random() < 0.5
        message = Feed(
            hosted.key.session, hosted.key.layer, rng.choice(PEERS), attempt, start, is_cache
        )
        self.hear(self.sender(hosted.owner), message)

    def part(self) -> None:
        """A donor's part of a cache, mostly the next one."""
        rng, hosted = self.rng, self.some()
        if hosted is None:
            return
        start = hosted.positions + (rng.randint(-3, 1) if rng.random() < 0.1 else 0)
        rows = rng.randint(1, 4)
        message = CachePart(
            hosted.key.session, hosted.opened.attempt, hosted.key.layer, "fp32",
            max(0, start), max(0, start) + rows,
        )  # fmt: skip
        self.hear(self.sender(hosted.opened.donor or SPARE), message, FRAMES[rows])

    def small_talk(self) -> None:
        """What an owner says beside."""
        rng, session = self.rng, self.rng.choice(list(SESSIONS))
        hosted = self.some()
        if hosted is not None:
            session = hosted.key.session
        message = rng.choice(
            (Ping(session, 1), Acquaint(session, rng.choice((0, 2, 4)), rng.choice(PEERS)))
        )
        self.hear(self.sender(SESSIONS[session]), message)

    def close(self) -> None:
        """A session ends."""
        session = self.rng.choice(list(SESSIONS))
        self.hear(self.sender(SESSIONS[session]), Close(session))

    def compute(self) -> None:
        """The engine does a job, or fails at it."""
        if not self.jobs or self.is_stuck:
            return
        job = self.jobs.popleft()
        if not isinstance(job, CloseJob):
            self.act(self.machine.computed(job, self._outcome(job), self.now_s))

    def _outcome(self, job: Job) -> Outcome:
        chance = self.rng.random()
        if chance < 0.02:
            return ResourceError("no memory")
        if chance < 0.04 and isinstance(job, StepJob | RestoreJob):
            return RemoteError("not finite")
        if isinstance(job, ExportJob):
            rows = self.rng.randint(0, 3)
            return Exported("fp32", job.start, job.start + rows, FRAMES[rows])
        return job.payload if isinstance(job, StepJob) else b""

    def lose(self) -> None:
        """A peer can't be reached."""
        self.act(self.machine.peer_down(self.rng.choice(PEERS), self.now_s))

    def spoil(self) -> None:
        """The disk fails, or works again; the engine stops, or goes on."""
        self.is_stuck = self.rng.random() < 0.3
        self.store.refuses, self.store.loses = self.rng.random() < 0.3, self.rng.random() < 0.1

    def wait(self) -> None:
        """Time passes."""
        self.now_s += self.rng.choice((0.1, 0.1, 1.0, 3.0, 11.0))
        self.act(self.machine.tick(self.now_s))

    # -- what has to hold ---------------------------------------------------------------------

    def check(self) -> None:
        """The invariants of a hop."""
        machine = self.machine
        hosted, feeds = machine._hosted, machine._feeds._entries
        assert machine.sessions <= LIMITS.max_sessions
        frames = [one for hop in hosted.values() for one in hop.retained.frames]
        in_memory = sum(one.size_bytes for one in frames if one.payload is not None)
        assert in_memory == sum(one.retained.memory_bytes for one in hosted.values())
        assert in_memory <= LIMITS.retained_bytes
        aside = sum(one.size_bytes for one in frames if one.ticket is not None)
        assert self.store.held_bytes == aside <= SPILLED_BYTES
        queued = [job for job in self.jobs if isinstance(job, StepJob | RestoreJob)]
        waiting_bytes = sum(len(job.payload) for job in queued)
        assert waiting_bytes == machine._queue.size_bytes <= LIMITS.queued_bytes
        kept = set(map(id, frames))  # what waits is retained: one limit bounds both
        assert {id(one) for hop in hosted.values() for one, _ in hop.flow._waiting} <= kept
        assert set(feeds) <= set(hosted)
        active = [entry.feed for entry in feeds.values() if entry.is_active]
        caches = [feed for feed in active if feed.asked.cache]
        assert len(caches) <= LIMITS.max_cache_feeds
        assert all(feed.flow.waiting <= 1 for feed in caches)
        fed = [one for feed in active if not feed.asked.cache for one, _ in feed.flow._waiting]
        assert set(map(id, fed)) <= kept

    def rage(self, events: int) -> None:
        """Let things happen."""
        likely: dict[Callable[[], None], int] = {
            self.step: 30, self.compute: 45, self.credit: 8, self.feed: 4, self.part: 12,
            self.open: 4, self.small_talk: 3, self.lose: 1, self.spoil: 2, self.wait: 4,
            self.close: 1,
        }  # fmt: skip
        for happens in self.rng.choices(list(likely), list(likely.values()), k=events):
            happens()
            self.check()

    def end(self) -> None:
        """The engine gets done, and the owners are gone."""
        self.is_stuck = False
        while self.jobs:
            self.compute()
        self.now_s += 1000.0
        self.act(self.machine.tick(self.now_s))
        self.check()


@pytest.mark.parametrize("seed", range(6))
def test_a_hop_keeps_its_limits_whatever_its_neighbours_say(seed: int) -> None:
    liars = Liars(seed)
    liars.rage(EVENTS)
    liars.act(liars.machine.drain(liars.now_s))
    liars.rage(EVENTS // 3)
    liars.end()
    assert liars.machine.sessions == 0
    assert liars.store.held_bytes == 0
    assert liars.machine._queue.size_bytes == 0


def test_liars_get_far_enough_to_prove_anything() -> None:
    said: Counter[str] = Counter()
    for seed in range(6):
        liars = Liars(seed)
        liars.rage(EVENTS)
        said += liars.said
    rare = {
        "Failed a credit claims more than was sent",
        "Failed takes in nothing, and there is no room left to wait for it",
        "Failed too many caches are handed over now",
        "Failed parts of a cache are missing",
        "Failed the frames for it are no longer retained",
        "Failed too much is waiting",
        "Refuse the frames for a replay are no longer retained",
    }
    usual = {"Accept", "Step", "Credit", "Fed", "CachePart", "Pong", "Probe"}
    assert not (rare | usual) - set(said), said
