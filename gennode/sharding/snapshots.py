"""What a plan depends on, drawn from what peers announce: bounded, and in one order."""

from __future__ import annotations

from collections.abc import Iterable

from gennode.sharding.capacity import (
    FLOAT32_BYTES,
    PLANNED_POSITIONS,
    PLANNED_SESSIONS,
    SLOWEST_S,
    demand_of,
    hosting_bytes,
    layer_cost,
    layers_that_fit,
    within,
)
from gennode.wire.announcement import Announcement, Hosting, Machine
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import ModelId, PeerId, Span
from gennode.wire.manifest import ModelShape
from gennode.wire.snapshot import MAX_SNAPSHOT_PEERS, Candidate, LayerCost, Snapshot

# No machine is quicker; a peer that claims to be (0 s, say) must not outweigh all others.
FASTEST_LAYER_S = 1e-6
FASTEST_TOKEN_S = 1e-9  # a token in a pass with others, through the smallest layer
MAX_UPLOAD_BYTES_PER_S = 1e12

# Where a peer is that never measured it: as far from all others as a third of the world, or it
# would pay to measure nothing.
FAR_AWAY = Coordinate(height_s=0.05)

_MAX_MEMORY_BYTES = 1 << 53  # as large as a message may state it

# What a weight takes in the compute classes that our engines have; a scale per output adds less
# than a thousandth. `int7` is int8 where the processor has no instruction for it.
_WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "int7": 1.0}

# In GGUF: bytes by weights of a block,
# https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
_GGUF_WEIGHT_BYTES = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q6_k": 210 / 256, "q5_k": 176 / 256,
    "q4_k": 144 / 256, "q4_0": 18 / 32,
}  # fmt: skip
_GGUF, _GGUF_CACHE_BYTES = "gguf-", 2  # llama.cpp keeps keys and values in fp16, on CPUs as well

# Of a number in a cache of 8 bits: each head's row has a scale in fp16, and 32 numbers or more.
_SHORT_CACHE, _SHORT_CACHE_BYTES = "kv8", 1.07


def candidate_of(
    announcement: Announcement,
    model: ModelId,
    shape: ModelShape,
    *,
    weight_bytes: float = FLOAT32_BYTES,
    number_bytes: float = FLOAT32_BYTES,
    positions: int = PLANNED_POSITIONS,
) -> Candidate | None:
    """What a peer would be worth for a model; None if it neither hosts nor offers to in earnest.

    What the peer measured on this model is believed before what follows from its machine.
    Claims are cut to what is possible, and room that the peer's own memory contradicts is not
    counted. Never raises.
    """
    hosting = announcement.hosting_of(model)
    if hosting is None or not hosting.serves:
        return None
    planned = min(positions, shape.max_positions)
    held = _held(hosting, shape)
    held_layers = sum(span.layers for span in held)
    memory = _memory_bytes(
        announcement.machine, hosting, shape, weight_bytes, number_bytes, planned
    )
    spare_layers = hosting.spare_layers
    if memory:
        fitting = layers_that_fit(
            shape,
            memory,
            sessions=1,
            positions=planned,
            weight_bytes=weight_bytes,
            number_bytes=number_bytes,
        )
        spare_layers = min(spare_layers, max(0, fitting - held_layers))
    capacity = min(shape.layers, held_layers + spare_layers)
    if not memory:
        memory = hosting_bytes(
            shape,
            capacity,
            sessions=PLANNED_SESSIONS,
            positions=planned,
            weight_bytes=weight_bytes,
            number_bytes=number_bytes,
        )
    machine = announcement.machine or _UNMEASURED
    upload = machine.upload_bytes_per_s
    return Candidate(
        peer=announcement.peer,
        capacity_layers=capacity,
        memory_bytes=min(memory, _MAX_MEMORY_BYTES),
        max_sessions=hosting.max_sessions,
        cost=_cost(announcement.machine, hosting, shape, weight_bytes, number_bytes, planned),
        pass_s=within(machine.pass_s, 0.0, SLOWEST_S),
        upload_bytes_per_s=within(upload, 1.0, MAX_UPLOAD_BYTES_PER_S) if upload > 0 else 0.0,
        coordinate=machine.coordinate if machine.coordinate.is_measured else FAR_AWAY,
        held=max(held, key=lambda span: (span.layers, -span.start), default=Span(0, 0)),
        move_s=within(hosting.load_time_s, 0.0, SLOWEST_S),
    )


def snapshot_of(
    announcements: Iterable[Announcement],
    *,
    model: ModelId,
    shape: ModelShape,
    epoch: int,
    step_limit_s: float = 0.2,
    weight_bytes: float = FLOAT32_BYTES,
    number_bytes: float = FLOAT32_BYTES,
    positions: int = PLANNED_POSITIONS,
    with_fixed: bool = False,
) -> Snapshot:
    """The pool of a model: who hosts or offers to, in order of id.

    Peers whose layers are fixed are nobody's to plan; `with_fixed` counts them in all the same.

    Announcements may come in any order; of one peer's the one with the highest sequence counts.
    Past as many peers as a snapshot holds, those with the highest ids are left out.
    """
    latest: dict[PeerId, Announcement] = {}
    for one in announcements:
        hosting = one.hosting_of(model)
        if hosting is not None and hosting.is_fixed and not with_fixed:
            continue
        known = latest.get(one.peer)
        if known is None or one.sequence > known.sequence:
            latest[one.peer] = one
    candidates = (
        candidate_of(
            latest[peer],
            model,
            shape,
            weight_bytes=weight_bytes,
            number_bytes=number_bytes,
            positions=positions,
        )
        for peer in sorted(latest)
    )
    demand = demand_of(
        shape,
        weight_bytes=weight_bytes,
        number_bytes=number_bytes,
        positions=positions,
        step_limit_s=step_limit_s,
    )
    peers = tuple(one for one in candidates if one is not None and one.capacity_layers)
    return Snapshot(model=model, epoch=epoch, demand=demand, peers=peers[:MAX_SNAPSHOT_PEERS])


_UNMEASURED = Machine(0, 0.0, 0.0, 0.0, 0.0, Coordinate())


def _held(hosting: Hosting, shape: ModelShape) -> list[Span]:
    """What a peer claims to hold of layers that there are; spans that touch are one."""
    held: list[Span] = []
    for span in hosting.spans:
        start, end = span.start, min(span.end, shape.layers)
        if held and start == held[-1].end < end:
            held[-1] = Span(held[-1].start, end)
        elif start < end:
            held.append(Span(start, end))
    return held


def _memory_bytes(
    machine: Machine | None,
    hosting: Hosting,
    shape: ModelShape,
    weight_bytes: float,
    number_bytes: float,
    positions: int,
) -> int:
    """What a peer gives, in the plan's formats; 0 if it does not say.

    A peer whose layers take half as much as planned, with their caches, has room for twice as
    many.
    """
    if machine is None:
        return 0
    planned = (weight_bytes, number_bytes)
    each, own = (
        hosting_bytes(
            shape,
            1,
            sessions=PLANNED_SESSIONS,
            positions=positions,
            weight_bytes=weights,
            number_bytes=numbers,
        )
        for weights, numbers in (planned, formats(hosting.compute_class) or planned)
    )
    return max(0, int(machine.memory_bytes * (each / own)))


def formats(compute_class: str) -> tuple[float, float] | None:
    """Bytes of a weight, and of a number of the cache, in a compute class; None if unknown.

    A class is `weights-device`, `weights-kv8-device` or `gguf-kind-device`. Caches that are
    neither in 8 bits nor llama.cpp's are in fp32 on CPUs, whatever the weights are in, and else
    as wide as products.
    """
    stored, _, device = compute_class.rpartition("-")
    if stored.startswith(_GGUF):
        kind = _GGUF_WEIGHT_BYTES.get(stored.removeprefix(_GGUF))
        return None if kind is None else (kind, _GGUF_CACHE_BYTES)
    name, _, cache = stored.partition("-")
    weights = _WEIGHT_BYTES.get(name)
    if weights is None:
        return None
    if cache == _SHORT_CACHE:
        return weights, _SHORT_CACHE_BYTES
    return weights, 4 if device == "cpu" or weights == 4 else 2


def _cost(
    machine: Machine | None,
    hosting: Hosting,
    shape: ModelShape,
    weight_bytes: float,
    number_bytes: float,
    positions: int,
) -> LayerCost:
    """What the peer measured; what follows from its machine if it did not (0 s).

    A further token is only taken to be cheaper than the first if the peer says so: not every
    engine computes the tokens of a pass together.
    """
    first_s, further_s = hosting.layer_time_s, hosting.further_time_s
    if machine is not None and not first_s > 0:
        weights, numbers = formats(hosting.compute_class) or (weight_bytes, number_bytes)
        cost = layer_cost(
            shape, machine, weight_bytes=weights, number_bytes=numbers, positions=positions
        )
        first_s = cost.pass_s(1)
        further_s = None if further_s is None else cost.token_s
    first_s = within(first_s, FASTEST_LAYER_S, SLOWEST_S)
    # A further token never costs more than the first, but measurements waver.
    token_s = first_s if further_s is None else within(further_s, FASTEST_TOKEN_S, first_s)
    return LayerCost(fixed_s=first_s - token_s, token_s=token_s)
