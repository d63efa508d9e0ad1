"""Routes under load, under churn, and how fast they are found.

p99_over_round_robin  seconds per token of an answer, its owner's waiting included, in the worst
                      hundredth of answers: ours over taking turns on fixed chains, at 0.8 of what
                      the chains carry in equal shares; the median over pools and kinds of arrivals.
                      Also of those pools whose chains lie in one region each, and of the others
goodput_churn         tokens that came right in whole answers, over those asked for, while 20 % of
                      the workers go every minute; the product's own machines (`_churn.py`)
wrong_tokens          in the same runs
route_1000_ms         a route over 80 layers among 1,000 workers of 4 to 40 layers each, on a board
                      that has been asked before; the median, in time of the processor, so that
                      neighbours on it do not count. `route_1000_drawn_ms`: with an rng, as owners
                      who share workers choose; `route_1000_cold_ms`: with the board made anew

The pools of the first figure are simulated token by token (`_crowd.py`): 36 to 96 workers in
three regions, announcements up to 10.5 s old, Poisson and bursty arrivals, answers of
log-normal length. Round-robin takes turns over fixed chains, Parallax's default; they are as
even as the machines allow, and lie in one region each or, as Parallax forms them, anywhere.
Shortest path is our search without load.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from bench._churn import Story
from bench._crowd import MODEL, WHOLE, Crowd, Outcome, Path, Policy, Scene, make_scene
from bench._report import median_of, report
from gennode.sharding.route.route import Gap, Preferences, RouteBoard
from gennode.wire.announcement import Announcement, Hosting
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import PeerId, Span

COMPARED_LOAD = 0.8
WORKERS, MODEL_LAYERS, WORKER_LAYERS = 1000, 80, (4, 40)


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    pools: tuple[tuple[int, bool], ...]
    """Workers, and whether the fixed chains lie in one region each."""
    loads: tuple[float, ...]
    until_s: float
    stories: int
    story_workers: int
    story_s: float
    searches: int


_POOLS = ((36, True), (36, False), (60, True), (60, False), (96, False))
FULL = Effort(_POOLS, (0.3, 0.5, 0.8, 0.95), 120.0, 8, 24, 90.0, 400)
QUICK = Effort(_POOLS[:2], (COMPARED_LOAD,), 80.0, 3, 18, 40.0, 60)


class Turns:
    """Fixed chains, one after the other; one that refused is passed over."""

    def __init__(self, crowd: Crowd) -> None:
        self._scene, self._next = crowd.scene, 0

    def choose(self, owner: int, full: frozenset[PeerId]) -> Path | None:
        scene = self._scene
        for _ in scene.chains:
            chain = scene.chains[self._next % len(scene.chains)]
            self._next += 1
            if not any(scene.machines[one].peer in full for one in chain):
                return [(one, scene.machines[one].span.layers) for one in chain]
        return None


class Search:
    """Our router; `blind`: without any load, as if all workers were idle."""

    def __init__(self, crowd: Crowd, *, blind: bool = False) -> None:
        self._crowd, self._blind = crowd, blind
        self._rng = None if blind else random.Random(crowd.rng.random())
        self._index = {one.peer: index for index, one in enumerate(crowd.scene.machines)}
        self._version, self._board = -1, self._new_board()

    def _new_board(self) -> RouteBoard:
        announcements = self._crowd.announcements
        return RouteBoard(announcements, model=MODEL, link_time_s=self._crowd.scene.link_s)

    def choose(self, owner: int, full: frozenset[PeerId]) -> Path | None:
        crowd = self._crowd
        if self._version != crowd.version and not self._blind:
            self._version, self._board = crowd.version, self._new_board()
        opened = {} if self._blind else crowd.opened(owner)
        route = self._board.route(
            WHOLE,
            crowd.scene.owners[owner],
            exclude=full,
            preferences=Preferences(opened=opened),
            rng=self._rng,
        )
        if isinstance(route, Gap):
            return None
        return [(self._index[hop.peer], hop.span.layers) for hop in route.hops]


POLICIES: dict[str, Callable[[Crowd], Policy]] = {
    "round-robin": Turns,
    "shortest path": lambda crowd: Search(crowd, blind=True),
    "ours": Search,
}


def percentile_s(outcome: Outcome, share: float) -> float:
    """The time per token that so many of all answers do not exceed."""
    times_s = sorted(outcome.times_s)
    return times_s[min(len(times_s) - 1, int(share * len(times_s)))]


def compare(
    scene: Scene, load: float, until_s: float, *, seed: int, bursty: bool
) -> dict[str, Outcome]:
    """The same prompts for every policy."""
    outcomes = {}
    for name, make in POLICIES.items():
        crowd = Crowd(scene, seed)
        policy = make(crowd)
        outcomes[name] = crowd.run(policy, load * scene.rate_token_s, until_s, bursty=bursty)
    return outcomes


def measure_crowds(effort: Effort) -> tuple[dict[str, float], list[tuple[float | str, ...]]]:
    """The figures at the compared load; a row per load, arrivals, kind of chains and policy."""
    scenes = [
        (seed, make_scene(seed, workers, regional=regional), regional)
        for seed, (workers, regional) in enumerate(effort.pools, 1)
    ]
    ratios: dict[bool, list[float]] = {True: [], False: []}
    rows: list[tuple[float | str, ...]] = []
    for load, bursty, regional in itertools.product(effort.loads, (False, True), (True, False)):
        runs = [
            compare(scene, load, effort.until_s, seed=seed, bursty=bursty)
            for seed, scene, is_regional in scenes
            if is_regional == regional
        ]
        turns_s = [percentile_s(run["round-robin"], 0.99) for run in runs]
        for name in POLICIES:
            p99_s = [percentile_s(run[name], 0.99) for run in runs]
            over = [mine_s / their_s for mine_s, their_s in zip(p99_s, turns_s, strict=True)]
            if name == "ours" and load == COMPARED_LOAD:
                ratios[regional] += over
            where = "in a region" if regional else "anywhere"
            what = (f"{load:g}", "bursty" if bursty else "Poisson", where, name)
            p50_s = median_of(percentile_s(run[name], 0.5) for run in runs)
            refused = sum(run[name].refusals for run in runs)
            rows.append((*what, p50_s, median_of(p99_s), median_of(over), refused))
    figures = {
        "p99_over_round_robin": round(median_of([*ratios[True], *ratios[False]]), 3),
        "p99_over_regional_chains": round(median_of(ratios[True]), 3),
        "p99_over_mixed_chains": round(median_of(ratios[False]), 3),
    }
    return figures, rows


def measure_churn(effort: Effort) -> dict[str, float]:
    """Goodput over all stories, and how much was asked and survived."""
    told = [
        Story(seed, effort.story_workers).run(effort.story_s, 2.0) for seed in range(effort.stories)
    ]
    for story in told:
        for reason in story.broken:
            print(f"an answer was not whole: {reason}")
    return {
        "goodput_churn": round(
            sum(one.good_tokens for one in told) / sum(one.asked_tokens for one in told), 5
        ),
        "wrong_tokens": sum(one.wrong_tokens for one in told),
        "churn_answers": sum(one.answers for one in told),
        "churn_departures": sum(one.departures for one in told),
        "churn_failovers": sum(one.failovers for one in told),
    }


def thousand() -> tuple[list[Announcement], dict[PeerId, Coordinate]]:
    """A big directory of one model, and where everybody is."""
    rng = random.Random(1)
    centres = ((0.0, 0.0), (0.08, 0.0), (0.1, 0.11))
    announcements, places = [], {}
    for index in range(WORKERS):
        peer = PeerId(f"12D3KooW{index:05}{rng.getrandbits(128):039}")
        layers = rng.randint(*WORKER_LAYERS)
        start = rng.randint(0, MODEL_LAYERS - layers)
        x_s, y_s = rng.choice(centres)
        places[peer] = Coordinate(
            x_s + rng.uniform(0, 0.01), y_s + rng.uniform(0, 0.01), rng.uniform(0, 0.01), 0.1
        )
        layer_time_s = rng.uniform(0.0005, 0.003)
        hosting = Hosting(
            MODEL,
            (Span(start, start + layers),),
            0,
            layer_time_s,
            1.0,
            16,
            "",
            layer_time_s * rng.uniform(0.05, 0.5),
        )
        sessions = rng.randint(0, 12)
        announcements.append(
            Announcement(peer, 1, 0, 30.0, (hosting,), sessions, False, "unknown", ())
        )
    return announcements, places


def measure_search(searches: int) -> dict[str, float]:
    """Milliseconds of a search as a gateway makes them: warm, and with a new board each time."""
    announcements, places = thousand()
    me = PeerId("owner")
    places[me] = Coordinate(0.005, 0.005, 0.005, 0.1)
    rng = random.Random(2)

    def link_time_s(here: PeerId, there: PeerId) -> float:
        return places[here].rtt_s(places[there]) / 2 + 0.001

    def board() -> RouteBoard:
        return RouteBoard(announcements, model=MODEL, link_time_s=link_time_s)

    def timed_ms(search: Callable[[], object]) -> float:
        start_s = time.process_time()
        search()
        return (time.process_time() - start_s) * 1e3

    span, known = Span(0, MODEL_LAYERS), board()
    shared = replace(Preferences(), opened={announcements[3].peer: 2})
    calm = [timed_ms(lambda: known.route(span, me)) for _ in range(searches)][5:]
    drawn = [
        timed_ms(lambda: known.route(span, me, preferences=shared, rng=rng))
        for _ in range(searches)
    ][5:]
    cold = [timed_ms(lambda: board().route(span, me)) for _ in range(max(20, searches // 10))]
    return {
        "route_1000_ms": round(statistics.median(calm), 3),
        "route_1000_drawn_ms": round(statistics.median(drawn), 3),
        "route_1000_cold_ms": round(statistics.median(cold), 3),
    }


def main() -> None:
    """Measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one pool, two loads, short stories")
    effort = QUICK if parser.parse_args().quick else FULL
    search = measure_search(effort.searches)
    churn = measure_churn(effort)
    crowds, rows = measure_crowds(effort)
    figures = {**crowds, **churn, **search}
    columns = (
        "load",
        "arrivals",
        "fixed chains",
        "routes",
        "p50_s",
        "p99_s",
        "p99 / turns",
        "refused",
    )
    report("routing", figures, columns=columns, rows=rows)


if __name__ == "__main__":
    main()
