"""The directory: convergence under loss, ghosts, lies about ages, bounds, and wrong input."""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gennode.errors import LocalError, RemoteError
from gennode.mesh import directory as limits
from gennode.mesh.directory import Directory
from gennode.wire.ids import ModelId, PeerId, SessionId, Span
from gennode.wire.messages import (
    MAX_ANNOUNCEMENTS,
    AgedAnnouncement,
    Announcements,
    Close,
    Digest,
    Message,
)
from gennode.wire.signing import Key, Signed

MODEL = ModelId("a" * 64)
STRANGER = Key(bytes(31) + b"\xff").peer


@functools.cache
def key(number: int) -> Key:
    return Key(number.to_bytes(32, "big"))


@functools.cache
def announced(
    number: int,
    sequence: int = 1,
    *,
    lifetime_s: float = 60.0,
    spans: tuple[Span, ...] = (Span(0, 4),),
    spare_layers: int = 0,
    relay: bool = False,
) -> Signed:
    peer = key(number).peer
    hosting = [[MODEL, spans, spare_layers, 0.01, 0.1, 4, "fp32-cpu"]] if spans else []
    address = f"/ip4/10.0.0.{number % 250}/tcp/1/p2p/{peer}"
    fields = [peer, sequence, 0, lifetime_s, hosting, 0, relay, "unknown", [address]]
    body = msgspec.msgpack.encode(fields)  # of wrong ones too, which the type can't be made of
    return Signed(peer, body, key(number).sign("announcement", body))


def told(*items: Signed, age_s: float = 0.0) -> Announcements:
    return Announcements(tuple(AgedAnnouncement(item, age_s) for item in items))


def make(number: int = 0) -> Directory:
    return Directory(key(number).peer, Random(number))


def numbers(directory: Directory, now_s: float) -> list[int]:
    """Whom a directory believes to be live."""
    by_peer = {key(number).peer: number for number in range(80)}
    return sorted(by_peer[one.peer] for one in directory.live(now_s))


class Swarm:
    """Directories on a heap of events: a tenth of all messages is lost, the rest take a while.

    Each peer has a clock of its own that began at another time.
    """

    def __init__(self, peers: int, seed: int, *, lifetime_s: float, renewal_s: float) -> None:
        self.rng = Random(seed)
        self.now_s = 0.0
        self.lifetime_s, self.renewal_s = lifetime_s, renewal_s
        self.directories = [make(number) for number in range(peers)]
        self.index = {one.peer: number for number, one in enumerate(self.directories)}
        self.clock_s = [self.rng.uniform(0, 1e6) for _ in range(peers)]
        self.down: set[int] = set()
        self.log: list[tuple[int, PeerId, Message]] = []
        self._events: list[tuple[float, int, int, Callable[[], None]]] = []
        self._count = itertools.count()
        for number in range(peers):
            others = [self.directories[(number + 1) % peers].peer]
            others.append(self.directories[self.rng.randrange(peers)].peer)
            self._after(0.0, number, functools.partial(self._renew, number))
            self._after(self.rng.random(), number, functools.partial(self._tick, number, others))

    def local_s(self, number: int) -> float:
        return self.now_s + self.clock_s[number]

    def live(self, number: int) -> list[int]:
        return numbers(self.directories[number], self.local_s(number))

    def run(self, until_s: float, done: Callable[[], bool] = lambda: False) -> None:
        checked_s = self.now_s
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, number, event = heapq.heappop(self._events)
            if number not in self.down:
                event()
            if self.now_s >= checked_s + 1.0:
                checked_s = self.now_s
                if done():
                    return
        self.now_s = until_s

    def agree(self) -> bool:
        """Whether every peer that is up knows exactly those that are up."""
        up = [n for n in range(len(self.directories)) if n not in self.down]
        return all(self.live(number) == up for number in up)

    def _after(self, delay_s: float, number: int, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._count), number, event))

    def _renew(self, number: int) -> None:
        one = self.directories[number]
        signed = announced(number, one.next_sequence, lifetime_s=self.lifetime_s)
        one.publish(signed, self.local_s(number))
        self._after(self.renewal_s, number, functools.partial(self._renew, number))

    def _tick(self, number: int, neighbours: list[PeerId]) -> None:
        one = self.directories[number]
        self._send(one.peer, one.tick(self.local_s(number), neighbours))
        self._after(0.5, number, functools.partial(self._tick, number, neighbours))

    def _send(self, sender: PeerId, messages: list[tuple[PeerId, Message]]) -> None:
        for receiver, message in messages:
            if self.rng.random() >= 0.1:
                number, delay_s = self.index[receiver], self.rng.uniform(0.005, 0.3)
                event = functools.partial(self._arrive, number, sender, message)
                self._after(delay_s, number, event)

    def _arrive(self, number: int, sender: PeerId, message: Message) -> None:
        self.log.append((number, sender, message))
        one = self.directories[number]
        self._send(one.peer, one.receive(sender, message, self.local_s(number)))


@pytest.mark.parametrize("seed", range(20))
def test_all_know_all_within_half_a_minute(seed: int) -> None:
    swarm = Swarm(60, seed, lifetime_s=60.0, renewal_s=60.0)
    swarm.run(30.0, swarm.agree)
    assert swarm.agree(), f"not within 30 s under seed {seed}"


def test_a_crashed_peer_vanishes_everywhere_and_stays_away() -> None:
    swarm = Swarm(24, 1, lifetime_s=12.0, renewal_s=4.0)
    swarm.run(15.0)
    assert swarm.agree()
    swarm.down.add(5)
    swarm.run(swarm.now_s + 12.0 + 3.0)
    log = [entry for entry in swarm.log if isinstance(entry[2], Announcements)]
    for _ in range(5):
        assert swarm.agree()
        for number, sender, message in Random(2).sample(log, 50):  # old copies come late
            if number not in swarm.down:
                swarm.directories[number].receive(sender, message, swarm.local_s(number))
        assert swarm.agree()
        swarm.run(swarm.now_s + 4.0)


def test_replayed_messages_change_nothing() -> None:
    swarm = Swarm(8, 3, lifetime_s=60.0, renewal_s=5.0)
    swarm.run(20.0)
    before = [(one.version, swarm.live(n)) for n, one in enumerate(swarm.directories)]
    for number, sender, message in swarm.log:
        swarm.directories[number].receive(sender, message, swarm.local_s(number))
    assert before == [(one.version, swarm.live(n)) for n, one in enumerate(swarm.directories)]


def test_one_exchange_brings_both_sides_up_to_date() -> None:
    left, right = make(0), make(1)
    left.publish(announced(0), 0.0)
    right.publish(announced(1), 50.0)
    right.receive(STRANGER, told(announced(2)), 50.0)
    [(to, digest)] = left.tick(0.0, [right.peer])
    assert (to, digest) == (right.peer, Digest(((left.peer, 1),), reply=True))
    answers = right.receive(left.peer, digest, 51.0)
    assert [type(message) for _, message in answers] == [Announcements, Digest]
    more = [out for _, message in answers for out in left.receive(right.peer, message, 1.0)]
    assert [type(message) for _, message in more] == [Announcements]
    assert right.receive(left.peer, more[0][1], 51.5) == []
    assert numbers(left, 1.0) == numbers(right, 51.5) == [0, 1, 2]
    [(_, again)] = left.tick(1.0, [right.peer])
    assert right.receive(left.peer, again, 52.0) == []


def test_a_tick_exchanges_once_per_interval_or_at_once_for_own_news() -> None:
    one = make()
    assert one.tick(0.0, []) == []
    assert len(one.tick(0.1, [STRANGER])) == 1
    assert one.tick(1.0, [STRANGER]) == []
    assert len(one.tick(1.1, [STRANGER])) == 1
    one.publish(announced(0), 1.2)
    assert len(one.tick(1.2, [STRANGER])) == 1
    assert one.tick(9.9, [one.peer]) == []  # nobody but us


def test_an_announcement_travels_with_its_age() -> None:
    one = make()
    one.receive(STRANGER, told(announced(1, lifetime_s=10.0), age_s=4.0), 100.0)
    [(_, answer)] = one.receive(STRANGER, Digest((), reply=False), 103.0)
    assert isinstance(answer, Announcements)
    assert answer.items == (AgedAnnouncement(announced(1, lifetime_s=10.0), 7.0),)
    assert numbers(one, 105.9) == [1]
    assert numbers(one, 106.0) == []


@given(claims=st.lists(st.tuples(st.floats(0, 70), st.floats(0, 3)), max_size=40))
def test_no_claim_of_age_gives_more_than_one_lifetime(claims: list[tuple[float, float]]) -> None:
    one = make()
    now_s, first_s = 0.0, None
    for age_s, wait_s in [(0.0, 1.0), *claims]:
        one.receive(STRANGER, told(announced(1), age_s=age_s), now_s)
        live = numbers(one, now_s)
        first_s = now_s if live and first_s is None else first_s
        assert not live or (first_s is not None and now_s - first_s < 60.0)
        now_s += wait_s * 10


def test_too_old_on_arrival_is_neither_held_nor_held_against_it() -> None:
    one = make()
    one.receive(STRANGER, told(announced(1), age_s=60.0), 0.0)
    assert numbers(one, 0.0) == []
    one.receive(STRANGER, told(announced(1), age_s=59.0), 0.0)
    assert numbers(one, 0.0) == [1]


def test_a_tombstone_keeps_the_old_out_and_lets_the_new_in() -> None:
    one = make()
    one.receive(STRANGER, told(announced(1, 5)), 0.0)
    assert numbers(one, 60.0) == []
    version = one.version
    for sequence in (4, 5):
        one.receive(STRANGER, told(announced(1, sequence)), 61.0)
    assert (numbers(one, 61.0), one.version) == ([], version)
    one.receive(STRANGER, told(announced(1, 6)), 62.0)
    assert numbers(one, 62.0) == [1]


def test_a_goodbye_removes_at_once_and_spreads() -> None:
    one, other = make(), make(2)
    for directory in (one, other):
        directory.receive(STRANGER, told(announced(1)), 0.0)
    version = one.version
    one.receive(STRANGER, told(announced(1, 2, spans=())), 1.0)
    assert (numbers(one, 1.0), one.version) == ([], version + 1)
    one.receive(STRANGER, told(announced(1)), 1.0)
    assert numbers(one, 1.0) == []
    [(_, answer), *_] = one.receive(other.peer, Digest(((key(1).peer, 1),), reply=True), 2.0)
    other.receive(one.peer, answer, 2.0)
    assert numbers(other, 2.0) == []


def test_a_peer_that_only_relays_is_live() -> None:
    one = make()
    one.receive(STRANGER, told(announced(1, spans=(), relay=True)), 0.0)
    assert numbers(one, 0.0) == [1]
    assert one.addresses(key(1).peer) == (f"/ip4/10.0.0.1/tcp/1/p2p/{key(1).peer}",)
    assert one.addresses(STRANGER) == ()


def test_the_version_grows_with_every_change_and_with_nothing_else() -> None:
    one = make()
    seen = [one.version]
    for message, now_s in (
        (told(announced(1)), 0.0),
        (told(announced(1)), 1.0),
        (told(announced(1, 2)), 2.0),
        (Digest((), reply=True), 3.0),
        (told(), 62.0),
    ):
        one.receive(STRANGER, message, now_s)
        seen.append(one.version)
    assert seen == [0, 1, 1, 2, 2, 3]


def test_a_restarted_peer_outbids_its_past() -> None:
    one = make(1)
    one.receive(STRANGER, told(announced(1, 41)), 0.0)
    assert (numbers(one, 0.0), one.next_sequence) == ([], 42)
    with pytest.raises(LocalError):
        one.publish(announced(1, 41), 0.0)
    one.publish(announced(1, 42), 0.0)
    assert numbers(one, 0.0) == [1]


GOOD = announced(1)
FORGED = replace(GOOD, signature=bytes(64))
WRONG = {
    "signature": FORGED,
    "signature of another": replace(GOOD, signature=announced(1, 2).signature),
    "signer": replace(GOOD, peer=key(2).peer),
    "domain": replace(GOOD, signature=key(1).sign("receipt", GOOD.body)),
    "lifetime": announced(1, lifetime_s=60.5),
    "order": announced(1, spans=(Span(4, 6), Span(0, 2))),
    "overlap": announced(1, spans=(Span(0, 4), Span(3, 6))),
    "depth": announced(1, spans=(Span(0, 1025),)),
    "size": Signed(key(1).peer, bytes(20_000), bytes(64)),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_announcements_are_the_senders_fault(what: str) -> None:
    one = make()
    with pytest.raises(RemoteError):
        one.receive(STRANGER, told(announced(3), WRONG[what]), 0.0)
    assert numbers(one, 0.0) == [3]


def test_only_our_own_and_right_announcements_are_published() -> None:
    one = make(1)
    for signed in (announced(2), announced(1, lifetime_s=61.0), FORGED):
        with pytest.raises(LocalError):
            one.publish(signed, 0.0)
    with pytest.raises(LocalError):
        one.receive(STRANGER, Close(SessionId(bytes(16))), 0.0)


def test_a_signature_is_checked_only_for_news() -> None:
    one = make()
    one.receive(STRANGER, told(announced(1)), 0.0)
    one.receive(STRANGER, told(FORGED), 0.0)
    assert numbers(one, 0.0) == [1]


def test_a_full_directory_refuses_newcomers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PEERS", 2)
    one = make()
    one.receive(STRANGER, told(announced(1), announced(2), announced(3), announced(1, 2)), 0.0)
    assert [live.sequence for live in one.live(0.0)] == [2, 1]
    assert numbers(one, 0.0) == [1, 2]
    one.receive(STRANGER, told(announced(3)), 61.0)
    assert numbers(one, 61.0) == [3]


def test_tombstones_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TOMBSTONES", 1)
    one = make()
    one.receive(STRANGER, told(announced(1)), 0.0)
    one.receive(STRANGER, told(announced(2)), 1.0)
    one.receive(STRANGER, told(announced(2)), 62.0)
    assert numbers(one, 62.0) == []
    one.receive(STRANGER, told(announced(1)), 62.0)  # the oldest was forgotten
    assert numbers(one, 62.0) == [1]


def item_counts(answers: list[tuple[PeerId, Message]]) -> list[int]:
    return [len(message.items) for _, message in answers if isinstance(message, Announcements)]


def test_answers_are_cut_to_what_one_message_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = make()
    for number in range(1, 71):
        one.receive(STRANGER, told(announced(number)), 0.0)
    answers = one.receive(STRANGER, Digest((), reply=True), 0.0)
    assert item_counts(answers) == [MAX_ANNOUNCEMENTS, MAX_ANNOUNCEMENTS, 6]
    monkeypatch.setattr(limits, "MAX_SENT", 40)
    assert item_counts(one.receive(STRANGER, Digest((), reply=True), 0.0)) == [32, 8]


LIMITS = st.lists(st.integers(-1, 1030), min_size=2, max_size=2)
BODIES = st.binary(max_size=300) | st.tuples(
    st.just(key(1).peer) | st.text(max_size=70), st.integers(-2, 1 << 54), st.floats(),
    st.just(MODEL) | st.text(max_size=3), st.lists(LIMITS, max_size=3), st.integers(-1, 2000),
    st.floats(), st.floats(), st.integers(0, 9), st.integers(0, 9), st.text(max_size=5),
    st.lists(st.text(max_size=5), max_size=2),
).map(msgspec.msgpack.encode)  # fmt: skip


@given(
    body=BODIES,
    signer=st.just(key(1).peer) | st.text(max_size=70).map(PeerId),
    signature=st.binary(max_size=64) | st.none(),
    age_s=st.floats(0, 3600),
    entries=st.lists(st.tuples(st.text(max_size=64).map(PeerId), st.integers(0, 1 << 53))),
)
def test_any_bytes_are_taken_or_are_a_remote_error(
    body: bytes,
    signer: PeerId,
    signature: bytes | None,
    age_s: float,
    entries: list[tuple[PeerId, int]],
) -> None:
    if signature is None:
        signature = key(1).sign("announcement", body)
    one = make()
    one.receive(STRANGER, Digest(tuple(entries), reply=True), 0.0)
    try:
        one.receive(STRANGER, told(Signed(signer, body, signature), age_s=age_s), 0.0)
    except RemoteError:
        assert one.live(0.0) == ()
    assert all(live.peer == key(1).peer for live in one.live(0.0))
    assert one.live(61.0) == ()
