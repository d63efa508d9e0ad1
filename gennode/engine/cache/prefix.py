"""PrefixCache: which frames a worker has answered before, so that it need not compute them again.

A worker sees no tokens, but equal prompts give equal frames. A frame's name is a hash over its
owner, the layers, and every frame from position 0 on; under it lie the frame's output and the
number of the keys and values up to its end. A session whose frames have all been seen is
answered with the same bits, and goes on from those keys and values.

Nobody but the owner who sent a prefix ever gains by it: otherwise the time of an answer would
tell strangers what somebody else has asked. `node/prefixes.py` does with an engine what this
machine decides:

    prefixes.open(key, owner, span)                  # a session begins
    found = prefixes.look(key, position, rows, codec, payload)  # a frame, not yet computed
    isinstance(found, Known)                         # adopt found.kept, answer found.output
    prefixes.wants(key, found)                       # it was Unknown, and is computed:
    prefixes.add(key, found, kept, output)           # this number keeps it from now on
    prefixes.evict()                                 # memory is short: forget this number
    prefixes.close(key)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from gennode.errors import LocalError
from gennode.wire.ids import ModelId, PeerId, Span

MIN_ROWS = 16  # below, computing is as quick as finding, and every token would be kept
MAX_ENTRIES = 4096  # 32 prompts of 16,000 positions in frames of 128
MAX_OUTPUT_BYTES = 256 * 1024**2  # half of what is retained for replays


@dataclass(frozen=True)
class Known:
    """A frame that was computed before: its output, and what keeps the positions up to its end."""

    kept: int
    output: bytes


@dataclass(frozen=True)
class Unknown:
    """A frame that has to be computed, and the name to keep it under."""

    name: bytes
    end: int


@dataclass
class _Entry:
    span: Span
    known: Known


@dataclass
class _Session:
    owner: PeerId
    span: Span
    ends: list[tuple[int, bytes]]
    """Where each of its frames from position 0 on ends, and that frame's name."""
    is_known: bool = True
    """Whether all its frames so far were: then its engine has just what was kept."""


@dataclass
class _Shelf:
    """What one owner has here, least recently used first."""

    entries: OrderedDict[bytes, _Entry] = field(default_factory=OrderedDict)
    output_bytes: int = 0


class PrefixCache:
    """The frames of one model that need not be computed again. Pure: holds numbers and bytes.

    Every number that it is given by `add` it gives back once: from `add`, `evict` or `drop`.
    """

    def __init__(
        self,
        model: ModelId,
        *,
        max_entries: int = MAX_ENTRIES,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> None:
        self._model = model
        self._max_entries = max_entries
        self._max_output_bytes = max_output_bytes
        self._sessions: dict[Hashable, _Session] = {}
        self._shelves: dict[PeerId, _Shelf] = {}

    def __len__(self) -> int:
        return sum(len(shelf.entries) for shelf in self._shelves.values())

    @property
    def output_bytes(self) -> int:
        """What all the outputs take."""
        return sum(shelf.output_bytes for shelf in self._shelves.values())

    def open(self, session: Hashable, owner: PeerId, span: Span) -> None:
        """A session begins, or begins anew."""
        root = _name(repr((owner, self._model, *span)).encode())
        self._sessions[session] = _Session(owner, span, [(0, root)])

    def close(self, session: Hashable) -> None:
        """A session is over; what it left stays. Idempotent."""
        self._sessions.pop(session, None)

    def look(
        self, session: Hashable, position: int, rows: int, codec: str, payload: bytes
    ) -> Known | Unknown | None:
        """A frame has come; None if it does not lengthen a prefix, or is not worth keeping.

        To be asked in the order of the frames, when all frames before this one are computed.
        """
        known = self._known(session)
        while known.ends and known.ends[-1][0] > position:
            known.ends.pop()
        if not known.ends or known.ends[-1][0] != position or rows < MIN_ROWS:
            return None
        known.is_known = known.is_known or position == 0
        name = _name(known.ends[-1][1] + codec.encode() + b"\0", payload)
        known.ends.append((position + rows, name))
        shelf = self._shelves.get(known.owner)
        entry = shelf.entries.get(name) if shelf and known.is_known else None
        if shelf is None or entry is None:
            known.is_known = False
            return Unknown(name, position + rows)
        for _, earlier in reversed(known.ends[1:]):  # a prefix outlives what follows it
            if earlier in shelf.entries:
                shelf.entries.move_to_end(earlier)
        return entry.known

    def wants(self, session: Hashable, frame: Unknown) -> bool:
        """Whether a frame that was computed may be kept: nobody kept it or went back meanwhile."""
        known = self._sessions.get(session)
        if known is None or (frame.end, frame.name) not in known.ends:
            return False
        shelf = self._shelves.get(known.owner)
        return shelf is None or frame.name not in shelf.entries

    def add(self, session: Hashable, frame: Unknown, kept: int, output: bytes) -> list[int]:
        """Keep a frame that is wanted; returns which numbers are to be forgotten for it."""
        known = self._known(session)
        shelf = self._shelves.setdefault(known.owner, _Shelf())
        shelf.entries[frame.name] = _Entry(known.span, Known(kept, output))
        shelf.output_bytes += len(output)
        return list(self._surplus())

    def evict(self) -> int | None:
        """Give up what is least likely to be used: its number is to be forgotten. None: all is.

        The owner who has most here gives first, so that nobody can drive out all others.
        """
        if not self._shelves:
            return None
        owner = max(self._shelves, key=lambda one: (self._shelves[one].output_bytes, one))
        return self._remove(owner, next(iter(self._shelves[owner].entries)))

    def drop(self, span: Span) -> list[int]:
        """Layers go: give up all that runs over one of them. The numbers to be forgotten."""
        gone = [
            (owner, name)
            for owner, shelf in self._shelves.items()
            for name, entry in shelf.entries.items()
            if entry.span.start < span.end and span.start < entry.span.end
        ]
        return [self._remove(owner, name) for owner, name in gone]

    def _known(self, session: Hashable) -> _Session:
        known = self._sessions.get(session)
        if known is None:
            raise LocalError(f"session {session!r} is not open")
        return known

    def _surplus(self) -> Iterator[int]:
        while len(self) > self._max_entries or self.output_bytes > self._max_output_bytes:
            kept = self.evict()
            if kept is None:
                return
            yield kept

    def _remove(self, owner: PeerId, name: bytes) -> int:
        shelf = self._shelves[owner]
        known = shelf.entries.pop(name).known
        shelf.output_bytes -= len(known.output)
        if not shelf.entries:
            del self._shelves[owner]
        return known.kept


def _name(*parts: bytes) -> bytes:
    """A hash of parts of which all but the last are of known length or end in a zero."""
    digest = sha256()  # 0.6 ms per MB where processors help, as most of today's do
    for part in parts:
        digest.update(part)
    return digest.digest()
