"""Swarms plan together: one plan everywhere, whoever is silent, lies or can't be reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

import msgspec
import pytest

from gennode.node.plans.planning import PlanMessage
from gennode.node.plans.witness import PACE
from gennode.wire.ids import PeerId
from gennode.wire.messages import PlanDigest, PlanSent, PlanWanted
from gennode.wire.proposal import MARK_BYTES, place_in_line, sign_proposal
from gennode.wire.snapshot import Snapshot
from tests.node.plans.planners import (
    EPOCH_ZERO_S,
    KEYS,
    MODEL,
    Planners,
    Weather,
    announced,
    decide,
    take,
)

Parts = tuple[Snapshot, bytes, bytes]
Lie = Callable[[Snapshot, bytes], Parts]
TOLD_WITHIN_S = 10.0  # from a turn on, where clocks are off by three seconds either way
FIRST_TURN_S = 15.0  # when the epoch begins in which the first plan is due


def swarm(seed: int, weather: Weather, peers: int | None = None) -> Planners:
    """Peers that have just come and host nothing yet, so that a plan is due."""
    rng = Random(seed)
    count = peers or rng.choice([5, 6, 8, 10, 12, 16, 20, 30])
    start_s = EPOCH_ZERO_S + 1000 * seed * PACE.epoch_s - FIRST_TURN_S
    made = Planners(rng, weather, start_s=start_s)
    for key in rng.sample(KEYS, count):
        made.join(key, capacity=rng.randint(5, 12))
    return made


def line(made: Planners) -> list[PeerId]:
    """The publishers of the first plan, in order."""
    epoch = int((made.start_s + FIRST_TURN_S + 1) // PACE.epoch_s)
    return sorted(made.planners, key=lambda peer: place_in_line(MODEL, epoch, peer))


def agree(made: Planners) -> bool:
    """Whether all follow one plan of one publisher."""
    plans = {one.plan for one in made.live()}
    return len(plans) == 1 and None not in plans


def settle(made: Planners, limit_s: float) -> float:
    """Seconds from the first turn until all agree."""
    made.run(FIRST_TURN_S + limit_s, done=lambda: agree(made))
    assert agree(made), [(one.plan, one.refused) for one in made.live()]
    return made.now_s - FIRST_TURN_S


@pytest.mark.parametrize("first", range(0, 100, 50))
def test_all_follow_the_first_in_line(first: int) -> None:
    for seed in range(first, first + 50):
        made = swarm(seed, Weather())
        settle(made, 15.0)
        assert made.live()[0].accepted[-1][1].publisher == line(made)[0], seed
        assert not any(one.refused for one in made.live()), seed


ROUGH = Weather(loss=0.15, skew_s=3.0, news_s=6.0, decide_s=1.0)


def test_sixty_agree() -> None:
    for seed in range(3):
        made = swarm(seed, ROUGH, peers=60)
        settle(made, 30.0)


def test_lost_messages_and_wrong_clocks_delay_a_plan_by_seconds() -> None:
    took_s = []
    for seed in range(100):
        made = swarm(seed, ROUGH)
        took_s.append(settle(made, 30.0))
    assert sorted(took_s)[50] < 10.0


@pytest.mark.parametrize("kind", ["mute", "crashed"])
def test_the_next_in_line_takes_over_from_the_silent(kind: str) -> None:
    for seed in range(30):
        made = swarm(seed, Weather(skew_s=3.0), peers=8 + seed % 20)
        silent = line(made)[: 1 + seed % 3]
        for peer in silent:
            if kind == "mute":
                made.planners[peer].is_mute = True
            else:
                at_s = FIRST_TURN_S - made.rng.uniform(1.0, 9.0)
                made.after(at_s, partial(made.crash, peer))
        took_s = settle(made, 25.0)
        assert took_s < PACE.takeover_s * len(silent) + TOLD_WITHIN_S, seed


class Hostile:
    """The first in line, who signs what it likes and tells whom it likes of it."""

    def __init__(self, made: Planners, peer: PeerId, lies: Sequence[Lie]) -> None:
        self.made = made
        self.peer = peer
        self.lies = lies
        self.key = next(key for key in KEYS if key.peer == peer)
        self.book: dict[bytes, bytes] = {}
        made.hostile[peer] = self.answer
        made.after(FIRST_TURN_S + 0.5, self.strike)

    def strike(self) -> None:
        """Tell everybody, each of one of the lies by chance."""
        planner = self.made.planners[self.peer]
        epoch = int((self.made.start_s + FIRST_TURN_S + 1) // PACE.epoch_s)
        now_s = self.made.now_s + planner.clock_s
        snapshot, marks = planner.machine._witness.snapshot(epoch, now_s)
        digests = []
        for lie in self.lies:
            sent, name = sign_proposal(self.key, *lie(snapshot, marks))
            self.book[name] = sent
            digests.append(PlanDigest(MODEL, epoch, self.peer, name))
        for target in sorted(self.made.planners):
            self.made.send(self.peer, target, self.made.rng.choice(digests), b"")

    def answer(self, sender: PeerId, message: PlanMessage, _payload: bytes) -> None:
        """Send what is asked for."""
        if isinstance(message, PlanWanted) and message.proposal in self.book:
            answer = PlanSent(MODEL, message.proposal)
            self.made.send(self.peer, sender, answer, self.book[message.proposal])


def digest_of(snapshot: Snapshot) -> bytes:
    """Of the plan that follows."""
    plan = decide(snapshot).plan
    return plan.digest if plan else bytes(32)


def wrong_plan(snapshot: Snapshot, marks: bytes) -> Parts:
    return snapshot, marks, b"\7" * 32


def grabs_all(snapshot: Snapshot, marks: bytes) -> Parts:
    """Everybody else has room for one layer, it says."""
    peers = tuple(msgspec.structs.replace(one, capacity_layers=4) for one in snapshot.peers)
    lie = msgspec.structs.replace(snapshot, peers=peers)
    return lie, bytes(len(marks)), digest_of(lie)


def honest(snapshot: Snapshot, marks: bytes) -> Parts:
    return snapshot, marks, digest_of(snapshot)


def lacks_one(number: int) -> Lie:
    """As honest as its view could be: one peer may be left out."""

    def lie(snapshot: Snapshot, marks: bytes) -> Parts:
        peers = snapshot.peers[:number] + snapshot.peers[number + 1 :]
        part = msgspec.structs.replace(snapshot, peers=peers)
        left = marks[: MARK_BYTES * number] + marks[MARK_BYTES * (number + 1) :]
        return part, left, digest_of(part)

    return lie


@pytest.mark.parametrize("lie", [wrong_plan, grabs_all])
def test_the_next_in_line_takes_over_from_a_liar(lie: Lie) -> None:
    for seed in range(20):
        made = swarm(seed, Weather(skew_s=2.0), peers=8 + seed % 12)
        first = line(made)[0]
        Hostile(made, first, [lie])
        settle(made, 29.0)
        assert all(one.plan and one.plan[0] != first for one in made.live()), seed
        assert not any(one.is_proven for each in made.live() for one in each.refused
                       if one.publisher != first)  # fmt: skip


def test_of_two_good_plans_of_one_publisher_the_same_is_followed_everywhere() -> None:
    for seed in range(25):
        made = swarm(seed, Weather(skew_s=1.0), peers=8 + seed % 12)
        first = line(made)[0]
        hostile = Hostile(made, first, [lacks_one(1), lacks_one(2)])
        made.run(FIRST_TURN_S + 25.0)
        assert agree(made), seed
        [(publisher, _, _)] = {one.plan for one in made.live() if one.plan}
        assert publisher == first
        assert len(hostile.book) == 2


def test_facts_that_change_all_the_time_keep_no_plan_away() -> None:
    for seed in range(25):
        made = swarm(seed, Weather(skew_s=1.0, loss=0.05))
        for peer in sorted(made.planners):
            waver(made, peer, 2)
        settle(made, 40.0)


def waver(made: Planners, peer: PeerId, sequence: int) -> None:
    """Announce another speed every some ten seconds."""

    def change() -> None:
        one = made.planners[peer].announcement
        capacity = take([one], 0).peers[0].capacity_layers
        speed_s = made.rng.uniform(0.01, 0.02)
        made.announce(announced(peer, capacity=capacity, sequence=sequence, layer_time_s=speed_s))
        waver(made, peer, sequence + 1)

    made.after(made.rng.uniform(8.0, 14.0), change)


def test_peers_that_come_and_go_keep_no_plan_away() -> None:
    for seed in range(25):
        made = swarm(seed, Weather(skew_s=1.0), peers=12)
        new = [key for key in KEYS if key.peer not in made.planners][:4]
        for number, key in enumerate(new):
            at_s = FIRST_TURN_S + made.rng.uniform(-8.0, 4.0)
            gone = made.rng.choice(line(made)[4:])
            made.after(at_s, partial(made.join, key, capacity=8))
            if number < 2:
                made.after(at_s, partial(made.crash, gone))
        made.run(FIRST_TURN_S + 30.0)
        old = {one.plan for one in made.live() if one.machine.peer not in {k.peer for k in new}}
        assert len(old) == 1, seed
        assert None not in old


def test_a_seed_replays() -> None:
    def story() -> list[object]:
        made = swarm(3, ROUGH)
        settle(made, 30.0)
        return [made.now_s, *((one.accepted, one.refused) for one in made.live())]

    assert story() == story()


def test_two_halves_that_meet_again_follow_the_plan_of_who_is_first_in_line() -> None:
    differed = 0
    for seed in range(25):
        made = swarm(seed, Weather(skew_s=1.0, news_s=1.0), peers=8 + seed % 12)
        made.run(2.0)
        first, second = line(made)[:2]
        groups = {peer: made.rng.randrange(2) for peer in sorted(made.planners)}
        made.split({**groups, first: 0, second: 1})
        made.announce(announced(second, capacity=1, sequence=2))
        made.run(FIRST_TURN_S + 12.0)
        one, other = made.planners[first].plan, made.planners[second].plan
        assert one is not None
        assert other is not None
        differed += one[2] != other[2]
        made.join_up()
        settle(made, 40.0)
        assert made.planners[second].plan == one, seed
    assert differed >= 20
