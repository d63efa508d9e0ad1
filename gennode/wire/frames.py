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

MAX_FRAME_BYTES = 16 * 1024 * 1024 + 1024  # 512 rows of dim 8192 in float32, and a header
MAX_HEADER_BYTES = 512 * 1024  # a digest of 4,096 peers takes some 260 KiB

_PREFIX = struct.Struct(">II")

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)

Buffer = bytes | bytearray | memoryview


def encode(message: Message, payload: Buffer = b"") -> tuple[bytes, Buffer]:
    """A frame in two pieces, to be sent one after the other; the payload is not copied."""
    header = _encoder.encode(message)
    payload_bytes = memoryview(payload).nbytes  # len() would count elements, not bytes
    length = 4 + len(header) + payload_bytes
    if len(header) > MAX_HEADER_BYTES or length > MAX_FRAME_BYTES:
        raise LocalError(f"a {type(message).__name__} frame of {length} bytes is too large")
    return _PREFIX.pack(length, len(header)) + header, payload


def decode_header(header: Buffer) -> Message:
    """One message from its msgpack form; RemoteError if it is not one."""
    try:
        return _decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteError(f"malformed message: {error}") from error


class FrameDecoder:
    """Bytes in, (message, payload) out. Holds at most one frame, as far as it has arrived."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: Buffer) -> Iterator[tuple[Message, bytes]]:
        """Yield every frame that `data` completes; RemoteError on the first wrong one."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _PREFIX.size:
                length, header_bytes = _PREFIX.unpack_from(buffer, start)
                if length > MAX_FRAME_BYTES or header_bytes > min(MAX_HEADER_BYTES, length - 4):
                    raise RemoteError(f"a frame claims {length} bytes, {header_bytes} of header")
                end = start + 4 + length
                if len(buffer) < end:
                    break
                split = start + _PREFIX.size + header_bytes
                header = bytes(memoryview(buffer)[start + _PREFIX.size : split])
                payload = bytes(memoryview(buffer)[split:end])
                start = end
                yield decode_header(header), payload
        finally:
            del buffer[:start]
