"""The roll machine: what it fetches, loads and retires, and when it has to wait."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gennode.node.rolls.roll import (
    LINGER_S,
    RETRY_S,
    SETTLE_S,
    SWAP_LIMIT_S,
    Drop,
    Fetch,
    Hosted,
    Load,
    Retire,
    RollAction,
    RollMachine,
    View,
    choose_version,
    covers,
)
from gennode.wire.announcement import Announcement, Hosting
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.release import Release

LAYERS = 6
OLD, NEW = ModelId("a" * 64), ModelId("b" * 64)
WHOLE, FRONT, BACK = Span(0, 6), Span(0, 3), Span(3, 6)
RELEASE = Release(PeerId("publisher"), "demo", 2, NEW, OLD, LAYERS)
ME = PeerId("this worker")


def seen(peer: str, *held: tuple[ModelId, Span]) -> Announcement:
    hosting = tuple(Hosting(model, (span,), 0, 0.01, 0.1, 4, "toy") for model, span in held)
    return Announcement(PeerId(peer), 1, 0, 30.0, hosting, 0, False, "unknown", ())


class Stage:
    """One machine and what it sees."""

    def __init__(self, *others: Announcement, room_layers: int, span: Span = FRONT) -> None:
        self.machine = RollMachine(ME)
        self.hosted = {OLD: Hosted(OLD, LAYERS, span, 0)}
        self.others: Sequence[Announcement] = others
        self.room_layers = room_layers
        self.span = span

    def tick(self, now_s: float, *, announced: bool = True) -> list[RollAction]:
        held = [(model, one.span) for model, one in self.hosted.items()] if announced else []
        live = [*self.others, seen(ME, *held)]
        view = View(RELEASE, live, list(self.hosted.values()), self.room_layers)
        return self.machine.tick(now_s, view)

    def succeed(self, action: RollAction, now_s: float = 0.0) -> None:
        assert isinstance(action, Fetch | Load)
        self.machine.done(action, now_s, succeeded=True)
        if isinstance(action, Load):
            self.hosted[NEW] = Hosted(NEW, LAYERS, action.span, 0)

    def fetched(self) -> None:
        [fetch] = self.tick(0.0)
        self.succeed(fetch)

    def run(self, start_s: float, duration_s: float) -> list[tuple[float, RollAction]]:
        """Tick once a second; what was asked for, and after how long."""
        told = []
        for second in range(int(duration_s) + 1):
            told += [(float(second), action) for action in self.tick(start_s + second)]
        return told


def test_without_a_release_nothing_happens() -> None:
    assert RollMachine(ME).tick(0.0, View(None, [], [], 9)) == []


def test_with_room_the_new_version_comes_beside_the_old_one() -> None:
    stage = Stage(seen("other", (OLD, BACK), (NEW, BACK)), room_layers=3)
    [fetch] = stage.tick(0.0)
    assert fetch == Fetch(NEW, FRONT)
    assert stage.tick(1.0) == []  # it is under way
    stage.succeed(fetch)
    [load] = stage.tick(2.0)
    assert load == Load(NEW, FRONT)
    stage.succeed(load)
    assert stage.run(3.0, SETTLE_S + 1) == [(SETTLE_S, Retire(OLD)), (SETTLE_S + 1, Drop(OLD))]
    del stage.hosted[OLD]
    assert stage.run(20.0, 99) == []


def test_the_old_version_stays_until_the_new_one_is_covered() -> None:
    stage = Stage(seen("other", (OLD, BACK)), room_layers=3)
    stage.fetched()
    stage.succeed(stage.tick(1.0)[0])
    assert stage.run(2.0, 300) == []
    assert "not covered" in stage.machine.waits_for
    stage.others = [seen("other", (NEW, BACK))]
    assert stage.run(400.0, SETTLE_S) == [(SETTLE_S, Retire(OLD))]


def test_sessions_go_on_where_they_are_and_memory_waits_for_their_end() -> None:
    stage = Stage(seen("other", (NEW, BACK)), room_layers=3)
    stage.fetched()
    stage.succeed(stage.tick(0.0)[0])
    stage.hosted[OLD] = Hosted(OLD, LAYERS, FRONT, sessions=2)
    assert stage.run(0.0, LINGER_S + 99) == [(LINGER_S, Retire(OLD))]
    stage.hosted[OLD] = Hosted(OLD, LAYERS, FRONT, sessions=0)
    assert stage.tick(999.0) == [Drop(OLD)]


def test_a_fetch_that_failed_is_tried_again_later() -> None:
    stage = Stage(room_layers=3)
    [fetch] = stage.tick(0.0)
    assert isinstance(fetch, Fetch)
    stage.machine.done(fetch, 1.0, succeeded=False)
    assert stage.tick(RETRY_S) == []
    assert stage.tick(1.0 + RETRY_S) == [fetch]


def test_without_room_nobody_lets_go_of_the_last_copy() -> None:
    stage = Stage(seen("other", (OLD, BACK)), room_layers=0)
    stage.fetched()
    assert stage.run(1.0, 300) == []
    assert "other workers" in stage.machine.waits_for


def test_without_room_the_old_version_goes_first_where_others_have_it() -> None:
    stage = Stage(seen("other", (NEW, BACK)), seen("twin", (NEW, FRONT)), room_layers=0)
    stage.fetched()
    assert stage.run(1.0, SETTLE_S) == [(SETTLE_S, Retire(OLD))]
    stage.hosted[OLD] = Hosted(OLD, LAYERS, FRONT, sessions=1)
    assert stage.tick(9.0, announced=False) == []
    assert "sessions" in stage.machine.waits_for
    stage.hosted[OLD] = Hosted(OLD, LAYERS, FRONT, sessions=0)
    assert stage.tick(10.0, announced=False) == [Drop(OLD)]
    del stage.hosted[OLD]
    stage.room_layers = 3
    assert stage.tick(11.0, announced=False) == [Load(NEW, FRONT)]


def test_of_two_that_could_go_one_goes() -> None:
    """Each of them sees the other; only one of them is the first."""
    went = []
    names = [PeerId(f"worker {number}") for number in range(6)]
    for me in names:
        machine = RollMachine(me)
        live = [seen(name, (OLD, WHOLE)) for name in names]
        own = [Hosted(OLD, LAYERS, WHOLE, 0)]
        machine.tick(0.0, View(RELEASE, live, own, 0))
        machine.done(Fetch(NEW, WHOLE), 0.0, succeeded=True)
        actions = [machine.tick(float(second), View(RELEASE, live, own, 0)) for second in range(9)]
        went.append(any(actions))
    assert went.count(True) == 1


def test_who_went_is_waited_for_but_not_for_ever() -> None:
    """One of three has just let go; of the two that are left the first goes, but not yet."""
    went_s = []
    for number in range(20):
        stays = seen(f"p{number}", (OLD, WHOLE))
        stage = Stage(seen("gone", (OLD, WHOLE)), stays, room_layers=0, span=WHOLE)
        stage.fetched()
        stage.others = [stays]
        went_s += [at_s for at_s, action in stage.run(0.0, 300) if action == Retire(OLD)]
    assert 0 < len(went_s) < 20  # before some of the others, and after some
    assert all(at_s >= SWAP_LIMIT_S for at_s in went_s)


@pytest.mark.parametrize(
    ("spans", "whole"),
    [
        ([Span(0, 6)], True),
        ([Span(3, 6), Span(0, 3)], True),
        ([Span(0, 5), Span(1, 2), Span(4, 6)], True),
        ([Span(0, 3), Span(4, 6)], False),
        ([Span(1, 6)], False),
        ([Span(0, 5)], False),
        ([], False),
    ],
)
def test_covered_means_every_layer(spans: list[Span], whole: bool) -> None:
    live = [seen(f"p{number}", (NEW, span)) for number, span in enumerate(spans)]
    assert covers(live, NEW, LAYERS) == whole
    assert choose_version(RELEASE, live) == (NEW if whole else OLD)


def test_a_first_release_has_no_version_before_it() -> None:
    first = Release(PeerId("publisher"), "demo", 1, NEW, "", LAYERS)
    assert choose_version(first, []) == NEW
