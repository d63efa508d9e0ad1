"""Keys and paths that the node's tests share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gennode.engine.toy import TOY_DIM, toy_manifest
from gennode.node.hops.admission import HopLimits, HostedModel
from gennode.node.hops.hop import HopMachine
from gennode.wire.activations import codec
from gennode.wire.ids import Hop, ModelId, PeerId, Span, session_id
from gennode.wire.messages import Open, Step
from gennode.wire.signing import Key

LAYERS = 6
MODEL = toy_manifest(LAYERS).model


def peer(number: int) -> PeerId:
    """The id of a fixed key."""
    return Key(bytes([number]) * 32).peer


OWNER, FIRST, SECOND, THIRD, SPARE = (peer(number) for number in range(1, 6))
SESSION = session_id(OWNER, b"session1")
PATH = (Hop(FIRST, Span(0, 2)), Hop(SECOND, Span(2, 4)), Hop(THIRD, Span(4, 6)))


def hop_machine(own: PeerId, **limits: int) -> HopMachine:
    """A hop that can host anything."""
    machine = HopMachine(own, HopLimits(**limits))
    machine.host(hosted_model())
    return machine


def hosted_model(
    model: ModelId = MODEL, *, can_host: Callable[[Span], bool] = lambda _span: True
) -> HostedModel:
    """The toy, or another of its shape."""
    return HostedModel(model, LAYERS, TOY_DIM, 32_768, can_host)


def opening(index: int, *, attempt: int = 0, path: tuple[Hop, ...] = PATH, **fields: int) -> Open:
    """The owner's opening to one hop of a path."""
    return Open(
        session=SESSION,
        attempt=attempt,
        model=MODEL,
        path=path,
        index=index,
        codec="raw",
        max_positions=64,
        replay_positions=fields.get("replay_positions", 0),
        rebuild_until=fields.get("rebuild_until", -1),
    )


def step(
    number: int, position: int, *, layer: int = 2, rows: int = 1, attempt: int = 0,
    rebuild: bool = False,
) -> Step:  # fmt: skip
    """A step as the hop before sends it."""
    return Step(
        session=SESSION,
        attempt=attempt,
        number=number,
        layer=layer,
        position=position,
        rows=rows,
        reply_rows=rows,
        codec="raw",
        rebuild=rebuild,
    )


def frame(rows: int = 1, value: float = 1.0) -> bytes:
    """Rows of one value."""
    return codec("raw").encode(np.full((rows, TOY_DIM), value, np.float32))
