"""Where a newcomer goes: the layers that the swarm lacks most, as far as it has heard."""

from __future__ import annotations

from gennode.node.hops.admission import MAX_SESSIONS
from gennode.node.peer import PeerMachine
from gennode.sharding.rebalance import place
from gennode.sharding.snapshots import candidate_of, snapshot_of
from gennode.wire.announcement import Announcement, Hosting
from gennode.wire.ids import ModelId, Span
from gennode.wire.manifest import ModelShape


def place_newcomer(
    machine: PeerMachine,
    now_s: float,
    model: ModelId,
    shape: ModelShape,
    capacity_layers: int,
    *,
    compute_class: str = "",
) -> Span:
    """The span that a peer should load which hosts nothing of a model yet.

    What it would be worth follows from its machine, as that was measured. `compute_class`: of
    the engine that it would have, which says what its layers take; empty for that of the plan.
    """
    spare_layers = min(capacity_layers, shape.layers)
    hosting = Hosting(model, (), spare_layers, 0.0, 0.0, MAX_SESSIONS, compute_class)
    own = Announcement(
        machine.peer, 0, 0, 0.0, (hosting,), 0, False, "unknown", (), machine=machine.machine
    )
    newcomer = candidate_of(own, model, shape)
    if newcomer is None:  # it offers to host, so there is one
        return Span(0, 0)
    live = machine.present(now_s)
    snapshot = snapshot_of(live, model=model, shape=shape, epoch=0, with_fixed=True)
    return place(snapshot, newcomer)
