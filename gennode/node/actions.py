"""What the machines ask of the shell that runs them: send this, compute that, tell the owner."""

from __future__ import annotations

from dataclasses import dataclass

from gennode.engine.seam import States
from gennode.errors import GennodeError
from gennode.wire.fields import CodecName
from gennode.wire.frames import Buffer
from gennode.wire.ids import Hop, ModelId, PeerId, SessionId, Span
from gennode.wire.messages import Message


@dataclass(frozen=True)
class Send:
    """Pass a message to a peer (ourselves included)."""

    peer: PeerId
    message: Message
    payload: Buffer = b""


@dataclass(frozen=True)
class HopKey:
    """A session's sequence on one worker: a session may visit a worker more than once."""

    session: SessionId
    layer: int


@dataclass(frozen=True)
class OpenJob:
    """Load what is missing of `span`, then begin a sequence of `owner`'s."""

    model: ModelId
    key: HopKey
    attempt: int
    span: Span
    max_positions: int
    owner: PeerId


@dataclass(frozen=True)
class StepJob:
    """Decode a frame, push it through the layers, encode what comes out."""

    model: ModelId
    key: HopKey
    attempt: int
    number: int
    position: int
    rows: int
    reply_rows: int
    rebuild: bool
    codec: CodecName
    payload: bytes


@dataclass(frozen=True)
class CloseJob:
    """Free a sequence."""

    model: ModelId
    key: HopKey


@dataclass(frozen=True)
class ExportJob:
    """Give out the cache of some positions from `start` on, as many as fit `max_bytes`.

    `start` is where a part ended before, or 0. Behind the sequence's own steps that wait.
    """

    model: ModelId
    key: HopKey
    attempt: int
    start: int
    max_bytes: int


@dataclass(frozen=True)
class Exported:
    """What came of it: positions `[start, end)`; none are left if that is empty."""

    layout: str
    start: int
    end: int
    payload: bytes


@dataclass(frozen=True)
class RestoreJob:
    """Take in what another worker exported of positions `[start, end)`; the sequence has `start`.

    RemoteError if it does not fit: the donor's fault.
    """

    model: ModelId
    key: HopKey
    attempt: int
    layout: str
    start: int
    end: int
    payload: bytes


Job = OpenJob | StepJob | ExportJob | RestoreJob | CloseJob

Outcome = bytes | Exported | GennodeError
"""A step's output, a part of a cache, or what its session's owner is to be told."""


@dataclass(frozen=True)
class Run:
    """Have the engine do a job; jobs run one at a time, in the order in which they came."""

    job: Job


@dataclass(frozen=True)
class Arrived:
    """To the owner: a step's states are back, the last rows that it asked for."""

    session: SessionId
    number: int
    states: States


@dataclass(frozen=True)
class Rerouted:
    """To the owner: some hops were replaced; nothing is lost."""

    session: SessionId
    before: tuple[Hop, ...]
    after: tuple[Hop, ...]
    lost: tuple[PeerId, ...]
    reason: str
    is_planned: bool = False
    """Whether the hop was replaced while it still worked: it was leaving, or slow."""


@dataclass(frozen=True)
class Opened:
    """To the owner: every hop of the route has accepted."""

    session: SessionId
    route: tuple[Hop, ...]


@dataclass(frozen=True)
class Lost:
    """To the owner: the session can't go on, and why."""

    session: SessionId
    error: GennodeError


Event = Arrived | Rerouted | Opened | Lost
Action = Send | Run | Event
