"""What one worker does to get from what it hosts to another span, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gennode.engine.toy import toy_manifest
from gennode.node.moves.move import (
    DRAIN_LIMIT_S,
    GAP_SETTLE_S,
    GIVE_UP_S,
    MAX_RETRY_S,
    RETRY_S,
    SETTLE_S,
    Fetch,
    Load,
    MoveAction,
    MoveMachine,
    Pool,
    Restore,
    Unload,
    View,
    Withdraw,
)
from gennode.wire.announcement import Announcement, Hosting
from gennode.wire.ids import Hop, PeerId, Span
from tests.node.conftest import peer

LAYERS = 8
MANIFEST = toy_manifest(LAYERS)
US, OTHER, THIRD, FOURTH = (peer(number) for number in range(11, 15))
LOW, HIGH = sorted((US, OTHER), key=lambda one: MoveMachine(one, MANIFEST.model)._rank(one))


def announced(one: PeerId, *spans: Span, spare: int = 0) -> Announcement:
    hosting = Hosting(MANIFEST.model, spans, spare, 0.001, 0.5, 16, "toy")
    return Announcement(one, 1, 1, 30.0, (hosting,), 0, False, "unknown", ())


def _layers(*spans: Span) -> frozenset[int]:
    return frozenset(layer for span in spans for layer in range(span.start, span.end))


@dataclass
class Stage:
    """A worker under test, what it has, and the others."""

    peer: PeerId = US
    loaded: set[int] = field(default_factory=set)
    leaving: set[int] = field(default_factory=set)
    used: set[int] = field(default_factory=set)
    capacity_layers: int = 4
    others: dict[PeerId, tuple[Span, ...]] = field(default_factory=dict)
    spare: dict[PeerId, int] = field(default_factory=dict)
    plan: list[Hop] = field(default_factory=list)
    now_s: float = 100.0

    def __post_init__(self) -> None:
        self.machine = MoveMachine(self.peer, MANIFEST.model)
        self.pool = Pool(MANIFEST.model, MANIFEST.shape)

    def tick(self, *, after_s: float = 0.0) -> list[MoveAction]:
        """What it does now. All but fetches and loads is done at once."""
        self.now_s += after_s
        own = _spans(self.loaded - self.leaving)
        spare = self.capacity_layers - len(self.loaded - self.leaving)
        live = (
            announced(self.peer, *own, spare=spare),
            *(announced(one, *held, spare=self.spare.get(one, 0)) for one, held in
              self.others.items()),
        )  # fmt: skip
        view = View(
            snapshot=self.pool.snapshot(live),
            live=live,
            plan=self.plan,
            loaded=frozenset(self.loaded),
            leaving=frozenset(self.leaving),
            used=frozenset(self.used),
            capacity_layers=self.capacity_layers,
        )
        actions = self.machine.tick(self.now_s, view)
        for action in actions:
            if isinstance(action, Withdraw):
                self.leaving |= _layers(action.span)
            if isinstance(action, Restore):
                self.leaving -= _layers(action.span)
        return actions

    def do(self, action: MoveAction, *, succeeded: bool = True) -> None:
        """End what takes time."""
        assert isinstance(action, Fetch | Load | Unload)
        layers = _layers(action.span)
        if succeeded and isinstance(action, Load):
            self.loaded |= layers
        if succeeded and isinstance(action, Unload):
            self.loaded -= layers
            self.leaving -= layers
        self.machine.done(action, self.now_s, succeeded=succeeded)

    def run(self, for_s: float, step_s: float = 0.5) -> list[MoveAction]:
        """Let time pass; all succeeds."""
        told = []
        for _ in range(int(for_s / step_s)):
            for action in self.tick(after_s=step_s):
                told.append(action)
                if isinstance(action, Fetch | Load | Unload):
                    self.do(action)
        return told


def _spans(layers: Iterable[int]) -> tuple[Span, ...]:
    return tuple(Span(layer, layer + 1) for layer in sorted(layers))


def stage(
    held: Span, target: Span, *, capacity: int = 4, others: Sequence[Span] = (Span(0, 8),)
) -> Stage:
    """Us at `held` with a plan to go to `target`; others that stay where they are."""
    names = (OTHER, THIRD, FOURTH)
    plan = [Hop(US, target)]
    return Stage(
        loaded=set(_layers(held)), capacity_layers=capacity, plan=plan,
        others={name: (span,) for name, span in zip(names, others, strict=False)},
    )  # fmt: skip


def test_nothing_happens_without_a_plan_or_a_gap() -> None:
    scene = stage(Span(0, 4), Span(0, 4))
    scene.plan = []
    assert scene.run(60) == []
    assert (scene.machine.target, scene.machine.waits_for) == (None, "")


def test_with_room_all_is_loaded_before_anything_goes() -> None:
    scene = stage(Span(0, 2), Span(4, 6))
    assert scene.tick() == [Fetch(Span(4, 6))]
    assert "on their way" in scene.machine.waits_for
    assert scene.tick() == []
    scene.do(Fetch(Span(4, 6)))
    assert scene.tick() == [Load(Span(4, 5))]
    scene.do(Load(Span(4, 5)))
    assert scene.tick() == [Load(Span(5, 6))]
    scene.do(Load(Span(5, 6)))
    rest = scene.run(3 * SETTLE_S)
    assert rest == [Withdraw(Span(0, 2)), Unload(Span(0, 2))]
    assert scene.loaded == {4, 5}
    assert scene.run(60) == []
    assert scene.machine.waits_for == ""


def test_without_room_it_leaves_first_what_others_host_and_drains() -> None:
    scene = stage(Span(0, 4), Span(4, 8))
    scene.used = {2}
    told = scene.run(2 * SETTLE_S + 6)
    assert told[:2] == [Fetch(Span(4, 8)), Withdraw(Span(0, 4))]
    assert Unload(Span(0, 2)) in told  # what no session uses goes first
    assert scene.loaded >= {2}
    assert scene.machine.waits_for == "sessions still use layers 2:3"
    told = scene.run(DRAIN_LIMIT_S)
    assert Unload(Span(2, 3)) in told
    assert scene.loaded == {4, 5, 6, 7}


def test_the_last_copy_stays() -> None:
    scene = stage(Span(0, 4), Span(4, 8), others=(Span(4, 8), Span(2, 4)))
    scene.run(30)
    assert scene.loaded >= {0, 1}
    assert "0:2 have to be hosted elsewhere first" in scene.machine.waits_for
    scene.others[FOURTH] = (Span(0, 2),)
    scene.run(60)
    assert scene.loaded == {4, 5, 6, 7}


def test_of_two_who_would_leave_the_last_in_line_stays() -> None:
    for us, them, leaves in ((LOW, HIGH, True), (HIGH, LOW, False)):
        plan = [Hop(us, Span(4, 8)), Hop(them, Span(4, 8))]
        others: dict[PeerId, tuple[Span, ...]] = {them: (Span(0, 4),), THIRD: (Span(4, 8),)}
        scene = Stage(us, set(range(4)), others=others, plan=plan)
        scene.run(60)
        assert (scene.loaded == {4, 5, 6, 7}) is leaves
        assert (scene.loaded == {0, 1, 2, 3}) is not leaves


def test_who_left_too_early_takes_it_back() -> None:
    scene = stage(Span(0, 4), Span(4, 8))
    scene.used = {0, 1, 2, 3}
    scene.run(SETTLE_S + 3)
    assert scene.leaving == {0, 1, 2, 3}
    scene.others[OTHER] = (Span(2, 8),)
    assert scene.tick() == [Restore(Span(0, 2))]
    assert scene.leaving == {2, 3}


def test_a_new_target_is_taken_up_midway() -> None:
    scene = stage(Span(0, 4), Span(4, 8))
    scene.used = {0, 1, 2, 3}
    scene.run(SETTLE_S + 3)
    assert scene.leaving == {0, 1, 2, 3}
    scene.plan = [Hop(US, Span(0, 4))]
    assert scene.tick() == [Restore(Span(0, 4))]
    assert scene.run(60) == []
    assert scene.loaded == {0, 1, 2, 3}


def test_failures_are_tried_again_less_and_less_often() -> None:
    scene = stage(Span(0, 2), Span(4, 6))
    waits = []
    for _ in range(9):
        [fetch] = scene.tick()
        scene.do(fetch, succeeded=False)
        before_s = scene.now_s
        while not scene.tick(after_s=RETRY_S / 2):
            continue
        waits.append(scene.now_s - before_s)
        scene.do(Fetch(Span(4, 6)), succeeded=False)
        scene.now_s += MAX_RETRY_S
    assert waits[0] < waits[1] < waits[2]
    assert max(waits) <= MAX_RETRY_S
    scene.do(scene.tick()[0])
    [load] = scene.tick()
    assert load == Load(Span(4, 5))
    scene.do(load, succeeded=False)  # the file may be damaged: it is fetched anew
    assert scene.tick(after_s=2 * RETRY_S) == [Fetch(Span(4, 5)), Load(Span(5, 6))]


def test_more_than_memory_holds_is_said() -> None:
    scene = stage(Span(0, 4), Span(0, 6))
    scene.run(30)
    assert scene.machine.waits_for == "there is no memory for layers 4:6"
    assert scene.loaded == {0, 1, 2, 3}


def gap(*, capacity: int = 4) -> Stage:
    """Nobody hosts 4:6; we could, another one could not."""
    scene = Stage(loaded={2, 3}, capacity_layers=capacity, used={2, 3})
    scene.others = {OTHER: (Span(0, 4),), THIRD: (Span(6, 8),)}
    return scene


def test_a_gap_is_closed_within_moments() -> None:
    scene = gap()
    assert scene.tick() == []
    assert scene.tick(after_s=GAP_SETTLE_S) == [Fetch(Span(4, 6))]
    scene.do(Fetch(Span(4, 6)))
    assert scene.run(1.5) == [Load(Span(4, 5)), Load(Span(5, 6))]
    assert scene.run(60) == []
    assert scene.loaded == {2, 3, 4, 5}


def test_a_gap_is_closed_with_what_others_can_spare() -> None:
    scene = gap(capacity=2)
    told = scene.run(8)
    assert Withdraw(Span(2, 4)) in told
    assert scene.loaded == {4, 5}
    assert scene.run(60) == []


def test_a_gap_that_somebody_else_closes_is_left_to_them_for_a_while() -> None:
    scene = gap()
    scene.others[OTHER], scene.spare = (Span(0, 4),), {OTHER: 4, THIRD: 2}
    scene.tick()
    scene.capacity_layers = 2  # who need not give anything up goes first
    assert scene.run(GIVE_UP_S - 1) == []
    assert Load(Span(4, 5)) in scene.run(4 * GIVE_UP_S)


def test_a_gap_comes_before_the_plan() -> None:
    scene = gap(capacity=2)
    scene.plan = [Hop(US, Span(0, 2))]
    scene.run(GAP_SETTLE_S + 0.5)
    assert scene.machine.target == Span(4, 6)
    scene.run(20)
    assert scene.loaded == {4, 5}  # and stays: nobody else has them
    assert "4:6 have to be hosted elsewhere" in scene.machine.waits_for


def test_nobody_leaves_by_plan_while_another_closes_a_gap() -> None:
    scene = stage(Span(0, 2), Span(2, 4), capacity=2, others=(Span(0, 4), Span(4, 7)))
    scene.spare = {THIRD: 1}
    assert scene.run(SETTLE_S + 2) == [Fetch(Span(2, 4))]
    scene.others[THIRD] = (Span(4, 8),)
    assert Withdraw(Span(0, 2)) in scene.run(SETTLE_S + 2)
    scene.run(20)
    assert scene.loaded == {2, 3}
