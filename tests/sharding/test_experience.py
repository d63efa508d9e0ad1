"""What an owner learnt of workers counts until their announcements tell it, or until it fades."""

from __future__ import annotations

from gennode.sharding.experience import FADE_S, MAX_FAILED, MAX_FAILURES, Experience
from gennode.sharding.preferences import Preferences
from gennode.wire.ids import PeerId

A, B = PeerId("a"), PeerId("b")


def opened(experience: Experience, **sequences: int) -> dict[PeerId, int]:
    known = {PeerId(name): sequence for name, sequence in sequences.items()}
    return dict(experience.added_to(Preferences(), known, 0.0).opened)


def failures(experience: Experience, now_s: float) -> dict[PeerId, float]:
    return dict(experience.added_to(Preferences(), {}, now_s).failures)


def test_own_sessions_count_until_the_next_announcement() -> None:
    learnt = Experience()
    learnt.opened(A, 7)
    learnt.opened(A, 7)
    learnt.opened(B, 1)
    learnt.closed(A, 7)
    assert opened(learnt, a=7, b=1) == {A: 1, B: 1}
    assert opened(learnt, a=8, b=1) == {B: 1}
    learnt.closed(B, 2)
    assert opened(learnt, a=8, b=2) == {B: -1}
    assert opened(learnt, a=8) == {}


def test_failures_fade() -> None:
    learnt = Experience()
    learnt.failed(A, 0.0)
    assert failures(learnt, 0.0) == {A: 1.0}
    learnt.failed(A, FADE_S / 2)
    assert failures(learnt, FADE_S / 2) == {A: 1.5}
    assert failures(learnt, FADE_S) == {A: 0.5}
    assert failures(learnt, 2 * FADE_S) == {}


def test_failures_take_a_bounded_memory() -> None:
    learnt = Experience()
    for _ in range(3 * MAX_FAILURES):
        learnt.failed(A, 0.0)
    assert failures(learnt, 0.0) == {A: MAX_FAILURES}
    for index in range(MAX_FAILED):
        learnt.failed(PeerId(str(index)), 0.0)
    assert len(failures(learnt, 0.0)) == MAX_FAILED
    assert A not in failures(learnt, 0.0)


def test_other_preferences_stay() -> None:
    asked = Preferences(seconds_per_credit=2.0, standing={A: 0.5})
    learnt = Experience().added_to(asked, {}, 0.0)
    assert (learnt.seconds_per_credit, learnt.standing) == (2.0, {A: 0.5})
