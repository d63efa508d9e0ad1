"""Every message comes back as it was, and every bound of every field holds."""

from __future__ import annotations

import math
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.errors import RemoteError
from gennode.wire import messages as words
from gennode.wire.announcement import MAX_HOSTED_MODELS, Announcement, Hosting
from gennode.wire.beats import LINK_BYTES, MAX_BEATS
from gennode.wire.fields import MAX_TEXT, as_text
from gennode.wire.frames import MAX_HEADER_BYTES, decode_header
from gennode.wire.ids import ModelId, SessionId, Span, peer_id_of
from gennode.wire.signing import MAX_SIGNED_BYTES, Signed
from tests.wire.strategies import BY_KIND, announcements, messages

PEER = peer_id_of(bytes(32))
SESSION, MODEL = bytes(16), "a" * 64
LINK = bytes(LINK_BYTES)
SIGNED = (PEER, b"body", bytes(64))

VALID: dict[str, list[Any]] = {  # each message as it lies on the wire
    "Digest": [1 << 62, b"\1", b"ab", True],
    "Announcements": [[[SIGNED, 1.0, 1, LINK]]],
    "Beats": [LINK + b"\0"],
    "ReleaseDigest": [[[PEER, "name", 1, bytes(8)]], True],
    "Releases": [[SIGNED]],
    "Open": [SESSION, 0, MODEL, [[PEER, [0, 4]], [PEER, [4, 8]]], 1, "raw", 64, 9, -1, 5, PEER],
    "Accept": [SESSION, 0, 0, 9],
    "Refuse": [SESSION, 0, 0, "full"],
    "Step": [SESSION, 0, 0, 0, 0, 1, 1, "raw", False],
    "Failed": [SESSION, 0, 0, 0, "no memory"],
    "Credit": [SESSION, 0, 4, 1 << 22],
    "Acquaint": [SESSION, 4, PEER],
    "Feed": [SESSION, 4, PEER, 1, 0, True],
    "CachePart": [SESSION, 1, 4, "fp32", 0, 9],
    "Fed": [SESSION, 1, 1, 9],
    "Leaving": [SESSION, 0, 1, 9, 1 << 30],
    "Ping": [SESSION, 0],
    "Pong": [SESSION, 0, [[0, -1, True, 0.1]]],
    "Probe": [1],
    "Echo": [1, [0.1, -0.1, 0.01, 0.5]],
    "Missing": [PEER],
    "PlanDigest": [MODEL, 7, PEER, bytes(32)],
    "PlanWanted": [MODEL, bytes(32)],
    "PlanSent": [MODEL, bytes(32)],
    "Close": [SESSION],
}
HUGE = 1 << 60

OUT_OF_BOUNDS: list[tuple[str, int, Any]] = [
    ("Digest", 0, -1),
    ("Digest", 0, 1 << 63),
    ("Digest", 1, b""),
    ("Digest", 1, bytes(words.MAX_DIGEST_BUCKETS + 1)),
    ("Digest", 2, bytes(2 * words.MAX_DIGEST_PEERS + 1)),
    ("Beats", 0, bytes(words.BEAT_BYTES * words.MAX_BEATS_SENT + 1)),
    ("Announcements", 0, [[SIGNED, 1.0, -1]]),
    ("Announcements", 0, [[SIGNED, 1.0, MAX_BEATS + 1]]),
    ("Announcements", 0, [[SIGNED, 1.0, 1, LINK + b"x"]]),
    ("Announcements", 0, [[SIGNED, 1.0]] * (words.MAX_ANNOUNCEMENTS + 1)),
    ("Announcements", 0, [[SIGNED, math.nan]]),
    ("Announcements", 0, [[SIGNED, -1.0]]),
    ("Announcements", 0, [[SIGNED, 3601.0]]),
    ("Announcements", 0, [[("p" * 65, b"", bytes(64)), 1.0]]),
    ("Announcements", 0, [[(PEER, bytes(MAX_SIGNED_BYTES + 1), bytes(64)), 1.0]]),
    ("Announcements", 0, [[(PEER, b"", bytes(63)), 1.0]]),
    ("Announcements", 0, [[(PEER, b"", bytes(65)), 1.0]]),
    ("ReleaseDigest", 0, [[PEER, "name", 1, bytes(8)]] * (words.MAX_RELEASES + 1)),
    ("ReleaseDigest", 0, [[PEER, "Name", 1, bytes(8)]]),
    ("ReleaseDigest", 0, [[PEER, "x" * 65, 1, bytes(8)]]),
    ("ReleaseDigest", 0, [[PEER, "name", 0, bytes(8)]]),
    ("ReleaseDigest", 0, [[PEER, "name", HUGE, bytes(8)]]),
    ("ReleaseDigest", 0, [[PEER, "name", 1, bytes(9)]]),
    ("Releases", 0, [SIGNED] * (words.MAX_ANNOUNCEMENTS + 1)),
    ("Open", 0, bytes(15)),
    ("Open", 0, bytes(17)),
    ("Open", 2, "a" * 63),
    ("Open", 2, "A" * 64),
    ("Open", 2, "a" * 64 + "\n"),
    ("Open", 3, []),
    ("Open", 3, [[PEER, [0, 1]]] * (words.MAX_ROUTE_HOPS + 1)),
    ("Open", 3, [[PEER, [4, 4]], [PEER, [4, 8]]]),
    ("Open", 3, [[PEER, [5, 3]], [PEER, [4, 8]]]),
    ("Open", 3, [[PEER, [0, 1025]], [PEER, [4, 8]]]),
    ("Open", 4, 2),
    ("Open", 4, -1),
    ("Open", 5, "pickle"),
    ("Open", 6, 0),
    ("Open", 6, words.MAX_POSITIONS + 1),
    ("Open", 7, -1),
    ("Open", 7, words.MAX_POSITIONS + 1),
    ("Open", 8, -2),
    ("Open", 8, words.MAX_ROUTE_HOPS),
    ("Open", 9, 10),
    ("Open", 9, -1),
    ("Open", 10, "p" * 65),
    ("Accept", 1, -1),
    ("Accept", 3, -1),
    ("Accept", 3, words.MAX_POSITIONS + 1),
    ("Refuse", 3, "x" * 257),
    ("Step", 3, 1025),
    ("Step", 4, words.MAX_POSITIONS),
    ("Step", 5, words.MAX_STEP_ROWS + 1),
    ("Step", 6, -1),
    ("Step", 8, 1),
    ("Failed", 4, "x" * 257),
    ("Credit", 1, -1),
    ("Credit", 2, 1025),
    ("Credit", 3, -1),
    ("Credit", 3, HUGE),
    ("Acquaint", 0, bytes(15)),
    ("Acquaint", 1, -1),
    ("Acquaint", 2, "p" * 65),
    ("Feed", 1, 1025),
    ("Feed", 2, "p" * 65),
    ("Feed", 3, HUGE),
    ("Feed", 4, words.MAX_POSITIONS + 1),
    ("Feed", 5, 1),
    ("CachePart", 2, 1025),
    ("CachePart", 3, "x" * 257),
    ("CachePart", 3, "two\nlines"),
    ("CachePart", 4, -1),
    ("CachePart", 4, 9),
    ("CachePart", 5, 0),
    ("CachePart", 5, words.MAX_POSITIONS + 1),
    ("Fed", 3, -1),
    ("Fed", 3, words.MAX_POSITIONS + 1),
    ("Leaving", 2, -1),
    ("Leaving", 3, words.MAX_POSITIONS + 1),
    ("Leaving", 4, -1),
    ("Leaving", 4, HUGE),
    ("Ping", 1, HUGE),
    ("Pong", 2, [[0, -2, True]]),
    ("Pong", 2, [[0, HUGE, True]]),
    ("Pong", 2, [[0, 0, True, -0.1]]),
    ("Pong", 2, [[0, 0, True, math.nan]]),
    ("Pong", 2, [[0, 0, True]] * (words.MAX_ROUTE_HOPS + 1)),
    ("PlanDigest", 0, "a" * 65),
    ("PlanDigest", 1, -1),
    ("PlanDigest", 1, HUGE),
    ("PlanDigest", 2, "p" * 65),
    ("PlanDigest", 3, bytes(31)),
    ("PlanWanted", 1, bytes(33)),
    ("PlanSent", 1, bytes(31)),
    ("Close", 0, None),
]


def packed(kind: str, fields: list[Any]) -> bytes:
    return msgspec.msgpack.encode([kind, *fields])


def test_the_strategies_know_every_message() -> None:
    kinds = get_args(words.Message)
    assert set(kinds) == set(BY_KIND)
    assert {kind.__name__ for kind in kinds} == set(VALID)


@given(messages)
def test_every_message_comes_back(message: words.Message) -> None:
    assert decode_header(msgspec.msgpack.encode(message)) == message


@given(announcements)
def test_every_announcement_comes_back(announcement: Announcement) -> None:
    data = msgspec.msgpack.encode(announcement)
    assert msgspec.msgpack.decode(data, type=Announcement) == announcement


@pytest.mark.parametrize(("kind", "fields"), VALID.items())
def test_the_form_on_the_wire_is_fixed(kind: str, fields: list[Any]) -> None:
    data = packed(kind, fields)
    message = decode_header(data)
    assert type(message).__name__ == kind
    assert msgspec.msgpack.encode(message) == data


@pytest.mark.parametrize(("kind", "field", "value"), OUT_OF_BOUNDS)
def test_a_field_out_of_bounds_is_refused(kind: str, field: int, value: Any) -> None:
    fields = list(VALID[kind])
    fields[field] = value
    where = rf"at `\$\[{field + 1}\]|not on the path|ends before it begins|holds no positions"
    with pytest.raises(RemoteError, match=where):
        decode_header(packed(kind, fields))


@pytest.mark.parametrize("kind", get_args(words.Message))
def test_a_message_without_a_field_that_it_needs_is_refused(kind: type[words.Base]) -> None:
    needed = sum(field.required for field in msgspec.structs.fields(kind))
    fields = VALID[kind.__name__]
    decode_header(packed(kind.__name__, fields[:needed]))
    with pytest.raises(RemoteError):
        decode_header(packed(kind.__name__, fields[: needed - 1]))


def test_an_unknown_message_is_refused() -> None:
    with pytest.raises(RemoteError):
        decode_header(packed("Obey", []))


def test_text_that_is_not_unicode_is_refused() -> None:
    broken = packed("Refuse", [SESSION, 0, 0, "full"]).replace(b"full", b"\xff\xfe\xfd\xfc")
    with pytest.raises(RemoteError):
        decode_header(broken)


def hosting(*spans: Span, model: str = MODEL, text: str = "fp32-cpu") -> Hosting:
    return Hosting(ModelId(model), spans, 2, 0.1, 0.1, 1, text)


@pytest.mark.parametrize(
    ("spans", "why"),
    [
        ((Span(5, 3),), "without layers"),
        ((Span(4, 4),), "without layers"),
        ((Span(4, 6), Span(0, 2)), "out of order"),
        ((Span(0, 4), Span(3, 6)), "out of order"),
    ],
)
def test_spans_that_a_peer_hosts_rise_and_are_disjoint(spans: tuple[Span, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        hosting(*spans)


def test_what_is_not_here_is_not_loaded_on_request() -> None:
    assert hosting(Span(0, 2)).cold_layers == hosting(Span(0, 2)).spare_layers > 0
    fetched = msgspec.structs.replace(hosting(Span(0, 2)), loads_on_request=False)
    assert fetched.cold_layers == 0


def announcement(*hosted: Hosting, relay: bool = False) -> Announcement:
    return Announcement(PEER, 1, 0, 60.0, hosted, 0, relay, "direct", ())


def test_an_announcement_tells_of_each_model_once() -> None:
    both = hosting(Span(0, 2)), hosting(Span(0, 2), model="b" * 64)
    assert announcement(*both).hosting_of(ModelId("b" * 64)) == both[1]
    assert announcement(both[0]).hosting_of(ModelId("b" * 64)) is None
    with pytest.raises(ValueError, match="twice"):
        announcement(both[0], both[0])


def test_a_goodbye_offers_nothing() -> None:
    assert announcement().is_goodbye
    assert not announcement(relay=True).is_goodbye
    assert not announcement(hosting()).is_goodbye


def test_the_largest_digest_and_the_most_beats_fit_in_a_header() -> None:
    counts, entries = bytes(words.MAX_DIGEST_BUCKETS), bytes(2 * words.MAX_DIGEST_PEERS)
    digest = words.Digest((1 << 63) - 1, counts, entries, asks=True)
    beats = words.Beats(bytes(words.BEAT_BYTES * words.MAX_BEATS_SENT))
    for message in (digest, beats):
        assert len(msgspec.msgpack.encode(message)) <= MAX_HEADER_BYTES


def test_the_most_announcements_fit_in_a_header() -> None:
    """At the size that `MAX_SIGNED_BYTES` allows, which holds the largest there can be."""
    item = words.AgedAnnouncement(
        Signed(PEER, bytes(MAX_SIGNED_BYTES), bytes(64)), 1.0, MAX_BEATS, LINK
    )
    message = words.Announcements((item,) * words.MAX_ANNOUNCEMENTS)
    assert len(msgspec.msgpack.encode(message)) <= MAX_HEADER_BYTES
    spans = [Span(900 + start, 901 + start) for start in range(0, 128, 2)][:64]
    models = [
        hosting(*spans, model=f"{number:064x}", text="x" * MAX_TEXT)
        for number in range(MAX_HOSTED_MODELS)
    ]
    largest = msgspec.structs.replace(announcement(*models), addresses=("x" * 256,) * 16)
    assert len(msgspec.msgpack.encode(largest)) <= MAX_SIGNED_BYTES


@given(st.text(max_size=600))
def test_any_text_becomes_one_that_a_message_may_carry(text: str) -> None:
    failed = words.Failed(SessionId(SESSION), 0, 0, 0, as_text(text))
    assert decode_header(msgspec.msgpack.encode(failed)) == failed


@pytest.mark.parametrize("text", ["\x1b]0;pwn\x07", "two\nlines", "\x7f", "é"])
def test_text_that_could_steer_a_terminal_is_refused(text: str) -> None:
    failed = words.Failed(SessionId(SESSION), 0, 0, 0, text)
    with pytest.raises(RemoteError):
        decode_header(msgspec.msgpack.encode(failed))
