"""Coordinates predict round trips, alike from both ends, and none from a peer breaks arithmetic."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.wire.coordinates import MAX_AXIS_S, Coordinate

axes = st.floats(-MAX_AXIS_S, MAX_AXIS_S)
heights = st.floats(0, MAX_AXIS_S)
coordinates = st.builds(Coordinate, x_s=axes, y_s=axes, height_s=heights, error=st.floats(0, 1))


def decoded(*fields: float) -> Coordinate:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Coordinate)


def test_a_round_trip_is_the_way_in_the_plane_and_both_heights() -> None:
    here, there = Coordinate(0.01, 0.02, 0.003), Coordinate(0.04, 0.06, 0.004)
    assert here.plane_s(there) == pytest.approx(0.05)
    assert here.rtt_s(there) == pytest.approx(0.057)


@given(coordinates, coordinates)
def test_it_is_the_same_there_and_back_and_finite(here: Coordinate, there: Coordinate) -> None:
    assert here.rtt_s(there) == there.rtt_s(here)
    assert 0 <= here.rtt_s(there) < 50
    assert decoded(*msgspec.structs.astuple(here)) == here


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -10.1, 10.1])
@pytest.mark.parametrize("place", range(4))
def test_a_peer_can_send_none_that_is_out_of_bounds(value: float, place: int) -> None:
    fields = [0.0, 0.0, 0.0, 0.5]
    fields[place] = value
    with pytest.raises(msgspec.ValidationError):
        decoded(*fields)


def test_one_that_was_never_measured_is_known_for_it() -> None:
    assert not Coordinate().is_measured
    assert Coordinate(error=0.9).is_measured
