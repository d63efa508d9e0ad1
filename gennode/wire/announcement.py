"""What a peer signs about itself: what it hosts, what its machine can do, where it is."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gennode.wire.beats import LINK_BYTES
from gennode.wire.coordinates import Coordinate
from gennode.wire.fields import Address, Counter, Model, Rate, Reach, Seconds, Text
from gennode.wire.ids import BoundedPeerId, LayerIndex, ModelId, Span

MAX_HOSTED_MODELS = 8  # an old and a new version of a few models: more would share one engine

SLOWEST_LAYER_S = 10.0  # a route of a few such layers takes minutes for a token


class Hosting(msgspec.Struct, frozen=True, array_like=True):
    """What a peer hosts of one model: disjoint spans in rising order.

    `layer_time_s`: measured seconds per layer for one token. `spare_layers`: how many more
    layers it has room for, each taking `load_time_s` to load; `loads_on_request`: a session may
    ask for them, since their weights are here. `max_sessions`: how many it
    takes on in all, whatever their models. `further_time_s`: what each further token in the same
    pass adds per layer; None: as much as the first. `price`: credits that it asks per layer for
    a million tokens. `is_fixed`: whoever runs the peer chose these layers, so no plan moves it.
    """

    model: Model
    spans: Annotated[tuple[Span, ...], msgspec.Meta(max_length=64)]
    spare_layers: LayerIndex
    layer_time_s: Seconds
    load_time_s: Seconds
    max_sessions: Counter
    compute_class: Text
    further_time_s: Seconds | None = None
    price: Counter = 0
    is_fixed: bool = False
    loads_on_request: bool = True

    def __post_init__(self) -> None:
        end = 0
        for span in self.spans:
            if span.start >= span.end:
                raise ValueError("a span without layers")
            if span.start < end:
                raise ValueError("spans out of order")
            end = span.end

    @property
    def serves(self) -> bool:
        """Whether it takes sessions at all, and computes a layer while somebody waits."""
        return self.max_sessions > 0 and self.layer_time_s <= SLOWEST_LAYER_S

    @property
    def cold_layers(self) -> int:
        """How many more layers it would load on request."""
        return self.spare_layers if self.loads_on_request else 0


class Machine(msgspec.Struct, frozen=True, array_like=True):
    """What a peer measured of its machine, so that a plan can tell what it would be worth.

    `memory_bytes`: what it gives for weights and caches. `flops_per_s`: of large matrix products.
    `memory_bytes_per_s`: at which weights are read. `pass_s`: what a pass costs however few its
    layers. `upload_bytes_per_s`: to other peers; 0 if it is not known yet.
    """

    memory_bytes: Counter
    flops_per_s: Rate
    memory_bytes_per_s: Rate
    pass_s: Seconds
    upload_bytes_per_s: Rate
    coordinate: Coordinate


class Announcement(msgspec.Struct, frozen=True, array_like=True):
    """What a peer signs about itself (domain `announcement`).

    `sequence` grows with each one a peer makes; the highest wins. `instance`: when this run of
    the peer began, in milliseconds since the epoch by its own clock; two runs of one key at a
    time show by it. It lives `lifetime_s` after it was made. `sessions`: how many pass through
    it now. `relay`: it relays traffic for peers behind NATs. `reach`: how others get to it, as
    far as it knows. Nothing hosted and no relay says goodbye. `chain_end`: of the chain whose
    links show that it still lives (`beats.py`); zeros if it will show none. `rival`: the instance
    of another node that runs with this key at the same time, once it was noticed; else 0.
    `machine`: None if it has not measured any.
    """

    peer: BoundedPeerId
    sequence: Counter
    instance: Counter
    lifetime_s: Annotated[float, msgspec.Meta(ge=0, le=3600)]
    hosting: Annotated[tuple[Hosting, ...], msgspec.Meta(max_length=MAX_HOSTED_MODELS)]
    sessions: Counter
    relay: bool
    reach: Reach
    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=16)]
    chain_end: Annotated[bytes, msgspec.Meta(min_length=LINK_BYTES, max_length=LINK_BYTES)] = bytes(
        LINK_BYTES
    )
    rival: Counter = 0
    machine: Machine | None = None

    def __post_init__(self) -> None:
        if len({hosting.model for hosting in self.hosting}) < len(self.hosting):
            raise ValueError("one model hosted twice")

    @property
    def is_goodbye(self) -> bool:
        """Whether the peer has nothing to offer any more."""
        return not self.hosting and not self.relay

    def hosting_of(self, model: ModelId) -> Hosting | None:
        """What the peer hosts of one model."""
        return next((one for one in self.hosting if one.model == model), None)
