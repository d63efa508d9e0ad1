"""Every message that one peer sends another; each field is bounded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from gennode.wire.beats import LINK_BYTES, MAX_BEATS
from gennode.wire.coordinates import Coordinate
from gennode.wire.fields import CodecName, Counter, Model, Seconds, Session, Text
from gennode.wire.ids import BoundedPeerId, Hop, LayerIndex
from gennode.wire.proposal import ProposalId
from gennode.wire.release import ReleaseName, ReleaseNumber
from gennode.wire.signing import Signed

MAX_ROUTE_HOPS = 64  # a token crosses every hop: longer routes would never be worth it
MAX_STEP_ROWS = 512  # a prefill chunk; keeps a frame below 16 MiB at dim 8192 in float32
MAX_ANNOUNCEMENTS = 32
MAX_DIGEST_PEERS = 32_768  # twice as many as a directory holds
MAX_DIGEST_BUCKETS = 4096
MAX_BEATS_SENT = 16_384  # as many as a directory holds
BEAT_BYTES = LINK_BYTES + 1
BEAT_AGE_UNIT_S = 0.25  # a byte then tells up to a minute, as long as any announcement lives
MAX_BEAT_AGE = 255
MAX_POSITIONS = 1 << 20
MAX_RELEASES = 64  # versions are news of months, and a digest of all is to stay small
MAX_PROBE_BYTES = 64 * 1024  # some 5 ms at 100 Mbit/s: long enough to be timed

WINDOW_BYTES = 16 * 1024 * 1024  # as large as the largest frame
CREDIT_BYTES = 4 * 1024 * 1024

Position = Annotated[int, msgspec.Meta(ge=0, le=MAX_POSITIONS)]


class Base(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A message. Its tag on the wire is its class's name."""


class Digest(Base, frozen=True):
    """What the sender knows of the directory, or wants of it, as `mesh/sketch.py` packs it.

    `counts`: peers in each bucket; `entries`: two bytes for each of them, under the salt.
    """

    salt: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    counts: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_DIGEST_BUCKETS)]
    entries: Annotated[bytes, msgspec.Meta(max_length=2 * MAX_DIGEST_PEERS)]
    asks: bool
    """Whether it lists what the sender asks for, and not all that it knows."""


class AgedAnnouncement(msgspec.Struct, frozen=True, array_like=True):
    """A signed announcement, its latest beat, and how long ago that was, as the sender knows.

    `link` shows beat number `beat`; at beat 0 there is none yet.
    """

    signed: Signed
    age_s: Annotated[float, msgspec.Meta(ge=0, le=3600)]
    beat: Annotated[int, msgspec.Meta(ge=0, le=MAX_BEATS)] = 0
    link: Annotated[bytes, msgspec.Meta(max_length=LINK_BYTES)] = b""


class Announcements(Base, frozen=True):
    """Announcements that the receiver lacks."""

    items: Annotated[tuple[AgedAnnouncement, ...], msgspec.Meta(max_length=MAX_ANNOUNCEMENTS)]


class Beats(Base, frozen=True):
    """Beats of announcements that the receiver has: for each a link, and its age in a byte."""

    links: Annotated[bytes, msgspec.Meta(max_length=BEAT_BYTES * MAX_BEATS_SENT)]


class ReleaseDigest(Base, frozen=True):
    """The releases that the sender knows: of each line the number, and a mark of its content."""

    entries: Annotated[
        tuple[
            tuple[
                BoundedPeerId,
                ReleaseName,
                ReleaseNumber,
                Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)],
            ],
            ...,
        ],
        msgspec.Meta(max_length=MAX_RELEASES),
    ]
    reply: bool
    """Whether the sender wants a digest back."""


class Releases(Base, frozen=True):
    """Signed releases that the receiver lacks."""

    items: Annotated[tuple[Signed, ...], msgspec.Meta(max_length=MAX_ANNOUNCEMENTS)]


class Open(Base, frozen=True):
    """Owner to hop: take part in a session as `path[index]`, or learn its new path.

    A hop that already takes part under a lower attempt keeps its cache. If `replay_positions`
    is not 0, it first sends the frames that it retained for positions `[replay_from,
    replay_positions)` down the new path; hops before `rebuild_until` pass on what they compute
    from such frames, so that new workers further down are rebuilt as well.

    `donor` may hand its cache of the same layers over to this hop; nobody else may.
    """

    session: Session
    attempt: Counter
    model: Model
    path: Annotated[tuple[Hop, ...], msgspec.Meta(min_length=1, max_length=MAX_ROUTE_HOPS)]
    index: Annotated[int, msgspec.Meta(ge=0, lt=MAX_ROUTE_HOPS)]
    codec: CodecName
    max_positions: Annotated[int, msgspec.Meta(ge=1, le=MAX_POSITIONS)]
    replay_positions: Position
    rebuild_until: Annotated[int, msgspec.Meta(ge=-1, lt=MAX_ROUTE_HOPS)]
    replay_from: Position = 0
    donor: BoundedPeerId | None = None

    def __post_init__(self) -> None:
        if self.index >= len(self.path):
            raise ValueError("the receiver is not on the path")
        if self.replay_from > self.replay_positions:
            raise ValueError("a replay ends before it begins")


class Accept(Base, frozen=True):
    """Hop to owner: `path[index]` is ready under this attempt, and holds so many positions."""

    session: Session
    attempt: Counter
    index: Counter
    positions: Position = 0


class Refuse(Base, frozen=True):
    """Hop to owner: it will not take part, and why."""

    session: Session
    attempt: Counter
    index: Counter
    reason: Text


class Step(Base, frozen=True):
    """Hop to hop (owner to the first, the last to the owner); the payload is the states.

    The states are the input of layer `layer` at positions `[position, position + rows)`. The
    owner wants the last `reply_rows` rows back. `rebuild` marks a replay after a failure.
    """

    session: Session
    attempt: Counter
    number: Counter
    layer: LayerIndex
    position: Annotated[int, msgspec.Meta(ge=0, lt=MAX_POSITIONS)]
    rows: Annotated[int, msgspec.Meta(ge=0, le=MAX_STEP_ROWS)]
    reply_rows: Annotated[int, msgspec.Meta(ge=0, le=MAX_STEP_ROWS)]
    codec: CodecName
    rebuild: bool


class Failed(Base, frozen=True):
    """Hop to owner: it could not compute or pass on a step, and why."""

    session: Session
    attempt: Counter
    index: Counter
    number: Counter
    reason: Text


class Credit(Base, frozen=True):
    """To whoever sends a session's steps, or a part of its cache, to the sender of this: so many
    bytes of payload have been taken in of all that came under this attempt.

    At most `WINDOW_BYTES` more than that may be under way, or one frame beside less than
    `CREDIT_BYTES`. Said every `CREDIT_BYTES`, and not for each token.
    """

    session: Session
    attempt: Counter
    layer: LayerIndex
    """The first layer of the hop that took them in."""
    taken_bytes: Counter


class Acquaint(Base, frozen=True):
    """Owner to hop: have a link to `peer` ready, you may soon send this session's frames there."""

    session: Session
    layer: LayerIndex
    """The receiver's first layer: which of its hops is meant."""
    peer: BoundedPeerId


class Feed(Base, frozen=True):
    """Owner to hop: give another worker what it needs to stand in, and go on meanwhile.

    It goes to `peer`, which the owner has opened under `attempt`, for positions from
    `from_position` on, as far as they are known here by now. `cache`: the receiver's own cache,
    for a worker of the same layers (`CachePart`); else the frames that it retained, for the
    next hop's layers (steps with `rebuild`).
    """

    session: Session
    layer: LayerIndex
    """The receiver's first layer: which of its hops is meant."""
    peer: BoundedPeerId
    attempt: Counter
    from_position: Position
    cache: bool


class CachePart(Base, frozen=True):
    """Hop to the worker that is to stand in: its cache of positions `[start, end)`.

    The payload is laid out as `engine/cache/transfer.py` says. Parts come in order.
    """

    session: Session
    attempt: Counter
    layer: LayerIndex
    layout: Text
    start: Position
    end: Position

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError("a part of a cache holds no positions")


class Fed(Base, frozen=True):
    """Hop to owner: it stands ready for all positions below `positions`. Each time that a part
    of a cache was taken in, or a frame with `rebuild` at the end of what is rebuilt.
    """

    session: Session
    attempt: Counter
    index: Counter
    positions: Position


class Leaving(Base, frozen=True):
    """Hop to owner: `path[index]` is about to leave. Find another; until then it goes on.

    `cache_bytes` of keys and values for `positions` positions could be handed over.
    """

    session: Session
    attempt: Counter
    index: Counter
    positions: Position
    cache_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Ping(Base, frozen=True):
    """Owner to hop, while a session waits: are you there, and how far are you?"""

    session: Session
    nonce: Counter


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How far one hop of a session is."""

    layer: LayerIndex
    """Its first."""
    passed: Annotated[int, msgspec.Meta(ge=-1, le=1 << 53)]
    """The highest step that it has passed on under this attempt, or −1."""
    is_busy: bool
    """Whether it is computing, or about to."""
    token_s: Seconds = 0.0
    """From a single row's coming in to its going out, the median of the last few; 0: none yet."""


class Pong(Base, frozen=True):
    """Answer to a ping: how far each hop is that the session has here."""

    session: Session
    nonce: Counter
    progress: Annotated[tuple[Progress, ...], msgspec.Meta(max_length=MAX_ROUTE_HOPS)]

    def lacks(self, layers: Iterable[int]) -> bool:
        """Whether one of these first layers has no hop of the session any more."""
        return not {one.layer for one in self.progress}.issuperset(layers)


class Probe(Base, frozen=True):
    """Peer to peer, now and then: how far are you? The payload, of up to `MAX_PROBE_BYTES`, is
    only there to be sent; what it adds to the time shows the bandwidth.
    """

    nonce: Counter


class Echo(Base, frozen=True):
    """Answer to a probe, at once, and where the sender sees itself on the network."""

    nonce: Counter
    coordinate: Coordinate


class Missing(Base, frozen=True):
    """Peer to peer: this one can't be reached from here. See for yourself."""

    peer: BoundedPeerId


class PlanDigest(Base, frozen=True):
    """The plan that the sender follows for a model: its epoch, publisher and proposal.

    `proposal` is the SHA-256 of what the publisher signed (`proposal.py`). Who follows none says
    epoch 0, no publisher and zeros: it wants to hear of others'.
    """

    model: Model
    epoch: Counter
    publisher: BoundedPeerId
    proposal: ProposalId


class PlanWanted(Base, frozen=True):
    """Send me the proposal that you told of."""

    model: Model
    proposal: ProposalId


class PlanSent(Base, frozen=True):
    """Answer to PlanWanted; the payload is the signed proposal, or empty: it is not here."""

    model: Model
    proposal: ProposalId


class Close(Base, frozen=True):
    """Owner to hop: the session is over; forget it."""

    session: Session


Message = (
    Digest
    | Announcements
    | Beats
    | ReleaseDigest
    | Releases
    | Open
    | Accept
    | Refuse
    | Step
    | Failed
    | Credit
    | Acquaint
    | Feed
    | CachePart
    | Fed
    | Leaving
    | Ping
    | Pong
    | Probe
    | Echo
    | PlanDigest
    | PlanWanted
    | PlanSent
    | Missing
    | Close
)

ToOwner = Accept | Refuse | Step | Failed | Pong | Credit | Fed | Leaving
"""What hops say to a session's owner."""

ToHop = Open | Step | Ping | Credit | Acquaint | Feed | CachePart | Close
"""What a session's owner and its hops say to a hop."""
