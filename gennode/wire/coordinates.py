"""Where a peer is on the network: a point whose distances to others predict round trips."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec

# Light takes 0.07 s to the antipodes, and a bad line adds a few seconds.
MAX_AXIS_S = 10.0
_Axis = Annotated[float, msgspec.Meta(ge=-MAX_AXIS_S, le=MAX_AXIS_S)]
_Height = Annotated[float, msgspec.Meta(ge=0, le=MAX_AXIS_S)]


class Coordinate(msgspec.Struct, frozen=True, array_like=True):
    """A point in Vivaldi's plane with heights, in seconds of round trip.

    `height_s` is what every packet spends on the peer's own line, however near the other is.
    `error`: the share by which its distances are off, 0 to 1; 1 if nothing was measured yet.
    Source: Dabek, Cox, Kaashoek, Morris, "Vivaldi: A Decentralized Network Coordinate System",
    SIGCOMM 2004, section 5.4.
    """

    x_s: _Axis = 0.0
    y_s: _Axis = 0.0
    height_s: _Height = 0.0
    error: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0

    @property
    def is_measured(self) -> bool:
        """Whether its peer has measured anything: else it is the origin, where nobody need be."""
        return self.error < 1.0

    def plane_s(self, other: Coordinate) -> float:
        """Seconds between the two points, without the heights."""
        dx_s, dy_s = self.x_s - other.x_s, self.y_s - other.y_s
        return math.sqrt(dx_s * dx_s + dy_s * dy_s)

    def rtt_s(self, other: Coordinate) -> float:
        """Predicted seconds to `other` and back. The same bits from both ends and on every machine:
        the square root is correctly rounded, which `math.hypot` need not be."""
        return self.plane_s(other) + (self.height_s + other.height_s)
