"""What links do to packets: delay, jitter, loss and rate, decided without clock, socket or thread.

    a ──uplink──▶ ┐           ┌ ──downlink──▶ b
                  ├─  core  ──┤
    c ──uplink──▶ ┘           └ ──downlink──▶ d

Everyone hangs on one core by a link of their own. A packet crosses the uplink of its sender and
the downlink of its receiver; the core takes no time. Each way of a link is a queue that keeps
order, so jitter never reorders and one sender's long link delays no other sender's packets.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

QUEUE_S = 0.2
"""How long a packet may wait for its turn on a link with a rate; as in a home router, what would
wait longer is dropped, so that senders notice."""

MAX_HELD_BYTES = 256 << 20
"""What all links hold together at most: 250 MB/s for a second. More is dropped."""


@dataclass(frozen=True, slots=True)
class Link:
    """How someone is attached; the same both ways.

    `delay_ms` is one way: a ping between two links takes twice the sum of both. Up to `jitter_ms`
    is added to each packet, evenly drawn. `loss` is the share of packets that vanish, one way.
    `rate_mbit` is in 10⁶ bit/s; 0 sets no limit. ValueError for what no link can be.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    rate_mbit: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.loss <= 1 and min(self.delay_ms, self.jitter_ms, self.rate_mbit) >= 0):
            raise ValueError(f"{self} can't be: loss is within 0…1, and nothing is negative")

    @property
    def counts_packets(self) -> bool:
        """Whether packets must be of a size that a cable carries for the figures to be right."""
        return self.loss > 0 or self.rate_mbit > 0


@dataclass(slots=True)
class Flow:
    """What one port sent to another so far: what arrived, and what was lost or dropped."""

    packets: int = 0
    size_bytes: int = 0
    lost: int = 0


@dataclass(slots=True)
class _Way:
    """One direction of one link: when its sender is free again, and when its last packet left."""

    link: Link
    free_s: float = 0.0
    last_s: float = 0.0

    def cross(self, now_s: float, size_bytes: int, chance: Random) -> float | None:
        """When a packet that enters now comes out; None if it is lost."""
        link = self.link
        if link.loss and chance.random() < link.loss:
            return None
        leaves_s = now_s
        if link.rate_mbit:
            start_s = max(now_s, self.free_s)
            if start_s - now_s > QUEUE_S:
                return None
            leaves_s = self.free_s = start_s + size_bytes * 8e-6 / link.rate_mbit
        leaves_s += link.delay_ms / 1000
        if link.jitter_ms:
            leaves_s += chance.random() * link.jitter_ms / 1000
        self.last_s = max(leaves_s, self.last_s)
        return self.last_s


class _Event(NamedTuple):
    """A packet at the end of its sender's link, or (`arrives`) at the end of its receiver's.

    Events sort by time, then by age; no two have the same serial number.
    """

    at_s: float
    serial: int
    arrives: bool
    sender: str
    receiver: str
    packet: bytes


class Wires:
    """All links and every packet on its way. Times are seconds of any one clock."""

    def __init__(self, links: Mapping[str, Link], *, seed: int) -> None:
        self._uplinks = {name: _Way(link) for name, link in links.items()}
        self._downlinks = {name: _Way(link) for name, link in links.items()}
        self._cut: set[str] = set()
        self._chance = Random(seed)
        self._events: list[_Event] = []
        self._serial = 0
        self._held_bytes = 0
        self.flows: dict[tuple[str, str], Flow] = {}

    @property
    def counts_packets(self) -> bool:
        """Whether any link needs packets of a cable's size."""
        return any(way.link.counts_packets for way in self._uplinks.values())

    def set_link(self, name: str, link: Link) -> None:
        """Attach `name` by another link; packets on their way stay in order."""
        self._uplinks[name].link = self._downlinks[name].link = link

    def cut(self, name: str, *, cut: bool) -> None:
        """Let nothing in or out at `name`, or everything again."""
        (self._cut.add if cut else self._cut.discard)(name)

    def send(self, now_s: float, sender: str, receiver: str, packet: bytes) -> None:
        """Put a packet on its sender's link."""
        flow = self.flows.setdefault((sender, receiver), Flow())
        out_s = None
        if sender not in self._cut and self._held_bytes + len(packet) <= MAX_HELD_BYTES:
            out_s = self._uplinks[sender].cross(now_s, len(packet), self._chance)
        if out_s is None:
            flow.lost += 1
        else:
            self._held_bytes += len(packet)
            self._push(out_s, False, sender, receiver, packet)

    def next_s(self) -> float | None:
        """When something happens next; None if nothing is on its way."""
        return self._events[0].at_s if self._events else None

    def due(self, now_s: float) -> Iterator[tuple[str, bytes]]:
        """Yield (receiver, packet) for all that has arrived by now, in order."""
        while self._events and self._events[0].at_s <= now_s:
            event = heapq.heappop(self._events)
            size_bytes = len(event.packet)
            flow = self.flows[event.sender, event.receiver]
            if event.receiver in self._cut:
                out_s = None
            elif event.arrives:
                self._held_bytes -= size_bytes
                flow.packets += 1
                flow.size_bytes += size_bytes
                yield event.receiver, event.packet
                continue
            else:
                way = self._downlinks[event.receiver]
                out_s = way.cross(event.at_s, size_bytes, self._chance)
            if out_s is None:
                self._held_bytes -= size_bytes
                flow.lost += 1
            else:
                self._push(out_s, True, event.sender, event.receiver, event.packet)

    def _push(self, at_s: float, arrives: bool, sender: str, receiver: str, packet: bytes) -> None:
        self._serial += 1
        event = _Event(at_s, self._serial, arrives, sender, receiver, packet)
        heapq.heappush(self._events, event)
