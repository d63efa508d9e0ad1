"""What a plan's pipelines leave over: whom to give which layers, and what a pool lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gennode.wire.ids import Hop, PeerId, Span
from gennode.wire.snapshot import Candidate, Demand

# A spare machine keeps room for the caches of so many sessions, if it has it.
SPARE_SESSIONS = 4


def room_layers(candidate: Candidate, demand: Demand, sessions: int = 0) -> int:
    """How many layers a machine has room for, with the caches of so many sessions."""
    each_bytes = demand.layer_bytes + sessions * demand.session_bytes
    fits = candidate.memory_bytes // each_bytes
    return max(0, min(candidate.capacity_layers, demand.layers, fits))


def spread(
    peers: Sequence[Candidate],
    shares: Mapping[PeerId, Span],
    demand: Demand,
    sessions: int = SPARE_SESSIONS,
    *,
    full: bool = True,
) -> tuple[Hop, ...]:
    """What every peer with room loads, in order of id: its share, or the weakest layers.

    Layers without a host come first, then those whose hosts compute least; of equal ones, those
    that a peer holds already. `sessions`: for so many it keeps room for caches, if it has it; with
    `full` not before all layers have a host, so as many are covered as there is room for.
    """
    hosts = [Hop(peer, span) for peer, span in shares.items()]
    speeds = {one.peer: 1 / max(1e-9, one.cost.fixed_s + one.cost.token_s) for one in peers}
    supply, copies = [0.0] * demand.layers, [0] * demand.layers
    for hop in sorted(hosts, key=lambda hop: hop.peer):
        _supply(hop, speeds[hop.peer], supply, copies)
    spare = [one for one in peers if one.peer not in shares and room_layers(one, demand)]
    for one in sorted(spare, key=lambda one: (-room_layers(one, demand), one.peer)):
        width = room_layers(one, demand)
        if not full or all(copies):
            width = room_layers(one, demand, sessions) or width
        hop = Hop(one.peer, _weakest(supply, copies, width, one.held))
        _supply(hop, speeds[one.peer], supply, copies)
        hosts.append(hop)
    return tuple(sorted(hosts, key=lambda hop: hop.peer))


def _supply(hop: Hop, speed: float, supply: list[float], copies: list[int]) -> None:
    for layer in range(*hop.span):
        supply[layer] += speed
        copies[layer] += 1


def _weakest(supply: Sequence[float], copies: Sequence[int], width: int, held: Span) -> Span:
    """The window with most layers that nobody hosts, and then with the least supply."""
    hosted, speed = 0, 0.0
    for layer in range(width):
        hosted += copies[layer] > 0
        speed += supply[layer]
    best = (hosted, speed, -_overlap(Span(0, width), held), 0)
    for start in range(1, len(supply) - width + 1):
        end = start + width - 1
        hosted += (copies[end] > 0) - (copies[start - 1] > 0)
        speed += supply[end] - supply[start - 1]
        best = min(best, (hosted, speed, -_overlap(Span(start, start + width), held), start))
    return Span(best[3], best[3] + width)


def _overlap(one: Span, other: Span) -> int:
    return max(0, min(one.end, other.end) - max(one.start, other.start))


def lack(peers: Sequence[Candidate], hosts: Sequence[Hop], demand: Demand) -> str:
    """What a pool without a pipeline lacks for one, in words."""
    if not demand.layers:
        return ""
    layers = demand.layers
    covered = len({layer for hop in hosts for layer in range(*hop.span)})
    if covered < layers:
        more = layers - covered
        words = (
            f"the pool holds {covered} of {layers} layers: it needs room for {more} more "
            f"({size_of(more * demand.layer_bytes)})"
        )
        nearly = _nearly_bytes(peers, demand.layer_bytes, more, demand.layers)
        if 2 * nearly < more * demand.layer_bytes:
            words += f", or {size_of(nearly)} more where layers nearly fit"
        return words
    serving = [one for one in peers if one.max_sessions]
    with_caches = sum(room_layers(one, demand, 1) for one in serving)
    if with_caches >= layers:
        return ""
    least_bytes = demand.layer_bytes + demand.session_bytes
    more = layers - with_caches
    nearly = _nearly_bytes(serving, least_bytes, more, demand.layers)
    return (
        f"the pool holds all {layers} layers, but the caches of a session beside {with_caches} "
        f"alone: it needs {size_of(min(nearly, more * least_bytes))} more"
    )


def _nearly_bytes(peers: Sequence[Candidate], layer_bytes: int, more: int, layers: int) -> int:
    """The least memory to add to peers, so that they hold so many more layers in all."""
    gaps = sorted(
        layer_bytes - one.memory_bytes % layer_bytes
        for one in peers
        if one.memory_bytes // layer_bytes < layers
    )
    return sum(gaps[:more]) + max(0, more - len(gaps)) * layer_bytes


def size_of(size_bytes: int) -> str:
    """A size as people say it."""
    if size_bytes >= 1 << 30:
        return f"{size_bytes / (1 << 30):.1f} GiB"
    return f"{max(0.1, size_bytes / (1 << 20)):.1f} MiB"
