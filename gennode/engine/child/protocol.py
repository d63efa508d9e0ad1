"""What a node and its compute process say to each other, and within what bounds.

A frame: the lengths of its two parts (`<IQ`), a msgpack header, and raw bytes, such as rows of
float32 in native order (both ends are one machine). The process sees peers' numbers and is
trusted less than the node: whatever it answers is checked against what was asked.
"""

from __future__ import annotations

import struct
from math import inf
from typing import Literal

import msgspec

from gennode.engine.child.jail import Jail
from gennode.engine.choice.runs import Run
from gennode.engine.devices import DeviceReport
from gennode.engine.seam import CacheUse, Precision, Profile
from gennode.errors import (
    DeviceError,
    GennodeError,
    LocalError,
    ModelError,
    NetworkError,
    NoRouteError,
    RemoteError,
    ResourceError,
    UsageError,
)
from gennode.wire.announcement import Machine
from gennode.wire.ids import Span
from gennode.wire.manifest import ModelShape

LENGTHS = struct.Struct("<IQ")

MAX_HEADER_BYTES = 1 << 20
"""The longest header is that of a batch: some ten bytes for each of its inputs, of which a step
has hundreds at most."""

MAX_WORDS = 2000
"""Characters of an error's words or hint; more would fill somebody's terminal."""

MAX_CUT_ROWS = 512  # beyond, a prompt would not be cut at all

MAX_LAYOUT = 200  # characters; it goes on to peers, whose texts are no longer

MAX_BODY_BYTES = 1 << 36  # what a node sends is its own: states and parts of caches, some MB


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Build an engine. `options`: `EngineOptions` as msgpack; body: the manifest, canonical."""

    options: bytes


class Measure(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Measure the machine; see `measure_machine`."""

    device: str
    memory_bytes: int


class Examine(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Measure the device for people; see `measure_device`."""

    device: str


class Settle(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Choose the precision; see `choice.settle`. Body: the runs that are known, as msgpack."""

    precision: Precision | Literal["auto"]
    shape: ModelShape
    device: str
    memory_bytes: int
    hardware: str


class Load(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Load layers."""

    span: Span


class Unload(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Free layers."""

    span: Span


class Spans(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Tell which layers are loaded."""


class OpenSequence(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Begin a sequence. Sequences go by numbers here, for any hashable may name one outside."""

    sequence: int
    span: Span
    max_positions: int


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One sequence's part of a step."""

    sequence: int
    position: int
    rows: int


class Compute(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A step. Body, also of the answer: the states of all parts, one after the other."""

    parts: tuple[Part, ...]


class Length(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Tell how many positions are cached."""

    sequence: int


class Truncate(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Forget positions."""

    sequence: int
    length: int


class CloseSequence(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """End a sequence."""

    sequence: int


class Reread(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Look again at the folder that is computed from: it has more files now."""


class Usage(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Tell what the caches take."""


class Keep(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Hold a sequence's first positions."""

    sequence: int
    positions: int


class Adopt(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Begin with what was kept."""

    sequence: int
    kept: int


class Forget(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Hold it no longer."""

    kept: int


class Export(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Give a part of a sequence's cache."""

    sequence: int
    start: int
    end: int


class Restore(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Take a part of a sequence's cache; its payload is the body."""

    sequence: int
    layout: str
    span: Span
    start: int
    end: int


class TakeProfile(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Tell how fast the engine is."""


Request = (
    Begin | Measure | Examine | Settle | Load | Unload | Spans | OpenSequence | Compute | Length
    | Truncate | CloseSequence | Reread | Usage | Keep | Adopt | Forget | Export | Restore
    | TakeProfile
)  # fmt: skip


class Began(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The engine is there, its states this wide, and how much a position's cache takes per layer
    if it can be exported."""

    model: str
    dim: int
    position_bytes: int


class Started(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The first thing that a compute process says: it has its libraries and is in its jail."""

    jail: Jail


class Progress(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Of something long; the answer is still to come."""

    done: int
    total: int


class Done(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """It is done, and its result, if it has one, is the body."""


class Number(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A length, or what was kept."""

    value: int | None


class Loaded(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The layers that are loaded now."""

    spans: tuple[Span, ...]


class Used(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What the caches take."""

    use: CacheUse


class Profiled(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The engine's profile."""

    profile: Profile


class Probed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What the machine can do."""

    machine: Machine


class Examined(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What the device can do."""

    report: DeviceReport


class Settled(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The precision, and what was measured for that."""

    precision: Precision
    runs: tuple[Run, ...]


class Exported(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The part that was asked for; its payload is the body."""

    layout: str


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """It could not be done: the kind of error, its words and its hint."""

    kind: str
    words: str
    hint: str


Reply = (
    Began | Started | Progress | Done | Number | Loaded | Used | Profiled | Probed | Examined
    | Settled | Exported | Failed
)  # fmt: skip

_KINDS: dict[str, type[GennodeError]] = {
    each.__name__: each
    for each in (
        DeviceError, LocalError, ModelError, NetworkError, NoRouteError, RemoteError,
        ResourceError, UsageError,
    )
}  # fmt: skip


def is_possible(profile: Profile) -> bool:
    """Whether there can be an engine with these times."""
    times_s = profile.layer_time_s, profile.load_time_s, profile.further_time_s
    return all(0 <= each < inf for each in times_s) and 1 <= profile.cut_rows <= MAX_CUT_ROWS


def is_part(told: Exported, body: bytearray, size_bytes: int) -> bool:
    """Whether this is a part of a cache, of so many bytes."""
    is_text = told.layout.isascii() and told.layout.isprintable()
    return len(body) == size_bytes and len(told.layout) <= MAX_LAYOUT and is_text


def failure(error: GennodeError) -> Failed:
    """An error as a message."""
    return Failed(type(error).__name__, str(error)[:MAX_WORDS], error.hint[:MAX_WORDS])


def as_error(failed: Failed) -> GennodeError:
    """The error again, of its kind; its words made fit for a terminal."""
    kind = _KINDS.get(failed.kind, LocalError)
    return kind(printable(failed.words), hint=printable(failed.hint))


def printable(words: str) -> str:
    """What can be shown on a terminal without harm, and not too much of it."""
    return "".join(one if one.isprintable() else "?" for one in words[:MAX_WORDS])
