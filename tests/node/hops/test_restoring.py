"""Standing in: a cache that is handed over is taken in from the donor, in order, or not at all."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from gennode.errors import GennodeError, RemoteError, ResourceError
from gennode.node.actions import HopKey, OpenJob, RestoreJob, Send
from gennode.node.hops.admission import HopLimits
from gennode.wire.messages import (
    CREDIT_BYTES,
    WINDOW_BYTES,
    Accept,
    CachePart,
    Close,
    Credit,
    Failed,
    Fed,
    Ping,
    Pong,
    Progress,
    Refuse,
)
from tests.node.conftest import (
    FIRST,
    MODEL,
    OWNER,
    SESSION,
    SPARE,
    THIRD,
)
from tests.node.hops.driven import (
    FRAME,
    ROWS,
    Driven,
    job,
    numbers,
    told,
    wide,
)

PART = FRAME[: CREDIT_BYTES // 2]


def _part(start: int, end: int, attempt: int = 7) -> CachePart:
    return CachePart(SESSION, attempt, 2, "fp32", start, end)


def _stand_in(**options: object) -> Driven:
    hop = Driven(**options)  # type: ignore[arg-type]
    hop.opens(wide(1, attempt=7, rebuild_until=1, donor=SPARE))
    return hop


def test_a_stand_in_takes_a_cache_in_and_says_how_far_it_is() -> None:
    hop = _stand_in()
    first = job(hop.hears(SPARE, _part(0, 64), PART))
    assert first == RestoreJob(MODEL, HopKey(SESSION, 2), 7, "fp32", 0, 64, PART)
    assert told(hop.does(first)) == [Fed(SESSION, 7, 1, 64)]
    second = job(hop.hears(SPARE, _part(64, 128), PART))
    assert hop.does(second) == [
        Send(SPARE, Credit(SESSION, 7, 2, CREDIT_BYTES)),
        Send(OWNER, Fed(SESSION, 7, 1, 128)),
    ]
    again = hop.hears(OWNER, wide(1, attempt=8))
    assert again == [Send(OWNER, Accept(SESSION, 8, 1, 128))]
    hop.attempt = 8
    assert numbers(hop.passes(0, 128, rows=1)) == [0]


def test_only_the_donor_may_give_a_cache_and_only_under_the_attempt_that_names_it() -> None:
    hop = _stand_in()
    for stranger in (OWNER, FIRST, THIRD):
        assert hop.hears(stranger, _part(0, 64), PART) == []
    assert hop.hears(SPARE, _part(0, 64, attempt=6), PART) == []
    assert hop.hears(SPARE, msgspec.structs.replace(_part(0, 64), session=b"x" * 16), PART) == []
    assert hop.hears(SPARE, msgspec.structs.replace(_part(0, 64), layer=4), PART) == []
    hop.hears(OWNER, Close(SESSION))
    assert hop.hears(SPARE, _part(0, 64), PART) == []
    without = Driven()
    without.opens(wide(1, attempt=7))
    assert without.hears(SPARE, _part(0, 64), PART) == []


def test_before_it_is_ready_it_takes_nothing() -> None:
    hop = Driven()
    hop.hears(OWNER, wide(1, attempt=7, donor=SPARE))
    assert hop.hears(SPARE, _part(0, 64), PART) == []


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (_part(64, 128), "parts of a cache are missing"),
        (_part(0, 9000), "reaches past position 8192"),
    ],
)
def test_a_part_that_does_not_fit_ends_the_handover(part: CachePart, reason: str) -> None:
    # An owner may have told the donor other terms: it is not cut off for that.
    hop = _stand_in()
    [failure] = told(hop.hears(SPARE, part, PART))
    assert isinstance(failure, Failed)
    assert (failure.attempt, failure.index) == (7, 1)
    assert reason in failure.reason
    assert hop.hears(SPARE, part, PART) == []  # said once
    assert hop.hears(SPARE, _part(0, 64), PART) == []


@pytest.mark.parametrize(
    ("part", "payload"),
    [(_part(0, 64), PART[:-1]), (_part(0, 1), PART), (_part(0, 64), b"")],
)
def test_a_part_takes_what_its_positions_take(part: CachePart, payload: bytes) -> None:
    # An empty one would count for nothing among what waits, and be work for the engine.
    hop = _stand_in()
    [failure] = told(hop.hears(SPARE, part, payload))
    assert isinstance(failure, Failed)
    assert "not as long as its positions" in failure.reason


def test_parts_of_no_cache_are_not_taken() -> None:
    hop = _stand_in()
    model = hop.machine._admission.models[MODEL]
    hop.machine.host(dataclasses.replace(model, cache_position_bytes=lambda _span: 0))
    [failure] = told(hop.hears(SPARE, _part(0, 64), b""))
    assert isinstance(failure, Failed)


def test_more_parts_than_were_agreed_are_not_held() -> None:
    hop = _stand_in()
    for number in range(WINDOW_BYTES // len(PART)):
        hop.hears(SPARE, _part(64 * number, 64 * number + 64), PART)
    [failure] = told(hop.hears(SPARE, _part(512, 576), PART))
    assert isinstance(failure, Failed)
    assert "more of a cache" in failure.reason


def test_parts_count_among_what_waits_for_the_engine() -> None:
    hop = _stand_in(limits=HopLimits(queued_bytes=2 * len(PART)))
    first = job(hop.hears(SPARE, _part(0, 64), PART))
    hop.hears(SPARE, _part(64, 128), PART)
    assert hop.machine.receive(OWNER, Ping(SESSION, 0), b"", 0.0) == [
        Send(OWNER, Pong(SESSION, 0, (Progress(2, -1, True),)))
    ]
    hop.does(first)
    assert isinstance(job(hop.hears(SPARE, _part(128, 192), PART)), RestoreJob)
    [failure] = told(hop.hears(SPARE, _part(192, 256), PART))
    assert isinstance(failure, Failed)
    assert "too much is waiting" in failure.reason


@pytest.mark.parametrize("error", [RemoteError("not a cache"), ResourceError("no memory")])
def test_a_cache_that_can_not_be_restored_is_told_and_never_used(error: GennodeError) -> None:
    hop = _stand_in()
    [failure] = told(hop.does(job(hop.hears(SPARE, _part(0, 64), PART)), error))
    assert isinstance(failure, Failed)
    assert (failure.attempt, failure.index, failure.reason) == (7, 1, str(error))
    assert hop.hears(SPARE, _part(0, 64), PART) == []
    assert isinstance(job(hop.hears(OWNER, wide(1, attempt=8))), OpenJob)  # anew, and empty


def test_a_part_that_comes_late_does_not_undo_steps() -> None:
    hop = _stand_in()
    hop.does(job(hop.hears(SPARE, _part(0, 128), FRAME)))
    hop.passes(0, 128)
    assert hop.hears(SPARE, _part(128, 192), PART) == []
    assert hop.hears(SPARE, _part(0, 128), FRAME) == []
    assert numbers(hop.passes(1, 256)) == [1]


def test_what_it_restored_it_can_not_replay() -> None:
    hop = _stand_in()
    hop.does(job(hop.hears(SPARE, _part(0, 128), FRAME)))
    hop.passes(0, 128)
    whole = wide(1, attempt=8, replay_positions=256, rebuild_until=2)
    assert isinstance(told(hop.hears(OWNER, whole))[0], Refuse)
    rest = msgspec.structs.replace(whole, replay_from=128)
    assert numbers(hop.hears(OWNER, rest)) == [0]


def test_a_part_that_comes_behind_a_replay_is_left_out() -> None:
    hop = _stand_in()
    hop.passes(0, rebuild=True)
    assert hop.hears(SPARE, _part(0, 64), PART) == []
    assert hop.takes(1, rebuild=True).position == ROWS
