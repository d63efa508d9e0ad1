"""All that a plan depends on, as its publisher states it and everybody else can check it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gennode.wire.coordinates import Coordinate
from gennode.wire.fields import Counter, Model, Rate
from gennode.wire.ids import BoundedPeerId, LayerIndex, Span

MAX_SNAPSHOT_PEERS = 16_384  # as many as a directory holds

# What divides must not be 0, and what multiplies must not overflow.
_Time = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
_Bytes = Annotated[int, msgspec.Meta(ge=1, le=1 << 50)]


class LayerCost(msgspec.Struct, frozen=True, array_like=True):
    """What one layer of a model takes of one machine: `fixed_s + tokens * token_s` for a pass.

    `fixed_s` is reading the weights, which all tokens of a pass share; `token_s` what each of
    them adds (arithmetic, reading its cache).
    """

    fixed_s: _Time
    token_s: _Time

    def pass_s(self, tokens: float) -> float:
        """Seconds of one layer for a pass over so many tokens, one per session."""
        return self.fixed_s + tokens * self.token_s


class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """A peer that could host layers, and what it would be worth.

    `capacity_layers`: the most that it would load, `memory_bytes` what it gives for weights and
    caches, `max_sessions` the most at a time. `cost` is per layer; a pass takes `pass_s` more,
    however few its layers. `upload_bytes_per_s`: 0 if it is not known. `held`: what it hosts
    now. `move_s`: what loading one more layer takes, fetched from others.
    """

    peer: BoundedPeerId
    capacity_layers: LayerIndex
    memory_bytes: Counter
    max_sessions: Counter
    cost: LayerCost
    pass_s: _Time
    upload_bytes_per_s: Rate
    coordinate: Coordinate
    held: Span = Span(0, 0)
    move_s: _Time = 0.0


class Demand(msgspec.Struct, frozen=True, array_like=True):
    """What a model asks of those that host it, and what its users ask of a step.

    `layer_bytes`: weights of a layer. `session_bytes`: a layer's cache for one session of the
    planned length. `frame_bytes`: one token from hop to hop. `step_limit_s`: how long a token
    may take around the whole route; what comes later is worth less (0.2 s is five tokens a
    second, about as fast as people read).
    """

    layers: LayerIndex
    layer_bytes: _Bytes
    session_bytes: _Bytes
    frame_bytes: _Bytes
    step_limit_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 0.2


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """A pool at one moment. Peers are distinct; their order means nothing.

    `epoch` numbers the snapshots of a model: seconds since 1970 in units of a plan's pace.
    """

    model: Model
    epoch: Counter
    demand: Demand
    peers: Annotated[tuple[Candidate, ...], msgspec.Meta(max_length=MAX_SNAPSHOT_PEERS)]
