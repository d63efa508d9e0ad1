"""The directory in a swarm that is lost in part and replaced all the time: who sees whom.

The product's own directories on a heap of events, without sockets. A tenth of all messages is
lost, 20 % of the peers crash in a minute and as many newcomers join. All start at once, knowing
three others. From 60 virtual seconds on:

seen_fraction_60s    every 5 s, each live peer that joined 60 s ago or earlier: how many of the live
                     announcements of such peers it sees; the worst of all
ghost_s_max          each second, 200 peers by lot: how long the longest dead of those that they
                     still see has been dead
newcomer_sees_s_max  20 newcomers: until they see 99 % of those that were live when they joined
newcomer_seen_s_max  the same: until 99 % of those see them
bytes_per_peer_s     all that is sent, with what links, noise and TCP add, per live peer
cpu_ms_per_peer_s    what one peer computes in a second of life, the simulation's work included
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import Counter
from dataclasses import dataclass, field

from bench._report import report
from gennode.mesh.directory.crowd import Crowd, Weather
from gennode.wire.ids import PeerId

FULL, QUICK = (2000, 95.0), (300, 90.0)  # peers, virtual seconds
SETTLED_S = 60.0
CHURN_PER_S = 0.2 / 60
SEEN_EVERY_S, GHOSTS_SEEN_BY = 5, 200
NEWCOMERS, TIME_S = 20, 20.0  # and the time that we leave them
ENOUGH = 0.99


@dataclass
class Newcomer:
    """When somebody joined, whom there was to see then, and when it was done."""

    joined_s: float
    others: frozenset[PeerId]
    sees_s: float | None = None
    seen_s: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether it sees, and is seen."""
        return self.sees_s is not None and self.seen_s is not None


@dataclass
class Watch:
    """What was measured so far."""

    crowd: Crowd
    until_s: float
    seen_fraction: float = 1.0
    ghost_s: float = 0.0
    newcomers: dict[PeerId, Newcomer] = field(default_factory=dict)

    def look(self) -> None:
        """Once a virtual second."""
        crowd, alive = self.crowd, set(self.crowd.alive)
        if round(crowd.now_s) % SEEN_EVERY_S == 0:
            self._count_seen()
        for peer in crowd.rng.sample(crowd.alive, min(GHOSTS_SEEN_BY, len(alive))):
            for ghost in crowd.seen_by(peer) - alive:
                self.ghost_s = max(self.ghost_s, crowd.now_s - (crowd.members[ghost].died_s or 0))
        for peer in crowd.alive[-NEWCOMERS:]:
            joined_s = crowd.members[peer].joined_s
            if SETTLED_S < joined_s < self.until_s - TIME_S and len(self.newcomers) < NEWCOMERS:
                self.newcomers.setdefault(peer, Newcomer(joined_s, frozenset(alive - {peer})))
        for peer, newcomer in self.newcomers.items():
            if peer in alive and not newcomer.is_done:
                self._follow(peer, newcomer, alive)

    def _count_seen(self) -> None:
        crowd = self.crowd
        before_s = crowd.now_s - SETTLED_S
        old = frozenset(peer for peer in crowd.alive if crowd.members[peer].joined_s <= before_s)
        for peer in old:
            fraction = len(old & crowd.seen_by(peer)) / len(old)
            self.seen_fraction = min(self.seen_fraction, fraction)

    def _follow(self, peer: PeerId, newcomer: Newcomer, alive: set[PeerId]) -> None:
        age_s = self.crowd.now_s - newcomer.joined_s
        others = newcomer.others & alive
        if newcomer.sees_s is None and (
            len(others & self.crowd.seen_by(peer)) >= ENOUGH * len(others)
        ):
            newcomer.sees_s = age_s
        if newcomer.seen_s is None and (
            sum(self.crowd.knows(other, peer) for other in others) >= ENOUGH * len(others)
        ):
            newcomer.seen_s = age_s


def run(peers: int, until_s: float) -> tuple[Watch, Counter[str], float]:
    """The whole story: what was seen, bytes by kind, and seconds of CPU, both after settling."""
    crowd = Crowd(peers, 1, Weather(churn_per_s=CHURN_PER_S))
    crowd.run(SETTLED_S - 1)
    before, start_s, watching_s = crowd.sent_bytes(), time.process_time(), 0.0
    watch = Watch(crowd, until_s)
    while crowd.now_s < until_s:
        crowd.run(crowd.now_s + 1)
        look_s = time.process_time()
        watch.look()
        watching_s += time.process_time() - look_s
    cpu_s = time.process_time() - start_s - watching_s
    return watch, crowd.sent_bytes() - before, cpu_s


def main() -> None:
    """Simulate, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer peers, for a shorter time")
    peers, until_s = QUICK if parser.parse_args().quick else FULL
    gc.disable()  # the heap holds millions of small objects that form no cycles
    watch, sent, cpu_s = run(peers, until_s)
    each = peers * (until_s - SETTLED_S + 1)
    done = [
        one for peer, one in watch.newcomers.items() if watch.crowd.members[peer].died_s is None
    ]
    figures = {
        "peers": peers,
        "virtual_s": until_s,
        "seen_fraction_60s": round(watch.seen_fraction, 4),
        "ghost_s_max": round(watch.ghost_s, 1),
        "newcomer_sees_s_max": round(max(one.sees_s or until_s for one in done), 1),
        "newcomer_seen_s_max": round(max(one.seen_s or until_s for one in done), 1),
        "bytes_per_peer_s": round(sent.total() / each),
        "cpu_ms_per_peer_s": round(cpu_s / each * 1e3, 2),
    }
    kinds = [
        (f"bytes per peer and second: {kind}", round(count / each)) for kind, count in sent.items()
    ]
    report("directory", figures, columns=("figure", "value"), rows=[*figures.items(), *kinds])


if __name__ == "__main__":
    main()
