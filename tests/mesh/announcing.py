"""Announcements and beats of made-up peers, each known by its number, and what a directory sees."""

from __future__ import annotations

import functools
from random import Random

import msgspec

from gennode.mesh.directory.announced import DOMAIN
from gennode.mesh.directory.directory import Directory
from gennode.wire.beats import chain
from gennode.wire.ids import ModelId, Span
from gennode.wire.messages import AgedAnnouncement, Announcements, Beats
from gennode.wire.signing import Key, Signed

MODEL = ModelId("a" * 64)
STRANGER = Key(bytes(31) + b"\xff").peer


@functools.cache
def key(number: int) -> Key:
    return Key(number.to_bytes(32, "big"))


@functools.cache
def links(number: int) -> tuple[bytes, ...]:
    return chain(number.to_bytes(16, "big"))


@functools.cache
def announced(
    number: int,
    sequence: int = 1,
    *,
    lifetime_s: float = 60.0,
    spans: tuple[Span, ...] = (Span(0, 4),),
    relay: bool = False,
    network: str = "10.0",
    instance: int = 0,
    rival: int = 0,
) -> Signed:
    peer = key(number).peer
    hosting = [[MODEL, spans, 0, 0.01, 0.1, 4, "fp32-cpu"]] if spans else []
    address = f"/ip4/{network}.0.{number % 250}/tcp/1/p2p/{peer}"
    fields = [peer, sequence, instance, lifetime_s, hosting, 0, relay, "unknown", [address]]
    fields += [links(number)[0], rival]
    body = msgspec.msgpack.encode(fields)  # of wrong ones too, which the type can't be made of
    return Signed(peer, body, key(number).sign(DOMAIN, body))


def told(*items: Signed, age_s: float = 0.0, beat: int = 0, link: bytes = b"") -> Announcements:
    return Announcements(tuple(AgedAnnouncement(item, age_s, beat, link) for item in items))


def beats(*which: tuple[int, int], age: int = 0) -> Beats:
    return Beats(b"".join(links(number)[beat] + bytes([age]) for number, beat in which))


def make(number: int = 0) -> Directory:
    return Directory(key(number).peer, Random(number))


def publish(one: Directory, number: int, now_s: float, sequence: int = 1) -> None:
    one.publish(announced(number, sequence), links(number), now_s)


def numbers(directory: Directory, now_s: float) -> list[int]:
    """Whom a directory believes to be live."""
    by_peer = {key(number).peer: number for number in range(80)}
    return sorted(by_peer[one.peer] for one in directory.live(now_s))
