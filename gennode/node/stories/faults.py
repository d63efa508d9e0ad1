"""What befalls a story's swarm: each fault drawn from the seed, and when it is over."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from gennode.node.stories.cast import THIRDS, Cast
from gennode.node.stories.network import Edge
from gennode.wire.ids import PeerId

MAX_LOST = 2  # workers that never come back: with more, most stories would be of missing layers
MAX_FAULTS = 6
DRAIN_LIMIT_S = 10.0  # as of a live worker that leaves (`stopping.py`)
GOODBYE_S = 1.0  # from its goodbye to its end
LOOK_S = 0.5
SLOWNESS = 10.0
WITHIN_S = 20.0  # of a prompt's beginning: about what most take

Strike = Callable[[], None]
Drawn = tuple[str, float, Strike]
"""In words, how long it lasts in seconds, and what to do to the swarm."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    kind: str
    told: str
    prompt: int
    """Counted in the order in which they are asked; the fault falls into it, or soon after."""
    at_s: float
    """From that prompt's beginning."""
    lasts_s: float
    strike: Strike


def plan(rng: random.Random, cast: Cast, prompts: int) -> list[Fault]:
    """None to several faults at any moments, also at once."""
    faults: list[Fault] = []
    for _ in range(rng.choice(range(MAX_FAULTS + 1))):
        lost = sum(one.kind in _FINAL for one in faults)
        kinds = [kind for kind in _KINDS if lost < MAX_LOST or kind not in _FINAL]
        kind = rng.choice(kinds)
        told, lasts_s, strike = _KINDS[kind](rng, cast)
        prompt, at_s = rng.randrange(prompts), rng.uniform(0.0, WITHIN_S)
        faults.append(Fault(kind, told, prompt, at_s, lasts_s, strike))
    return faults


# -- processes --------------------------------------------------------------------------------


def _crash(rng: random.Random, cast: Cast) -> Drawn:
    victim = rng.choice(cast.workers)
    return f"{cast.name(victim)} crashes", 0.0, partial(_kill, cast, victim)


def _blackout(rng: random.Random, cast: Cast) -> Drawn:
    victim = rng.choice(cast.workers)
    return f"{cast.name(victim)} loses power", 0.0, partial(_kill, cast, victim, power=True)


def _restart(rng: random.Random, cast: Cast) -> Drawn:
    victim, away_s = rng.choice(cast.workers), rng.uniform(0.2, 20.0)

    def strike() -> None:
        _kill(cast, victim)
        cast.swarm.after(away_s, partial(cast.revive, victim))

    return f"{cast.name(victim)} crashes and is back in {away_s:.1f} s", away_s, strike


def _layers_gone(rng: random.Random, cast: Cast) -> Drawn:
    span, away_s = rng.choice(THIRDS), rng.uniform(1.0, 25.0)
    hosts = [peer for peer in cast.workers if cast.spans[peer] == span]

    def strike() -> None:
        for peer in hosts:
            _kill(cast, peer, power=rng.random() < 0.5)
            cast.swarm.after(away_s, partial(cast.revive, peer))

    return f"all hosts of [{span}] die and are back in {away_s:.1f} s", away_s, strike


def _freeze(rng: random.Random, cast: Cast) -> Drawn:
    victim, duration_s = rng.choice(cast.workers), rng.uniform(0.2, 6.0)
    strike = partial(cast.swarm.freeze, victim, duration_s)
    return f"{cast.name(victim)} freezes for {duration_s:.1f} s", duration_s, strike


def _hang(rng: random.Random, cast: Cast) -> Drawn:
    victim, duration_s = rng.choice(cast.workers), rng.uniform(6.0, 80.0)
    strike = partial(cast.swarm.freeze, victim, duration_s)
    return f"{cast.name(victim)} hangs for {duration_s:.0f} s", duration_s, strike


def _owner_freezes(rng: random.Random, cast: Cast) -> Drawn:
    victim, duration_s = rng.choice(cast.owners), rng.choice([rng.uniform(0.5, 8.0), 70.0])
    strike = partial(cast.swarm.freeze, victim, duration_s)
    return f"{cast.name(victim)} freezes for {duration_s:.1f} s", duration_s, strike


def _owner_vanishes(rng: random.Random, cast: Cast) -> Drawn:
    victim = rng.choice(cast.owners)

    def strike() -> None:
        if sum(cast.swarm.peers[peer].alive for peer in cast.owners) > 1:
            _kill(cast, victim, power=rng.random() < 0.5)

    return f"{cast.name(victim)} vanishes, unless nobody else asks", 0.0, strike


def _slow(rng: random.Random, cast: Cast) -> Drawn:
    victim, duration_s = rng.choice(cast.workers), rng.uniform(5.0, 40.0)
    strike = partial(cast.swarm.slow, victim, SLOWNESS, duration_s)
    told = f"{cast.name(victim)} is {SLOWNESS:.0f} × slower for {duration_s:.0f} s"
    return told, duration_s, strike


def _clock_jumps(rng: random.Random, cast: Cast) -> Drawn:
    victim = rng.choice([*cast.workers, *cast.owners])
    jump_s = rng.choice([rng.uniform(0.5, 5.0), rng.uniform(5.0, 100.0)])

    def strike() -> None:
        cast.swarm.peers[victim].clock.ahead_s += jump_s

    return f"the clock of {cast.name(victim)} jumps by {jump_s:.1f} s", 0.0, strike


def _leave(rng: random.Random, cast: Cast) -> Drawn:
    victim = rng.choice(cast.workers)

    def strike() -> None:
        swarm, state = cast.swarm, cast.swarm.peers[victim]
        if state.alive:
            swarm.act(victim, state.machine.drain(swarm.clock_s(victim)))
            _leave_when_idle(cast, victim, swarm.now_s + DRAIN_LIMIT_S)

    return f"{cast.name(victim)} leaves", DRAIN_LIMIT_S + GOODBYE_S, strike


def _leave_when_idle(cast: Cast, peer: PeerId, latest_s: float) -> None:
    swarm, state = cast.swarm, cast.swarm.peers[peer]
    if not state.alive:
        return
    if state.machine.hosted_sessions and swarm.now_s < latest_s:
        swarm.after(LOOK_S, partial(_leave_when_idle, cast, peer, latest_s))
        return
    others = dict.fromkeys((other for other in swarm.peers if other != peer), "")
    swarm.act(peer, state.machine.leave(swarm.clock_s(peer), others))
    swarm.after(GOODBYE_S, partial(_kill, cast, peer))


def _disk_full(rng: random.Random, cast: Cast) -> Drawn:
    victim, duration_s = rng.choice(cast.workers), rng.uniform(2.0, 30.0)

    def strike() -> None:
        store = cast.stores[victim]
        store.refuses = True
        cast.swarm.after(duration_s, lambda: setattr(store, "refuses", False))

    return f"the disk of {cast.name(victim)} is full for {duration_s:.0f} s", duration_s, strike


def _disk_breaks(rng: random.Random, cast: Cast) -> Drawn:
    victim, duration_s = rng.choice(cast.workers), rng.uniform(2.0, 30.0)

    def strike() -> None:
        store = cast.stores[victim]
        store.loses = True
        cast.swarm.after(duration_s, lambda: setattr(store, "loses", False))

    return (
        f"the disk of {cast.name(victim)} can't be read for {duration_s:.0f} s",
        duration_s,
        strike,
    )


def _kill(cast: Cast, peer: PeerId, *, power: bool = False) -> None:
    if cast.swarm.peers[peer].alive:
        if power:
            cast.swarm.blackout(peer)
        else:
            cast.swarm.crash(peer)


# -- the network ------------------------------------------------------------------------------


def _partition(rng: random.Random, cast: Cast) -> Drawn:
    edges, told = _border(rng, cast)
    duration_s = rng.choice([rng.uniform(0.3, 4.0), rng.uniform(4.0, 40.0)])
    strike = partial(cast.swarm.network.cut, edges, duration_s)
    return f"nothing gets {told} for {duration_s:.1f} s", duration_s, strike


def _flapping(rng: random.Random, cast: Cast) -> Drawn:
    edges, told = _border(rng, cast)
    cuts, at_s = [], 0.0
    for _ in range(rng.randint(2, 6)):
        duration_s = rng.uniform(0.2, 4.0)
        cuts.append((at_s, duration_s))
        at_s += duration_s + rng.uniform(0.1, 3.0)

    def strike() -> None:
        for begin_s, duration_s in cuts:
            cast.swarm.after(begin_s, partial(cast.swarm.network.cut, edges, duration_s))

    return f"nothing gets {told}, {len(cuts)} times in {at_s:.0f} s", at_s, strike


def _border(rng: random.Random, cast: Cast) -> tuple[list[Edge], str]:
    """Ways between two peers, or between some and all others; both ways or one."""
    everybody = [*cast.workers, *cast.owners]
    size = rng.choice([1, rng.randint(1, len(everybody) - 1)])
    some = rng.sample(everybody, size)
    others = [peer for peer in everybody if peer not in some]
    if rng.random() < 0.5:
        others = [rng.choice(others)]
    there = _ways(some, others)
    names = ", ".join(cast.name(peer) for peer in some)
    far = "all others" if len(others) > 1 else cast.name(others[0])
    match rng.choice(["both", "there", "back"]):
        case "both":
            return [*there, *_ways(others, some)], f"between {names} and {far}"
        case "there":
            return there, f"from {names} to {far}"
        case _:
            return _ways(others, some), f"from {far} to {names}"


def _ways(sources: Iterable[PeerId], targets: Iterable[PeerId]) -> list[Edge]:
    ends = list(targets)
    return [(source, target) for source in sources for target in ends]


_KINDS: dict[str, Callable[[random.Random, Cast], Drawn]] = {
    "crash": _crash,
    "blackout": _blackout,
    "restart": _restart,
    "layers gone": _layers_gone,
    "freeze": _freeze,
    "hang": _hang,
    "owner freezes": _owner_freezes,
    "owner vanishes": _owner_vanishes,
    "slow": _slow,
    "clock jump": _clock_jumps,
    "leave": _leave,
    "disk full": _disk_full,
    "disk breaks": _disk_breaks,
    "partition": _partition,
    "flapping": _flapping,
}
_FINAL = ("crash", "blackout", "leave")
KINDS = tuple(_KINDS)
"""All that may befall a swarm."""
