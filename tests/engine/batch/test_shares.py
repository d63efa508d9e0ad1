"""Who has been served how much, and that time away earns no claim."""

from __future__ import annotations

import pytest

from gennode.engine.batch.shares import MAX_REMEMBERED, Shares


def test_the_least_served_of_those_that_wait_is_next() -> None:
    shares: Shares[str] = Shares()
    for who in "abc":
        shares.join(who)
    assert shares.least() == "a"
    for who, amount in (("a", 5.0), ("b", 2.0), ("c", 3.0)):
        shares.serve(who, amount)
    assert shares.least() == "b"
    assert [shares.lead(who) for who in "abc"] == [3.0, 0.0, 1.0]


def test_who_comes_late_starts_level_with_the_least_served() -> None:
    shares: Shares[str] = Shares()
    shares.join("old")
    shares.serve("old", 100.0)
    shares.join("new")
    assert shares.lead("new") == shares.lead("old") == 0.0


def test_leaving_for_a_moment_does_not_wash_service_away() -> None:
    shares: Shares[str] = Shares()
    for who in ("greedy", "modest"):
        shares.join(who)
    shares.serve("greedy", 50.0)
    shares.leave("greedy")
    shares.join("greedy")
    assert shares.lead("greedy") == 50.0
    assert shares.least() == "modest"


def test_who_waits_with_several_things_leaves_with_the_last() -> None:
    shares: Shares[str] = Shares()
    shares.join("a")
    shares.join("a")
    shares.leave("a")
    assert shares.least() == "a"
    shares.leave("a")
    with pytest.raises(ValueError, match="empty"):
        shares.least()


def test_what_is_remembered_of_those_that_left_is_bounded() -> None:
    shares: Shares[object] = Shares()
    shares.join("stays")
    for who in range(3 * MAX_REMEMBERED):
        shares.join(who)
        shares.serve(who, 1.0)
        shares.leave(who)
    assert len(shares._served) <= 2 * MAX_REMEMBERED + 1
    assert shares.lead("stays") == 0.0
