"""One session's passage through a worker: what is known of it, and what is said for it."""

from __future__ import annotations

from collections import Counter

from gennode.mesh.links.limits import Bucket
from gennode.node.actions import HopKey, Send, StepJob
from gennode.node.flow import Flow, Intake
from gennode.node.hops.pace import Pace
from gennode.node.hops.retained import Kept, Retained
from gennode.node.hops.spill import FrameStore
from gennode.wire.activations import codec
from gennode.wire.fields import as_text
from gennode.wire.ids import PeerId, Span
from gennode.wire.messages import (
    Accept,
    Credit,
    Failed,
    Fed,
    Leaving,
    Open,
    Progress,
    Refuse,
    Step,
)

# Of one hop. A replay sends a window at once, to whomever the owner names: it may not be asked for
# again and again. A few repairs may follow each other; one that is refused is fed from further up.
REPLAYS_BURST = 4.0
REPLAYS_PER_S = 1 / 5


class Hosted:
    """A hop as its worker sees it, under one attempt after the other."""

    def __init__(
        self, key: HopKey, owner: PeerId, opened: Open, store: FrameStore, now_s: float
    ) -> None:
        self.key = key
        self.owner = owner
        self.opened_s = self.heard_s = now_s
        self.acquainted_s = float("-inf")
        self.ready = False
        self.lost = False  # a job failed, so that the engine may know nothing of it any more
        self.positions = 0  # received so far, computed or queued
        self.held = 0  # of them, in the engine's cache
        self.retained = Retained(store)
        self.pace = Pace()
        self.replays = Bucket.full(REPLAYS_PER_S, REPLAYS_BURST, now_s)
        self._begin(opened)

    def _begin(self, opened: Open) -> None:
        self.opened = opened
        self.received = -1  # highest step, those apart that only rebuild
        self.rebuilt = -1  # highest step that only rebuilds
        self.passed = -1  # highest step that was passed on
        self.replayed = -1  # up to this step, frames from here rebuild the next hop
        self.queued_rows = 0  # waiting for the engine
        self.parts_bytes = 0  # of its cache, waiting for the engine
        self.has_bad_cache = False  # a part of it was wrong: no more are taken
        self.flow: Flow[Kept] = Flow()  # to the next hop
        self.owed: Counter[int] = Counter()  # bytes taken in for each step that waits there
        self.intake = Intake()
        self.parts_intake = Intake()

    def go_on(self, opened: Open) -> None:
        """Take part under a new attempt with what is cached and retained."""
        self._begin(opened)
        self.positions = self.held  # what was queued may be overtaken
        self.pace.restart()

    def comes(self, message: Step, now_s: float) -> None:
        """A step was taken in."""
        self.heard_s = now_s
        self.positions = message.position + message.rows
        self.held = min(self.held, message.position)  # the engine cuts there, whoever hears of it
        self.queued_rows += message.rows
        if message.rebuild:
            self.rebuilt = message.number
            return
        self.received = message.number
        if message.rows == 1:
            self.pace.came(message.number, now_s)

    def goes(self, job: StepJob, now_s: float) -> None:
        """A step was computed."""
        self.held = job.position + job.rows
        self.passed = job.number
        self.pace.went(job.number, now_s)

    # -- its place on the route ---------------------------------------------------------------

    @property
    def span(self) -> Span:
        """Its layers."""
        return self.opened.path[self.opened.index].span

    @property
    def is_last(self) -> bool:
        """Whether its results go to the owner."""
        return self.opened.index == len(self.opened.path) - 1

    @property
    def ends_rebuilding(self) -> bool:
        """Whether no hop below is rebuilt."""
        return self.opened.index >= self.opened.rebuild_until

    @property
    def sender(self) -> PeerId:
        """From whom its steps come."""
        return self.opened.path[self.opened.index - 1].peer if self.opened.index else self.owner

    @property
    def receiver(self) -> PeerId:
        """To whom its steps go."""
        return self.owner if self.is_last else self.opened.path[self.opened.index + 1].peer

    # -- what it says -------------------------------------------------------------------------

    def step(self, frame: Kept, payload: bytes) -> Send:
        """A frame for the next hop."""
        attempt, rebuild = self.opened.attempt, self.only_rebuilds(frame)
        return self.step_to(self.receiver, attempt, frame, payload, rebuild=rebuild)

    def step_to(
        self, peer: PeerId, attempt: int, frame: Kept, payload: bytes, *, rebuild: bool
    ) -> Send:
        """A frame for whoever has the next layers."""
        message = Step(
            session=self.key.session,
            attempt=attempt,
            number=frame.number,
            layer=self.span.end,
            position=frame.position,
            rows=frame.rows,
            reply_rows=frame.reply_rows,
            codec=self.opened.codec,
            rebuild=rebuild,
        )
        return Send(peer, message, memoryview(payload))

    def only_rebuilds(self, frame: Kept) -> bool:
        """Whether a frame is sent to rebuild what is below, and not for an answer."""
        return frame.rebuild or frame.number <= self.replayed

    def result(self, job: StepJob, payload: bytes, dim: int) -> Send:
        """The last hop's word to the owner, who samples from the last rows alone."""
        rows = job.reply_rows
        wanted = codec(self.opened.codec).last_rows(memoryview(payload), job.rows, rows, dim)
        message = Step(
            session=self.key.session,
            attempt=self.opened.attempt,
            number=job.number,
            layer=self.span.end,
            position=job.position + job.rows - rows,
            rows=rows,
            reply_rows=rows,
            codec=self.opened.codec,
            rebuild=job.rebuild,
        )
        return Send(self.owner, message, wanted)

    def took_step(self, size_bytes: int) -> list[Send]:
        """A step is done with: credit for its sender, if it is time for some."""
        return self._credit(self.sender, self.intake.take(size_bytes))

    def took_part(self, size_bytes: int) -> list[Send]:
        """A part of its cache is done with: credit for the donor, if it is time for some."""
        donor = self.opened.donor
        return self._credit(donor, self.parts_intake.take(size_bytes)) if donor else []

    def _credit(self, peer: PeerId, taken_bytes: int | None) -> list[Send]:
        if taken_bytes is None:
            return []
        message = Credit(self.key.session, self.opened.attempt, self.key.layer, taken_bytes)
        return [Send(peer, message)]

    def accept(self) -> Send:
        """It is ready."""
        opened = self.opened
        message = Accept(opened.session, opened.attempt, opened.index, self.held)
        return Send(self.owner, message)

    def refuse(self, opened: Open, reason: str) -> Send:
        """It will not take part."""
        message = Refuse(opened.session, opened.attempt, opened.index, as_text(reason))
        return Send(self.owner, message)

    def failed(self, index: int, number: int, reason: str, *, attempt: int | None = None) -> Send:
        """Something is wrong at one place of the route, or with what is fed under `attempt`."""
        attempt = self.opened.attempt if attempt is None else attempt
        place = max(0, index), max(0, number)
        message = Failed(self.key.session, attempt, *place, as_text(reason))
        return Send(self.owner, message)

    def fed(self, positions: int) -> Send:
        """It stands ready for so many positions."""
        opened = self.opened
        return Send(self.owner, Fed(opened.session, opened.attempt, opened.index, positions))

    def leaving(self, cache_position_bytes: int) -> Send:
        """Its worker is about to leave."""
        opened, held = self.opened, self.held
        message = Leaving(
            opened.session, opened.attempt, opened.index, held, held * cache_position_bytes
        )
        return Send(self.owner, message)

    @property
    def progress(self) -> Progress:
        """How far it is."""
        is_busy = self.queued_rows > 0 or self.parts_bytes > 0 or not self.ready
        return Progress(self.key.layer, self.passed, is_busy, self.pace.token_s)
