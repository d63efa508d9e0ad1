"""Messages to bytes and back: length-prefixed, incremental, bounded.

    frame = length u32 | header length u32 | header (msgpack) | payload

`length` counts everything after itself; both integers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from gennode.errors import LocalError, RemoteError
from gennode.wire.messages import Message

# 512 rows of dim 8192 in float32, what lossless planes may add to that, and a header.
MAX_FRAME_BYTES = 16 * 1024 * 1024 + 16 * 1024
MAX_HEADER_BYTES = 512 * 1024  # a digest of 4,096 peers takes some 260 KiB

_PREFIX = struct.Struct(">II")

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)

Buffer = bytes | bytearray | memoryview


def encode(message: Message, payload: Buffer = b"") -> tuple[bytes, Buffer]:
    """A frame in two pieces, to be sent one after the other; the payload is not copied."""
    return frame(_encoder.encode(message), payload)


def frame(header: bytes, payload: Buffer = b"") -> tuple[bytes, Buffer]:
    """The two pieces of a frame whose header is encoded already."""
    payload_bytes = memoryview(payload).nbytes  # len() would count elements, not bytes
    length = 4 + len(header) + payload_bytes
    if len(header) > MAX_HEADER_BYTES or length > MAX_FRAME_BYTES:
        raise LocalError(f"a frame of {length} bytes, {len(header)} of header, is too large")
    return _PREFIX.pack(length, len(header)) + header, payload


def decode_header(header: Buffer) -> Message:
    """One message from its msgpack form; RemoteError if it is not one."""
    try:
        return _decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteError(f"malformed message: {error}") from error


class FrameSplitter:
    """Bytes in, (header, payload) out. Holds at most one frame, as far as it has arrived."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: Buffer) -> Iterator[tuple[bytes, bytes]]:
        """Yield every frame that `data` completes; RemoteError on the first that is too large."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _PREFIX.size:
                length, header_bytes = _PREFIX.unpack_from(buffer, start)
                if length > self._max_bytes or header_bytes > min(MAX_HEADER_BYTES, length - 4):
                    raise RemoteError(f"a frame claims {length} bytes, {header_bytes} of header")
                end = start + 4 + length
                if len(buffer) < end:
                    break
                split = start + _PREFIX.size + header_bytes
                header = bytes(memoryview(buffer)[start + _PREFIX.size : split])
                payload = bytes(memoryview(buffer)[split:end])
                start = end
                yield header, payload
        finally:
            del buffer[:start]


class FrameDecoder:
    """Bytes in, (message, payload) out. Holds at most one frame, as far as it has arrived."""

    def __init__(self) -> None:
        self._splitter = FrameSplitter()

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the frame that is not complete yet."""
        return self._splitter.buffered_bytes

    def feed(self, data: Buffer) -> Iterator[tuple[Message, bytes]]:
        """Yield every frame that `data` completes; RemoteError on the first wrong one."""
        for header, payload in self._splitter.feed(data):
            yield decode_header(header), payload
