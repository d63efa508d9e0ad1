"""What all parts of a session share: its terms, steps and path, and the numbers of its attempts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gennode.engine.seam import States
from gennode.errors import RemoteError
from gennode.node.actions import Send
from gennode.node.sessions.steps import OwnerStep, StepFlow, StepLog
from gennode.wire.activations import codec
from gennode.wire.fields import CodecName
from gennode.wire.ids import Hop, ModelId, PeerId, SessionId
from gennode.wire.messages import Close, Open, Step


@dataclass(frozen=True)
class SessionTerms:
    """What all hops of a session agree on.

    `replicate`: whether stand-ins get a copy of each hop's cache as the session goes on.
    """

    session: SessionId
    owner: PeerId
    model: ModelId
    layers: int
    dim: int
    codec: CodecName
    max_positions: int
    replicate: bool = False


@dataclass(frozen=True)
class Replay:
    """Who sends the positions `[start, end)` again, by place on the path; −1 is the owner."""

    source: int = -1
    start: int = 0
    end: int = 0

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to send."""
        return self.start < self.end


class Course:
    """The path of a session, the attempt that runs on it, and the steps that went along it."""

    def __init__(self, terms: SessionTerms, path: tuple[Hop, ...]) -> None:
        self.terms = terms
        self.path = path
        self.attempt = 0
        self.steps = StepLog()
        self._issued = 0

    @property
    def peers(self) -> frozenset[PeerId]:
        """Everybody on the path."""
        return frozenset(hop.peer for hop in self.path)

    def next_attempt(self) -> int:
        """A number that no attempt of this session ever had."""
        self._issued += 1
        return self._issued

    def flow(self, peer: PeerId, attempt: int) -> StepFlow:
        """A new way for steps to a first hop."""
        terms = self.terms
        return StepFlow(terms.session, terms.codec, peer, attempt)

    def read_result(self, message: Step, payload: bytes) -> tuple[OwnerStep, States]:
        """The awaited step and what came out of it; RemoteError if this is not its result."""
        step = self.steps.awaited()
        if step is None or message.number != step.number or message.rebuild:
            raise RemoteError("a result came for a step that is not the next one awaited")
        wire, dim, rows = codec(self.terms.codec), self.terms.dim, message.rows
        if rows != step.reply_rows or not wire.fits(len(payload), rows, dim):
            raise RemoteError("a result has not the rows that were asked for")
        return step, wire.decode(payload, dim, rows)

    def open(
        self,
        path: tuple[Hop, ...],
        index: int,
        attempt: int,
        *,
        rebuild_until: int,
        replay: Replay,
        donor: PeerId | None = None,
    ) -> Send:
        """Ask a hop to take part, and to replay if that falls to it."""
        asked = replay if replay.source == index and replay.is_needed else Replay()
        message = Open(
            session=self.terms.session,
            attempt=attempt,
            model=self.terms.model,
            path=path,
            index=index,
            codec=self.terms.codec,
            max_positions=self.terms.max_positions,
            replay_positions=asked.end,
            rebuild_until=rebuild_until,
            replay_from=asked.start,
            donor=donor,
        )
        return Send(path[index].peer, message)

    def goodbye(self, peers: Iterable[PeerId]) -> list[Send]:
        """Tell peers that the session is over for them."""
        close = Close(self.terms.session)
        return [Send(peer, close) for peer in dict.fromkeys(peers)]
