"""Frames survive any cut; anything else ends in RemoteError, soon and in little memory."""

from __future__ import annotations

import struct
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.errors import LocalError, RemoteError
from gennode.wire.frames import (
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    FrameDecoder,
    decode_header,
    encode,
)
from gennode.wire.ids import SessionId
from gennode.wire.messages import Close, Message, Refuse
from tests.wire.strategies import messages

CLOSE = Close(SessionId(bytes(16)))
CLOSE_HEADER = msgspec.msgpack.encode(CLOSE)
BOMBS = {
    "deep arrays": b"\x91" * MAX_HEADER_BYTES,
    "deep maps": b"\x81\x00" * (MAX_HEADER_BYTES // 2),
    "wide array": b"\xdd\xff\xff\xff\xff",
    "wide map": b"\xdf\xff\xff\xff\xff",
    "long text": b"\xdb\xff\xff\xff\xff",
    "long bytes": b"\xc6\xff\xff\xff\xff",
    "long extension": b"\xc9\xff\xff\xff\xff\x00",
    "many nothings": b"\xdd\x00\x07\xff\x00" + b"\xc0" * (MAX_HEADER_BYTES - 256),
}


def whole(message: Message, payload: bytes = b"") -> bytes:
    return b"".join(bytes(part) for part in encode(message, payload))


def read(decoder: FrameDecoder, *pieces: bytes) -> list[tuple[Message, bytes]]:
    return [frame for piece in pieces for frame in decoder.feed(piece)]


def read_or_refuse(data: bytes) -> None:
    try:
        read(FrameDecoder(), data)
    except RemoteError:
        return


def peak_bytes(data: bytes) -> int:
    """The most memory that refusing or reading `data` takes, beyond the data."""
    tracemalloc.start()
    try:
        read_or_refuse(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@given(st.lists(st.tuples(messages, st.binary(max_size=50)), max_size=4), st.data())
def test_frames_survive_any_cut(frames: list[tuple[Message, bytes]], data: st.DataObject) -> None:
    stream = b"".join(whole(message, payload) for message, payload in frames)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    decoder = FrameDecoder()
    assert read(decoder, *pieces) == frames
    assert decoder.buffered_bytes == 0


def test_frames_survive_single_bytes() -> None:
    stream = whole(CLOSE, b"one") + whole(CLOSE)
    pieces = [stream[at : at + 1] for at in range(len(stream))]
    assert read(FrameDecoder(), *pieces) == [(CLOSE, b"one"), (CLOSE, b"")]


@given(st.binary(max_size=300))
def test_invented_bytes_are_read_or_refused(data: bytes) -> None:
    read_or_refuse(data)


@given(st.binary(max_size=300))
def test_invented_headers_are_read_or_refused(header: bytes) -> None:
    read_or_refuse(struct.pack(">II", 4 + len(header), len(header)) + header)


@given(messages, st.data())
def test_damaged_messages_are_read_or_refused(message: Message, data: st.DataObject) -> None:
    damaged = bytearray(msgspec.msgpack.encode(message))
    spots = st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255))
    for spot, value in data.draw(st.lists(spots, min_size=1, max_size=4)):
        damaged[spot] = value
    try:
        decode_header(damaged)
    except RemoteError:
        return


@given(messages, st.data())
def test_damaged_frames_are_read_or_refused(message: Message, data: st.DataObject) -> None:
    stream = bytearray(whole(message, b"payload"))
    stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(bytes(stream) + whole(CLOSE))


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (0xFFFFFFFF, 0),
        (MAX_FRAME_BYTES + 1, 0),
        (100, 97),
        (3, 0),
        (0, 0),
        (0, 0xFFFFFFFF),
        (MAX_FRAME_BYTES, MAX_HEADER_BYTES + 1),
    ],
)
def test_a_length_that_cannot_be_is_refused_at_once(length: int, header: int) -> None:
    with pytest.raises(RemoteError, match="claims"):
        read(FrameDecoder(), struct.pack(">II", length, header))


def test_a_claim_of_length_takes_no_memory() -> None:
    assert peak_bytes(struct.pack(">II", MAX_FRAME_BYTES, 100)) < 4096
    assert peak_bytes(b"\xff" * 8) < 8192


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("prefix", [b"", b"\x93\xa5Close\xc4\x10" + bytes(16)])
def test_a_bomb_takes_little_more_than_its_own_size(name: str, prefix: bytes) -> None:
    """As the message itself, and as a field more than the message has, which is skipped."""
    header = (prefix + BOMBS[name])[:MAX_HEADER_BYTES]
    frame = struct.pack(">II", 4 + len(header), len(header)) + header
    assert peak_bytes(frame) < 4 * len(frame) + 64 * 1024


def test_what_came_before_a_wrong_frame_is_delivered() -> None:
    frames = FrameDecoder().feed(whole(CLOSE, b"good") + struct.pack(">II", 5, 1) + b"\xc1")
    assert next(frames) == (CLOSE, b"good")
    with pytest.raises(RemoteError):
        next(frames)


def test_a_payload_is_counted_in_bytes() -> None:
    pairs = memoryview(b"abcdef").cast("H")
    assert len(pairs) == 3
    head, payload = encode(CLOSE, pairs)
    assert read(FrameDecoder(), head, bytes(payload)) == [(CLOSE, b"abcdef")]


def test_a_payload_is_not_copied() -> None:
    payload = bytearray(100)
    assert encode(CLOSE, payload)[1] is payload


def test_what_is_too_large_is_not_sent() -> None:
    largest = MAX_FRAME_BYTES - 4 - len(CLOSE_HEADER)
    encode(CLOSE, bytes(largest))
    with pytest.raises(LocalError):
        encode(CLOSE, bytes(largest + 1))
    with pytest.raises(LocalError):
        encode(Refuse(CLOSE.session, 0, 0, "x" * MAX_HEADER_BYTES))
