"""A link delivers exactly what was sent, whatever happens to the streams under it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gennode.errors import LocalError, NetworkError, RemoteError
from gennode.mesh.links import protocol as link_module
from gennode.mesh.links.protocol import HELLO_BYTES, Receiver, Reply, Sender, read_hello, reply
from gennode.wire.frames import encode
from gennode.wire.ids import SessionId
from gennode.wire.messages import Ping

SESSION = SessionId(bytes(16))


def ping(nonce: int) -> Ping:
    return Ping(session=SESSION, nonce=nonce)


def feed(receiver: Receiver, data: bytes, step: int) -> None:
    for start in range(0, len(data), step):
        list(receiver.feed(data[start : start + step]))


class Pair:
    """A sender and a receiver with a stream between them that delivers what it is told to."""

    def __init__(self) -> None:
        self.sender = Sender(bytes(16))
        self.receiver = Receiver()
        self.got: list[tuple[int, bytes]] = []
        self.down = bytearray()  # to the receiver
        self.up = bytearray()  # to the sender
        self.greeted = False
        self.down += self.sender.hello()

    def push(self, nonce: int, payload: bytes) -> None:
        self.down += b"".join(self.sender.push(ping(nonce), payload))

    def deliver_down(self, size: int) -> None:
        if not self.greeted:
            if len(self.down) < HELLO_BYTES:
                return
            assert read_hello(self.down).acknowledged <= self.receiver.received
            del self.down[:HELLO_BYTES]
            self.greeted = True
            self.up += self.receiver.welcome()
        data = bytes(self.down[:size])
        del self.down[:size]
        for message, payload in self.receiver.feed(data):
            assert isinstance(message, Ping)
            self.got.append((message.nonce, payload))
        if self.receiver.is_ended:
            self.up += self.receiver.acknowledgement()

    def deliver_up(self, size: int) -> None:
        data = bytes(self.up[:size])
        del self.up[:size]
        self.down += b"".join(self.sender.receive(data))

    def acknowledge(self) -> None:
        if self.greeted and not self.receiver.is_ended:
            self.up += self.receiver.acknowledgement()

    def reset(self) -> None:
        self.sender.reset()
        self.down.clear()
        self.up.clear()
        self.greeted = False
        self.down += self.sender.hello()

    def settle(self) -> None:
        while self.down or self.up:
            self.deliver_down(1 << 20)
            self.acknowledge()
            self.deliver_up(1 << 20)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 300)),
        st.tuples(st.just("down"), st.integers(1, 400)),
        st.tuples(st.just("up"), st.integers(1, 40)),
        st.tuples(st.just("acknowledge"), st.just(0)),
        st.tuples(st.just("reset"), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(OPERATIONS)
def test_every_frame_arrives_once_and_in_order(operations: list[tuple[str, int]]) -> None:
    pair = Pair()
    sent: list[tuple[int, bytes]] = []
    for name, size in operations:
        if name == "push":
            sent.append((len(sent), bytes([len(sent) % 256]) * size))
            pair.push(*sent[-1])
        elif name == "down":
            pair.deliver_down(size)
        elif name == "up":
            pair.deliver_up(size)
        elif name == "acknowledge":
            pair.acknowledge()
        else:
            pair.reset()
    pair.reset()
    pair.down += b"".join(pair.sender.end())
    while not pair.sender.is_done:
        pair.deliver_down(1 << 20)
        pair.deliver_up(1 << 20)
    assert pair.got == sent
    assert pair.sender.unacknowledged_bytes == pair.sender.queued_bytes == 0


@given(st.binary(max_size=200), st.integers(1, 50))
def test_garbage_breaks_nothing_but_the_link(garbage: bytes, step: int) -> None:
    receiver, sender = Receiver(), Sender(bytes(16))
    receiver.welcome()
    with contextlib.suppress(RemoteError):
        feed(receiver, garbage, step)
    with contextlib.suppress(RemoteError, NetworkError):
        sender.receive(garbage)


def test_nothing_is_sent_before_the_welcome() -> None:
    sender = Sender(bytes(16))
    assert sender.push(ping(1)) == []
    assert sender.end() == []
    assert sender.receive(reply(Reply.WELCOME)) != []


def test_the_window_holds_frames_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "WINDOW_BYTES", 2000)
    pair = Pair()
    pair.settle()
    for nonce in range(5):
        pair.push(nonce, bytes(900))
    assert pair.sender.unacknowledged_bytes <= 2000
    assert pair.sender.queued_bytes > 2000
    pair.settle()
    assert [nonce for nonce, _ in pair.got] == [0, 1, 2, 3, 4]


def test_too_much_waiting_gives_the_peer_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_QUEUED_BYTES", 5000)
    sender = Sender(bytes(16))
    for nonce in range(4):
        sender.push(ping(nonce), bytes(1000))
    with pytest.raises(NetworkError, match="too slow"):
        sender.push(ping(4), bytes(1000))


def test_many_small_frames_ask_for_an_acknowledgement() -> None:
    pair = Pair()
    pair.settle()
    for nonce in range(link_module.ACKNOWLEDGE_FRAMES):
        assert not pair.receiver.must_acknowledge
        pair.push(nonce, b"")
        pair.deliver_down(1 << 20)
    assert pair.receiver.must_acknowledge
    pair.acknowledge()
    assert not pair.receiver.owes_acknowledgement


@pytest.mark.parametrize("number", [3, 2**40])
def test_acknowledging_what_was_not_sent_is_a_breach(number: int) -> None:
    sender = Sender(bytes(16))
    for nonce in range(2):
        sender.push(ping(nonce))
    with pytest.raises(RemoteError):
        sender.receive(reply(Reply.WELCOME) + reply(Reply.ACKNOWLEDGED, number))


def test_a_welcome_can_not_claim_frames_that_were_never_sent() -> None:
    sender = Sender(bytes(16))
    sender.push(ping(0))
    with pytest.raises(RemoteError):
        sender.receive(reply(Reply.WELCOME, 1))


@pytest.mark.parametrize("kind", [Reply.WELCOME, Reply.ENDED, Reply.UNKNOWN, 9])
def test_replies_out_of_place_are_a_breach(kind: int) -> None:
    sender = Sender(bytes(16))
    sender.receive(reply(Reply.WELCOME))
    with pytest.raises(RemoteError):
        sender.receive(bytes([kind]) + bytes(8))


def test_a_forgotten_link_is_no_breach() -> None:
    with pytest.raises(NetworkError):
        Sender(bytes(16)).receive(reply(Reply.UNKNOWN))


RECORD = link_module._RECORD
FRAME = b"".join(encode(ping(1)))


@pytest.mark.parametrize(
    "data",
    [
        RECORD.pack(2, 1, len(FRAME)) + FRAME,  # a number too high
        RECORD.pack(2, 0, 2**32 - 1),
        RECORD.pack(2, 0, 0),
        RECORD.pack(2, 0, len(FRAME) + 4) + FRAME + bytes(4),
        RECORD.pack(2, 0, len(FRAME) - 1) + FRAME,
        RECORD.pack(2, 0, 2 * len(FRAME)) + FRAME + FRAME,
        RECORD.pack(3, 0, 1),
        RECORD.pack(3, 0, 0) + RECORD.pack(3, 0, 0),
        RECORD.pack(1, 0, 16) + bytes(16),
        RECORD.pack(2, 0, 12) + bytes(12),
    ],
)
@pytest.mark.parametrize("step", [1, 1000])
def test_wrong_records_are_a_breach(data: bytes, step: int) -> None:
    with pytest.raises(RemoteError):
        feed(Receiver(), data, step)


def test_a_stream_must_begin_with_a_greeting() -> None:
    with pytest.raises(RemoteError):
        read_hello(bytes(HELLO_BYTES))
    assert read_hello(Sender(b"0123456789abcdef").hello()).link == b"0123456789abcdef"


def test_our_own_mistakes_are_ours() -> None:
    with pytest.raises(LocalError):
        Sender(b"short")
    sender = Sender(bytes(16))
    sender.end()
    with pytest.raises(LocalError):
        sender.push(ping(1))
