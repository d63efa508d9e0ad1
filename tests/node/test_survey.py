"""What people are shown of a placement is what workers decide by."""

from __future__ import annotations

import msgspec
import pytest

from gennode.node.survey import survey_of
from gennode.sharding.plan.plan import plan
from gennode.wire.ids import PeerId, Span
from tests.sharding.held import candidate, snapshot


def test_a_good_placement_needs_no_moves() -> None:
    pool = snapshot(candidate("a", (0, 4)), candidate("b", (4, 8)))
    seen = survey_of(pool, pool)
    assert not seen.is_due
    assert not seen.missing
    assert seen.rate_now_token_s == pytest.approx(seen.rate_planned_token_s, rel=1e-3)
    assert [one.hosts for one in seen.peers] == [Span(0, 4), Span(4, 8)]
    assert [one.share.layers for one in seen.peers] == [4, 4]
    assert {one.pipeline for one in seen.peers} == {1}
    assert msgspec.json.decode(msgspec.json.encode(seen))["layers"] == 8


def test_what_lacks_is_said_and_a_spare_worker_is_in_no_pipeline() -> None:
    lacking = survey_of(snapshot(candidate("a", (0, 4))), snapshot(candidate("a", (0, 4))))
    assert lacking.rate_now_token_s == 0
    assert "4 more" in lacking.missing
    assert not lacking.is_due
    slow = candidate("c", (0, 1), 1, layer_s=5.0)
    pool = snapshot(candidate("a", (0, 4)), candidate("b", (4, 8)), slow)
    seen = survey_of(pool, pool)
    [spare] = [one for one in seen.peers if one.peer == PeerId("c")]
    assert spare.pipeline == 0
    assert spare.should_host.layers == 1


def test_who_is_fixed_is_shown_and_not_planned() -> None:
    whole = snapshot(candidate("a", (0, 4)), candidate("b", (4, 8)))
    movable = snapshot(candidate("a", (0, 4)))
    seen = survey_of(whole, movable)
    assert len(seen.peers) == 2
    assert not seen.is_due
    assert seen.why == plan(movable).missing
