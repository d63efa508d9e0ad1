"""Every message that one peer sends another; each field is bounded."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from gennode.wire.beats import LINK_BYTES, MAX_BEATS
from gennode.wire.ids import BoundedPeerId, Hop, LayerIndex, ModelId, SessionId, Span
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
MAX_HOSTED_MODELS = 8  # an old and a new version of a few models: more would share one engine
MAX_RELEASES = 64  # versions are news of months, and a digest of all is to stay small

MAX_TEXT = 256

CodecName = Literal["raw", "int8", "int8-outlier"]
Reach = Literal["unknown", "direct", "relayed"]

# Printable ASCII: a peer's text ends on somebody's terminal.
_PRINTABLE = r"^[ -~]*\Z"
_Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT, pattern=_PRINTABLE)]
_Address = Annotated[str, msgspec.Meta(max_length=256, pattern=_PRINTABLE)]
_Counter = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Model = Annotated[ModelId, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Session = Annotated[SessionId, msgspec.Meta(min_length=16, max_length=16)]


def as_text(text: str) -> str:
    """The first line of a text as a message may carry it: short and printable."""
    line = text.splitlines()[0] if text else ""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in line)[:MAX_TEXT]


class Hosting(msgspec.Struct, frozen=True, array_like=True):
    """What a peer hosts of one model: disjoint spans in rising order.

    `layer_time_s`: measured seconds per layer for one token. `spare_layers`: how many more
    layers it would load on request, each taking `load_time_s`. `max_sessions`: how many it
    takes on in all, whatever their models.
    """

    model: _Model
    spans: Annotated[tuple[Span, ...], msgspec.Meta(max_length=64)]
    spare_layers: LayerIndex
    layer_time_s: _Seconds
    load_time_s: _Seconds
    max_sessions: _Counter
    compute_class: _Text

    def __post_init__(self) -> None:
        end = 0
        for span in self.spans:
            if span.start >= span.end:
                raise ValueError("a span without layers")
            if span.start < end:
                raise ValueError("spans out of order")
            end = span.end

    def can_host(self, span: Span) -> bool:
        """Whether the layers are loaded, or what is missing of them may still be."""
        held = sum(
            max(0, min(span.end, own.end) - max(span.start, own.start)) for own in self.spans
        )
        return span.layers - held <= self.spare_layers


class Announcement(msgspec.Struct, frozen=True, array_like=True):
    """What a peer signs about itself (domain `announcement`).

    `sequence` grows with each one a peer makes; the highest wins. `instance`: when this run of
    the peer began, in milliseconds since the epoch by its own clock; two runs of one key at a
    time show by it. It lives `lifetime_s` after it was made. `sessions`: how many pass through
    it now. `relay`: it relays traffic for peers behind NATs. `reach`: how others get to it, as
    far as it knows. Nothing hosted and no relay says goodbye. `chain_end`: of the chain whose
    links show that it still lives (`beats.py`); zeros if it will show none. `rival`: the instance
    of another node that runs with this key at the same time, once it was noticed; else 0.
    """

    peer: BoundedPeerId
    sequence: _Counter
    instance: _Counter
    lifetime_s: Annotated[float, msgspec.Meta(ge=0, le=3600)]
    hosting: Annotated[tuple[Hosting, ...], msgspec.Meta(max_length=MAX_HOSTED_MODELS)]
    sessions: _Counter
    relay: bool
    reach: Reach
    addresses: Annotated[tuple[_Address, ...], msgspec.Meta(max_length=16)]
    chain_end: Annotated[bytes, msgspec.Meta(min_length=LINK_BYTES, max_length=LINK_BYTES)] = bytes(
        LINK_BYTES
    )
    rival: _Counter = 0

    def __post_init__(self) -> None:
        if len({hosting.model for hosting in self.hosting}) < len(self.hosting):
            raise ValueError("one model hosted twice")

    @property
    def is_goodbye(self) -> bool:
        """Whether the peer has nothing to offer any more."""
        return not self.hosting and not self.relay

    def hosting_of(self, model: ModelId) -> Hosting | None:
        """What the peer hosts of one model."""
        return next((one for one in self.hosting if one.model == model), None)


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
    is not 0, it first sends the frames that it retained for so many positions down the new
    path; hops before `rebuild_until` pass on what they compute from such frames, so that new
    workers further down are rebuilt as well.
    """

    session: _Session
    attempt: _Counter
    model: _Model
    path: Annotated[tuple[Hop, ...], msgspec.Meta(min_length=1, max_length=MAX_ROUTE_HOPS)]
    index: Annotated[int, msgspec.Meta(ge=0, lt=MAX_ROUTE_HOPS)]
    codec: CodecName
    max_positions: Annotated[int, msgspec.Meta(ge=1, le=MAX_POSITIONS)]
    replay_positions: Annotated[int, msgspec.Meta(ge=0, le=MAX_POSITIONS)]
    rebuild_until: Annotated[int, msgspec.Meta(ge=-1, lt=MAX_ROUTE_HOPS)]

    def __post_init__(self) -> None:
        if self.index >= len(self.path):
            raise ValueError("the receiver is not on the path")


class Accept(Base, frozen=True):
    """Hop to owner: `path[index]` is ready under this attempt."""

    session: _Session
    attempt: _Counter
    index: _Counter


class Refuse(Base, frozen=True):
    """Hop to owner: it will not take part, and why."""

    session: _Session
    attempt: _Counter
    index: _Counter
    reason: _Text


class Step(Base, frozen=True):
    """Hop to hop (owner to the first, the last to the owner); the payload is the states.

    The states are the input of layer `layer` at positions `[position, position + rows)`. The
    owner wants the last `reply_rows` rows back. `rebuild` marks a replay after a failure.
    """

    session: _Session
    attempt: _Counter
    number: _Counter
    layer: LayerIndex
    position: Annotated[int, msgspec.Meta(ge=0, lt=MAX_POSITIONS)]
    rows: Annotated[int, msgspec.Meta(ge=0, le=MAX_STEP_ROWS)]
    reply_rows: Annotated[int, msgspec.Meta(ge=0, le=MAX_STEP_ROWS)]
    codec: CodecName
    rebuild: bool


class Failed(Base, frozen=True):
    """Hop to owner: it could not compute or pass on a step, and why."""

    session: _Session
    attempt: _Counter
    index: _Counter
    number: _Counter
    reason: _Text


class Ping(Base, frozen=True):
    """Owner to hop, while a session waits: are you there, and how far are you?"""

    session: _Session
    nonce: _Counter


class Pong(Base, frozen=True):
    """Answer to a ping: how far each hop is that the session has here."""

    session: _Session
    nonce: _Counter
    progress: Annotated[
        tuple[tuple[LayerIndex, Annotated[int, msgspec.Meta(ge=-1, le=1 << 53)], bool], ...],
        msgspec.Meta(max_length=MAX_ROUTE_HOPS),
    ]
    """(first layer, highest step passed on or −1, whether it is computing now)"""


class Close(Base, frozen=True):
    """Owner to hop: the session is over; forget it."""

    session: _Session


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
    | Ping
    | Pong
    | Close
)
