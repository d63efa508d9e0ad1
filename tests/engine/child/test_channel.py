"""Frames between a node and its compute process arrive whole, or not at all."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from gennode.engine.child.channel import BUFFER_BYTES, BrokenChannelError, Channel, GoneError
from gennode.engine.child.protocol import (
    LENGTHS,
    MAX_HEADER_BYTES,
    Done,
    Number,
    Part,
    Progress,
    Reply,
)

End = Channel[Reply]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, End]]:
    """A socket to write to, and the channel that reads what is written."""
    theirs, ours = socket.socketpair()
    with theirs, ours:
        yield theirs, Channel(ours, msgspec.msgpack.Decoder(Reply))


def channel(end: socket.socket) -> End:
    """A channel at the other end."""
    return Channel(end, msgspec.msgpack.Decoder(Reply))


@pytest.mark.parametrize("size_bytes", [0, 1, 100, BUFFER_BYTES - 20, BUFFER_BYTES, 5_000_000])
def test_frames_arrive_in_order_and_whole(ends: tuple[socket.socket, End], size_bytes: int) -> None:
    other, bodies = channel(ends[0]), [os.urandom(size_bytes), b"x", os.urandom(size_bytes)]

    def send() -> None:
        for number, body in enumerate(bodies):
            other.send(Number(number), [body[:7], b"", memoryview(body)[7:]])

    sending = threading.Thread(target=send)
    sending.start()
    received = [ends[1].receive(size_bytes or 1) for _ in bodies]
    sending.join()
    assert [header for header, _ in received] == [Number(n) for n in range(len(bodies))]
    assert [bytes(body) for _, body in received] == bodies


def test_many_small_frames_in_one_piece_are_told_apart(ends: tuple[socket.socket, End]) -> None:
    head = msgspec.msgpack.encode(Progress(1, 2))
    frame = LENGTHS.pack(len(head), 3) + head + b"abc"
    count = 2 * BUFFER_BYTES // len(frame) + 10
    sending = threading.Thread(target=lambda: ends[0].sendall(frame * count))
    sending.start()
    for _ in range(count):
        assert ends[1].receive(3) == (Progress(1, 2), bytearray(b"abc"))
    sending.join()


DONE = msgspec.msgpack.encode(Done())


@pytest.mark.parametrize(
    "sent",
    [
        LENGTHS.pack(MAX_HEADER_BYTES + 1, 0),
        LENGTHS.pack(0xFFFFFFFF, 0),
        LENGTHS.pack(len(DONE), 1001) + DONE,
        LENGTHS.pack(len(DONE), (1 << 64) - 1) + DONE,
        LENGTHS.pack(0, 0),
        LENGTHS.pack(4, 0) + b"\xff\xff\xff\xff",
        LENGTHS.pack(5000, 0) + b"\x91" * 5000,
        LENGTHS.pack(2, 0) + msgspec.msgpack.encode(["Compute"])[:2],
        LENGTHS.pack(len(DONE) + 1, 0) + DONE + b"\x00",
    ],
)
def test_what_breaks_the_bounds_is_refused_before_memory_is_taken(
    ends: tuple[socket.socket, End], sent: bytes
) -> None:
    ends[0].sendall(sent)
    with pytest.raises(BrokenChannelError) as caught:
        ends[1].receive(1000)
    assert not isinstance(caught.value, GoneError)


def test_an_end_is_noticed_by_both_sides(ends: tuple[socket.socket, End]) -> None:
    ends[0].sendall(LENGTHS.pack(100, 0))
    ends[0].close()
    with pytest.raises(GoneError):
        ends[1].receive(0)
    with pytest.raises(GoneError):
        ends[1].send(Done(), [bytes(10_000_000)])


def test_closing_wakes_whoever_waits() -> None:
    theirs, ours = socket.socketpair()
    with theirs:
        waiting = channel(ours)
        caught: list[BrokenChannelError] = []

        def receive() -> None:
            try:
                waiting.receive(0)
            except BrokenChannelError as error:
                caught.append(error)

        thread = threading.Thread(target=receive)
        thread.start()
        waiting.close()
        thread.join()
    assert len(caught) == 1


def test_a_header_is_bounded_where_it_is_made(ends: tuple[socket.socket, End]) -> None:
    class Long(msgspec.Struct):
        parts: list[Part]

    with pytest.raises(Exception, match="a header of"):
        ends[1].send(Long([Part(1, 2, 3)] * MAX_HEADER_BYTES))
