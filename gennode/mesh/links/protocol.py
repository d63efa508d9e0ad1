"""A link: frames to one peer, in order, none lost and none doubled, across streams that break.

    opener to acceptor:  kind u8 | number u64 | length u32 | that many bytes
        HELLO  number = frames acknowledged so far; the bytes are the link's random id
        FRAME  number = 0, 1, 2 …; the bytes are one frame of `gennode.wire.frames`
        END    number = frames in all; no bytes
    acceptor to opener:  kind u8 | number u64
        WELCOME, ACKNOWLEDGED, ENDED  number = frames received so far
        UNKNOWN  the acceptor has forgotten the link, so that it can't be resumed

Integers are big-endian. Each stream begins with HELLO and WELCOME; then the opener sends on
from the number it was told. It keeps what is not acknowledged, to send it again.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from gennode.errors import LocalError, NetworkError, RemoteError
from gennode.wire.frames import MAX_FRAME_BYTES, Buffer, FrameDecoder, encode
from gennode.wire.messages import Message

LINK_ID_BYTES = 16
WINDOW_BYTES = 32 * 1024 * 1024  # sent, not acknowledged: 0.1 s of the fastest path we measured
MAX_QUEUED_BYTES = 128 * 1024 * 1024  # not sent yet; a peer this far behind holds everyone up
ACKNOWLEDGE_FRAMES = 64  # so that acknowledgements cost few system calls
ACKNOWLEDGE_BYTES = 1024 * 1024  # far below the window, so that bulk never waits

_RECORD = struct.Struct(">BQI")
_REPLY = struct.Struct(">BQ")
_LENGTH_BYTES = 4  # a frame's own length field is not in MAX_FRAME_BYTES
HELLO_BYTES = _RECORD.size + LINK_ID_BYTES


class Kind(IntEnum):
    """What the opener sends."""

    HELLO = 1
    FRAME = 2
    END = 3


class Reply(IntEnum):
    """What the acceptor sends."""

    WELCOME = 1
    ACKNOWLEDGED = 2
    ENDED = 3
    UNKNOWN = 4


@dataclass(frozen=True)
class Hello:
    """The start of a stream: which link it carries on, and how much of it is settled."""

    link: bytes
    acknowledged: int


def read_hello(data: Buffer) -> Hello:
    """The first HELLO_BYTES of a stream; RemoteError if they are anything else."""
    kind, number, length = _RECORD.unpack_from(data)
    if kind != Kind.HELLO or length != LINK_ID_BYTES:
        raise RemoteError("a link's stream does not begin with a greeting")
    return Hello(bytes(data[_RECORD.size : HELLO_BYTES]), number)


def reply(kind: Reply, number: int = 0) -> bytes:
    """The acceptor's word as bytes."""
    return _REPLY.pack(kind, number)


@dataclass(frozen=True)
class _Record:
    head: bytes
    payload: Buffer

    @property
    def size(self) -> int:
        return len(self.head) + len(self.payload)


class Sender:
    """The opener's half. What its methods return is to be written to the stream, in order."""

    def __init__(self, link: bytes) -> None:
        """`link`: 16 random bytes that name it."""
        if len(link) != LINK_ID_BYTES:
            raise LocalError(f"a link's id has {LINK_ID_BYTES} bytes, not {len(link)}")
        self._link = link
        self._sent: deque[_Record] = deque()  # on this stream, not acknowledged yet
        self._queue: deque[_Record] = deque()
        self._replies = bytearray()
        self._next = 0  # the number of the next frame pushed
        self._tried = 0  # how many were ever sent, on any stream
        self._acknowledged = 0
        self._ending = self._end_sent = False
        self.pushed_bytes = 0
        """What all messages so far take on a stream, each counted once."""
        self.unacknowledged_bytes = 0
        self.queued_bytes = 0
        self.is_open = False
        """Whether the stream has been welcomed."""
        self.is_done = False
        """Whether the acceptor has confirmed the end."""

    @property
    def held_bytes(self) -> int:
        """What is kept in memory until it has arrived."""
        return self.queued_bytes + self.unacknowledged_bytes

    @property
    def acknowledged(self) -> int:
        """How many frames have arrived for certain."""
        return self._acknowledged

    def hello(self) -> bytes:
        """What a new stream begins with."""
        self._replies.clear()
        return _RECORD.pack(Kind.HELLO, self._acknowledged, LINK_ID_BYTES) + self._link

    def push(self, message: Message, payload: Buffer = b"") -> list[Buffer]:
        """Send a message; the payload is kept until it is acknowledged: don't change it.

        NetworkError if too much waits already.
        """
        if self._ending:
            raise LocalError("a message is sent on a link after its end")
        head, payload = encode(message, payload)
        length = len(head) + len(payload)
        record = _Record(_RECORD.pack(Kind.FRAME, self._next, length) + head, payload)
        self._next += 1
        self._queue.append(record)
        self.pushed_bytes += record.size
        self.queued_bytes += record.size
        written = self._pump()
        if self.queued_bytes > MAX_QUEUED_BYTES:
            raise NetworkError(f"{self.queued_bytes} bytes wait for it: it is too slow")
        return written

    def end(self) -> list[Buffer]:
        """No more messages: ask the acceptor to confirm that all have arrived. Idempotent."""
        self._ending = True
        return self._pump()

    def reset(self) -> None:
        """The stream is lost: all that is not acknowledged waits for the next one."""
        self.is_open = self._end_sent = False
        self._queue.extendleft(reversed(self._sent))
        self._sent.clear()
        self.queued_bytes += self.unacknowledged_bytes
        self.unacknowledged_bytes = 0

    def receive(self, data: bytes) -> list[Buffer]:
        """Take the acceptor's replies.

        RemoteError if they break the protocol, NetworkError if it has forgotten the link.
        """
        self._replies += data
        written: list[Buffer] = []
        while len(self._replies) >= _REPLY.size:
            kind, number = _REPLY.unpack_from(self._replies)
            del self._replies[: _REPLY.size]
            self._take(kind, number)
            written += self._pump()
        return written

    def _take(self, kind: int, number: int) -> None:
        if kind == Reply.UNKNOWN and not self.is_open:
            raise NetworkError("it has restarted, or was cut off for too long")
        expected = kind == Reply.WELCOME if not self.is_open else kind == Reply.ACKNOWLEDGED
        ended = kind == Reply.ENDED and self._end_sent and number == self._next
        if not (expected or ended):
            raise RemoteError(f"reply {kind} makes no sense in this state of the link")
        waiting = self._sent if self.is_open else self._queue
        if not self._acknowledged <= number <= self._tried:
            raise RemoteError(f"frame {number} is acknowledged, which was not sent or was before")
        size = 0
        for _ in range(number - self._acknowledged):
            size += waiting.popleft().size
        self._acknowledged = number
        if self.is_open:
            self.unacknowledged_bytes -= size
        else:
            self.queued_bytes -= size
        self.is_open = True
        self.is_done = self.is_done or ended

    def _pump(self) -> list[Buffer]:
        written: list[Buffer] = []
        if not self.is_open:
            return written
        queue = self._queue
        while queue and self.unacknowledged_bytes + queue[0].size <= WINDOW_BYTES:
            record = queue.popleft()
            self._sent.append(record)
            self.queued_bytes -= record.size
            self.unacknowledged_bytes += record.size
            written.append(record.head)
            if len(record.payload):
                written.append(record.payload)
        self._tried = max(self._tried, self._acknowledged + len(self._sent))
        if self._ending and not queue and not self._end_sent:
            self._end_sent = True
            written.append(_RECORD.pack(Kind.END, self._next, 0))
        return written


class Receiver:
    """The acceptor's half: survives the streams that feed it."""

    def __init__(self) -> None:
        self.received = 0
        """How many frames have arrived."""
        self.is_ended = False
        self._begin_stream()
        self._unacknowledged_frames = self._unacknowledged_bytes = 0

    def _begin_stream(self) -> None:
        self._decoder = FrameDecoder()
        self._head = bytearray()
        self._remaining = 0  # bytes of the record that have not arrived

    @property
    def partial_bytes(self) -> int:
        """Bytes held of a frame that is not complete."""
        return len(self._head) + self._decoder.buffered_bytes

    @property
    def owes_acknowledgement(self) -> bool:
        """Whether something has arrived that was not acknowledged."""
        return self._unacknowledged_frames > 0

    @property
    def must_acknowledge(self) -> bool:
        """Whether that is so much that it should be done now."""
        frames, size = self._unacknowledged_frames, self._unacknowledged_bytes
        return frames >= ACKNOWLEDGE_FRAMES or size >= ACKNOWLEDGE_BYTES

    def welcome(self) -> bytes:
        """Begin a new stream: forget the unfinished frame, say where to send on from."""
        self._begin_stream()
        self._unacknowledged_frames = self._unacknowledged_bytes = 0
        self.is_ended = False  # an end whose confirmation got lost is said again
        return reply(Reply.WELCOME, self.received)

    def acknowledgement(self) -> bytes:
        """What to write back, after frames or after the end."""
        self._unacknowledged_frames = self._unacknowledged_bytes = 0
        return reply(Reply.ENDED if self.is_ended else Reply.ACKNOWLEDGED, self.received)

    def feed(self, data: Buffer) -> Iterator[tuple[Message, bytes]]:
        """Yield each message that `data` completes; RemoteError on a breach of the protocol."""
        view = memoryview(data)
        while view:
            if not self._remaining:
                need = _RECORD.size - len(self._head)
                self._head += view[:need]
                view = view[need:]
                if len(self._head) < _RECORD.size:
                    return
                self._begin_record(*_RECORD.unpack(self._head))
                self._head.clear()
                continue
            chunk = view[: self._remaining]
            view = view[len(chunk) :]
            self._remaining -= len(chunk)
            complete = False
            for item in self._decoder.feed(chunk):
                if self._remaining or complete:
                    raise RemoteError("a record holds more than one frame")
                complete = True
                self.received += 1
                yield item
            if not self._remaining and (not complete or self._decoder.buffered_bytes):
                raise RemoteError("a record holds more or less than a frame")

    def _begin_record(self, kind: int, number: int, length: int) -> None:
        if self.is_ended or kind not in (Kind.FRAME, Kind.END):
            raise RemoteError(f"a record of kind {kind} has no place here")
        if number != self.received:
            raise RemoteError(f"frame {number} came where {self.received} was due")
        if kind == Kind.END:
            if length:
                raise RemoteError("the end of a link carries bytes")
            self.is_ended = True
            return
        if not 0 < length <= MAX_FRAME_BYTES + _LENGTH_BYTES:
            raise RemoteError(f"a record claims {length} bytes")
        self._remaining = length
        self._unacknowledged_frames += 1
        self._unacknowledged_bytes += length
