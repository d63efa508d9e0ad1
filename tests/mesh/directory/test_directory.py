"""The directory: news reaches all, the dead vanish, lies buy little, floods push nobody out."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gennode.errors import LocalError, RemoteError
from gennode.mesh.directory import directory as limits
from gennode.mesh.directory.announced import DOMAIN
from gennode.mesh.directory.directory import BEAT_S, MIN_ANSWER_S, Directory
from gennode.mesh.directory.neighbours import MAX_NEIGHBOURS
from gennode.mesh.directory.netgroup import LOCAL
from gennode.wire.beats import LINK_BYTES, MAX_BEATS
from gennode.wire.ids import PeerId, SessionId, Span
from gennode.wire.messages import (
    BEAT_BYTES,
    AgedAnnouncement,
    Announcements,
    Beats,
    Close,
    Digest,
    Message,
)
from gennode.wire.signing import Signed
from tests.mesh.announcing import (
    STRANGER,
    announced,
    beats,
    key,
    links,
    make,
    numbers,
    publish,
    told,
)

Answers = list[tuple[PeerId, Message]]


def digest(*known: Signed) -> Digest:
    """What somebody sends who knows just these."""
    one = make(99)
    one.receive(STRANGER, told(*known), 0.0)
    [(_, message)] = one.tick(0.0, {STRANGER: LOCAL})
    assert isinstance(message, Digest)
    return message


def exchange(left: Directory, right: Directory, message: Message, now_s: float) -> list[Message]:
    """Let `left` send a message, and both answer until nobody does; all that was sent."""
    sent, waiting = [], [(left, right, message)]
    while waiting:
        sender, receiver, message = waiting.pop(0)
        sent.append(message)
        answers = receiver.receive(sender.peer, message, now_s)
        waiting += [(receiver, sender, answer) for _, answer in answers]
    return sent


def offer(one: Directory, now_s: float, to: PeerId) -> Digest:
    """The digest of its next tick."""
    messages = [message for _, message in one.tick(now_s, {to: LOCAL})]
    [found] = [message for message in messages if isinstance(message, Digest)]
    return found


def test_one_exchange_brings_both_sides_up_to_date() -> None:
    left, right = make(0), make(1)
    publish(left, 0, 0.0)
    publish(right, 1, 0.0)
    right.receive(STRANGER, told(announced(2)), 0.0)
    sent = exchange(left, right, offer(left, 0.0, right.peer), 0.0)
    assert [type(message) for message in sent] == [Digest, Announcements, Digest, Announcements]
    assert numbers(left, 1.0) == numbers(right, 1.0) == [0, 1, 2]
    again = exchange(left, right, offer(left, 1.0, right.peer), 1.0)
    assert [type(message) for message in again] == [Digest]


def test_both_sides_take_beats_that_they_missed_and_nothing_else() -> None:
    left, right = make(0), make(1)
    for one in (left, right):
        one.receive(STRANGER, told(announced(2), announced(3), announced(4)), 0.0)
    left.receive(STRANGER, beats((2, 1), (3, 2)), 5.0)
    right.receive(STRANGER, beats((4, 3), age=4), 5.0)
    sent = exchange(left, right, offer(left, 6.0, right.peer), 6.0)
    assert [type(message) for message in sent] == [Digest, Beats, Digest, Beats]
    got = [message.links for message in sent if isinstance(message, Beats)]
    assert [len(packed) // BEAT_BYTES for packed in got] == [1, 2]
    assert got[0] == links(4)[3] + bytes([8])  # made 1 s before it came, and 1 s ago by now
    assert numbers(right, 63.9) == numbers(left, 63.9) == [2, 3, 4]
    assert numbers(right, 64.0) == numbers(left, 64.0) == [2, 3]
    assert numbers(right, 65.0) == numbers(left, 65.0) == []


def test_what_is_our_own_goes_to_all_neighbours_at_once() -> None:
    one = make()
    others = {key(number).peer: LOCAL for number in range(1, 6)}
    assert one.tick(0.0, {}) == []
    publish(one, 0, 0.0)
    first = one.tick(0.0, others)
    assert {to for to, message in first if isinstance(message, Announcements)} == set(others)
    assert sum(isinstance(message, Digest) for _, message in first) == 1
    beating = one.tick(BEAT_S, others)
    assert {to for to, message in beating if message == beats((0, 1))} == set(others)
    assert [message for _, message in one.tick(BEAT_S, others)] == []
    assert numbers(one, BEAT_S + 59) == [0]


def test_a_tick_exchanges_once_per_interval() -> None:
    one = make()
    assert len(one.tick(0.0, {STRANGER: LOCAL})) == 1
    assert one.tick(0.9, {STRANGER: LOCAL}) == []
    assert len(one.tick(1.0, {STRANGER: LOCAL})) == 1
    assert make().tick(9.9, {make().peer: LOCAL}) == []  # nobody but us


def test_a_chain_that_is_used_up_asks_for_another_announcement() -> None:
    one = make()
    publish(one, 0, 0.0)
    for beat in range(1, MAX_BEATS + 2):
        assert one.is_spent == (beat > MAX_BEATS)
        one.tick(beat * BEAT_S, {STRANGER: LOCAL})
        one.receive(STRANGER, Beats(b""), beat * BEAT_S)
    publish(one, 0, 9000.0, sequence=2)
    assert not one.is_spent


def test_a_whole_announcement_travels_with_its_beat_and_age() -> None:
    one = make()
    one.receive(STRANGER, told(announced(1, lifetime_s=10.0)), 96.0)
    one.receive(STRANGER, beats((1, 1), age=16), 104.0)
    [(_, answer), *_] = one.receive(STRANGER, digest(), 103.0 + 1.0)
    assert isinstance(answer, Announcements)
    assert answer.items == (AgedAnnouncement(announced(1, lifetime_s=10.0), 4.0, 1, links(1)[1]),)
    other = make(2)
    other.receive(one.peer, answer, 50.0)
    assert numbers(other, 55.9) == [1]
    assert numbers(other, 56.0) == []


def test_what_fades_is_not_passed_on() -> None:
    one = make()
    one.receive(STRANGER, told(announced(1)), 0.0)
    assert [type(message) for _, message in one.receive(STRANGER, digest(), 56.9)] == [
        Announcements
    ]
    assert one.receive(STRANGER, digest(), 57.5) == []
    assert numbers(one, 59.0) == [1]


@given(claims=st.lists(st.tuples(st.integers(0, 250), st.floats(0, 3)), max_size=40))
def test_no_claim_of_age_gives_one_beat_more_than_one_lifetime(
    claims: list[tuple[int, float]],
) -> None:
    one = make()
    now_s, first_s = 0.0, None
    for age, wait_s in [(0, 1.0), *claims]:
        one.receive(STRANGER, told(announced(1), age_s=age / 4), now_s)
        one.receive(STRANGER, told(announced(1), age_s=age / 4, beat=1, link=links(1)[1]), now_s)
        one.receive(STRANGER, beats((1, 1), age=age), now_s)
        live = numbers(one, now_s)
        first_s = now_s if live and first_s is None else first_s
        assert not live or (first_s is not None and now_s - first_s < 60.0)
        now_s += wait_s * 10


def test_a_beat_never_shortens_a_life() -> None:
    one = make()
    one.receive(STRANGER, told(announced(1)), 10.0)
    one.receive(STRANGER, beats((1, 1), age=200), 10.0)  # 50 s old, it says
    assert numbers(one, 69.9) == [1]


def test_too_old_on_arrival_is_neither_held_nor_held_against_it() -> None:
    one = make()
    one.receive(STRANGER, told(announced(1), age_s=60.0), 0.0)
    assert numbers(one, 0.0) == []
    one.receive(STRANGER, told(announced(1), age_s=59.0), 0.0)
    assert numbers(one, 0.0) == [1]


def test_a_tombstone_keeps_the_old_out_and_lets_the_new_in() -> None:
    one = make()
    one.receive(STRANGER, told(announced(1, 5), beat=3, link=links(1)[3]), 0.0)
    assert numbers(one, 60.0) == []
    version = one.version
    for sequence, beat in ((4, 9), (5, 0), (5, 3)):
        one.receive(STRANGER, told(announced(1, sequence), beat=beat, link=links(1)[beat]), 61.0)
    one.receive(STRANGER, beats((1, 3), (1, 4)), 61.0)
    assert (numbers(one, 61.0), one.version) == ([], version)
    one.receive(STRANGER, told(announced(1, 5), beat=4, link=links(1)[4]), 62.0)
    assert numbers(one, 62.0) == [1]
    one.receive(STRANGER, told(announced(1, 6)), 62.0)
    assert [live.sequence for live in one.live(62.0)] == [6]


def test_a_goodbye_removes_at_once_and_spreads() -> None:
    one, other = make(), make(2)
    for directory in (one, other):
        directory.receive(STRANGER, told(announced(1)), 0.0)
    version = one.version
    one.receive(STRANGER, told(announced(1, 2, spans=())), 1.0)
    assert (numbers(one, 1.0), one.version) == ([], version + 1)
    one.receive(STRANGER, told(announced(1)), 1.0)
    one.receive(STRANGER, beats((1, 1)), 1.0)
    assert numbers(one, 1.0) == []
    exchange(other, one, offer(other, 2.0, one.peer), 2.0)
    assert numbers(other, 2.0) == []


def test_a_peer_that_only_relays_is_live() -> None:
    one = make()
    one.receive(STRANGER, told(announced(1, spans=(), relay=True)), 0.0)
    assert numbers(one, 0.0) == [1]
    assert one.addresses(key(1).peer) == (f"/ip4/10.0.0.1/tcp/1/p2p/{key(1).peer}",)
    assert one.addresses(STRANGER) == ()


def test_the_version_grows_with_every_change_and_not_with_beats() -> None:
    one = make()
    seen = [one.version]
    for message, now_s in (
        (told(announced(1)), 0.0),
        (told(announced(1)), 1.0),
        (told(announced(1, 2)), 2.0),
        (digest(), 3.0),
        (beats((1, 1)), 4.0),
        (told(), 64.0),
    ):
        one.receive(STRANGER, message, now_s)
        seen.append(one.version)
    assert seen == [0, 1, 1, 2, 2, 2, 3]


def test_news_is_told_once_with_who_told_it() -> None:
    one = make()
    one.receive(STRANGER, told(announced(1, network="8.8")), 0.0)
    one.receive(key(1).peer, told(announced(2), announced(3)), 0.0)
    one.receive(STRANGER, told(announced(3, 2)), 0.0)
    told_by = {seen.peer: teller for seen, teller in one.take_news()}
    assert told_by == {key(1).peer: "", key(2).peer: "8.8.0.0/16", key(3).peer: ""}
    assert one.take_news() == []


def test_a_restarted_peer_outbids_its_past() -> None:
    one = make(1)
    one.receive(STRANGER, told(announced(1, 41)), 0.0)
    assert (numbers(one, 0.0), one.next_sequence, one.is_spent) == ([], 42, True)
    with pytest.raises(LocalError):
        publish(one, 1, 0.0, sequence=41)
    publish(one, 1, 0.0, sequence=42)
    assert (numbers(one, 0.0), one.is_spent) == ([1], False)


def test_what_another_announces_with_our_key_is_noticed_when_it_is_signed() -> None:
    one = make(1)
    publish(one, 1, 0.0)
    twin = announced(1, 7, instance=5, rival=3)
    with pytest.raises(RemoteError):
        one.receive(STRANGER, told(replace(twin, signature=bytes(64))), 0.0)
    assert not one.is_spent
    one.receive(STRANGER, told(twin), 0.0)
    assert one.twin is not None
    assert (one.twin.instance, one.twin.rival, one.is_spent) == (5, 3, True)


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


@pytest.mark.parametrize("link", [b"", bytes(LINK_BYTES), links(1)[2], links(2)[1]])
def test_wrong_beats_are_the_senders_fault_or_nobodys(link: bytes) -> None:
    one = make()
    with pytest.raises(RemoteError, match="beat"):
        one.receive(STRANGER, told(announced(1), beat=1, link=link), 0.0)
    one.receive(STRANGER, told(announced(1)), 0.0)
    with pytest.raises(RemoteError, match="bytes"):
        one.receive(STRANGER, Beats(link + b"12"), 0.0)
    one.receive(STRANGER, Beats((link or bytes(LINK_BYTES)).ljust(LINK_BYTES) + b"\0"), 30.0)
    assert numbers(one, 61.0) == ([1] if link == links(1)[2] else [])  # two beats on is right


def test_only_our_own_and_right_announcements_are_published() -> None:
    one = make(1)
    for signed in (announced(2), announced(1, lifetime_s=61.0), FORGED):
        with pytest.raises(LocalError):
            one.publish(signed, (), 0.0)
    with pytest.raises(LocalError, match="chain"):
        one.publish(GOOD, links(2), 0.0)
    with pytest.raises(LocalError):
        one.receive(STRANGER, Close(SessionId(bytes(16))), 0.0)


def test_a_signature_is_checked_only_for_news() -> None:
    one = make()
    one.receive(STRANGER, told(GOOD), 0.0)
    one.receive(STRANGER, told(FORGED), 0.0)
    one.receive(STRANGER, told(announced(1, lifetime_s=30.0), beat=1, link=links(1)[1]), 0.0)
    assert [live.lifetime_s for live in one.live(0.0)] == [60.0]  # the first of a number counts


def test_tombstones_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TOMBSTONES", 1)
    one = make()
    one.receive(STRANGER, told(announced(1)), 0.0)
    one.receive(STRANGER, told(announced(2)), 1.0)
    assert numbers(one, 60.5) == [2]
    one.receive(STRANGER, told(announced(2)), 62.0)
    assert numbers(one, 62.0) == []
    one.receive(STRANGER, told(announced(1)), 62.0)  # the oldest was forgotten
    assert numbers(one, 62.0) == [1]


def item_counts(answers: Answers) -> list[int]:
    return [len(message.items) for _, message in answers if isinstance(message, Announcements)]


def test_answers_are_cut_to_what_one_message_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = make()
    for number in range(1, 71):
        one.receive(STRANGER, told(announced(number)), 0.0)
    assert item_counts(one.receive(STRANGER, digest(), 0.0)) == [32, 32, 6]
    assert one.receive(STRANGER, digest(), MIN_ANSWER_S / 2) == []  # too soon
    monkeypatch.setattr(limits, "MAX_SENT", 40)
    assert item_counts(one.receive(STRANGER, digest(), 1.0)) == [32, 8]


def test_who_calls_on_us_does_not_become_a_neighbour() -> None:
    one = make()
    for number in range(1, 60):
        one.receive(key(number).peer, digest(), 0.0)
    one.tick(0.0, {STRANGER: LOCAL})
    assert one.neighbours.chosen == (STRANGER,)
    one.receive(STRANGER, told(*(announced(number) for number in range(1, 30))), 2.0)
    one.tick(2.0, {})
    assert len(one.neighbours.chosen) == MAX_NEIGHBOURS


BODIES = st.binary(max_size=300) | st.tuples(
    st.just(key(1).peer) | st.text(max_size=70), st.integers(-2, 1 << 54), st.integers(-2, 9),
    st.floats(), st.lists(st.nothing()), st.integers(0, 9), st.booleans(),
    st.just("direct") | st.text(max_size=5), st.lists(st.text(max_size=5), max_size=2),
    st.just(links(1)[0]) | st.binary(max_size=20),
).map(msgspec.msgpack.encode)  # fmt: skip


@given(
    body=BODIES,
    signer=st.just(key(1).peer) | st.text(max_size=70).map(PeerId),
    signature=st.binary(max_size=64) | st.none(),
    age_s=st.floats(0, 3600),
    asked=st.tuples(
        st.integers(0, (1 << 63) - 1), st.binary(min_size=1), st.binary(), st.booleans()
    ),
    packed=st.binary(max_size=60),
)
def test_any_bytes_are_taken_or_are_a_remote_error(
    body: bytes,
    signer: PeerId,
    signature: bytes | None,
    age_s: float,
    asked: tuple[int, bytes, bytes, bool],
    packed: bytes,
) -> None:
    if signature is None:
        signature = key(1).sign(DOMAIN, body)
    one = make()
    one.receive(STRANGER, told(announced(2)), 0.0)
    claims = told(Signed(signer, body, signature), age_s=age_s)
    for message in (Digest(*asked), Beats(packed), claims):
        try:
            one.receive(STRANGER, message, 0.0)
        except RemoteError:
            continue
    assert {live.peer for live in one.live(0.0)} <= {key(1).peer, key(2).peer}
    assert one.live(61.0) == ()
