"""The pace of a hop: the median of its last tokens' times."""

from __future__ import annotations

from gennode.node.hops.pace import TOLD_TOKENS, Pace


def _tokens(pace: Pace, first: int, times_s: list[float]) -> None:
    for number, time_s in enumerate(times_s, start=first):
        pace.came(number, 100.0)
        pace.went(number, 100.0 + time_s)


def test_there_is_none_before_a_token_went_through() -> None:
    pace = Pace()
    pace.came(0, 1.0)
    assert pace.token_s == 0


def test_it_is_the_median_of_the_last_tokens() -> None:
    pace = Pace()
    _tokens(pace, 0, [1.0, 9.0, 2.0])
    assert pace.token_s == 2.0
    _tokens(pace, 3, [4.0] * TOLD_TOKENS)
    assert pace.token_s == 4.0


def test_steps_that_were_lost_are_forgotten() -> None:
    pace = Pace()
    pace.came(0, 1.0)
    pace.came(1, 2.0)
    pace.went(1, 3.0)  # the first was overtaken
    assert pace.token_s == 1.0
    pace.came(2, 4.0)
    pace.restart()
    pace.went(2, 9.0)
    assert pace.token_s == 1.0
