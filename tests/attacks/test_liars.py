"""Workers that compute wrongly in ways that show: each is replaced, and no token changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from gennode.engine.seam import States
from gennode.engine.toy import TOY_DIM, ToyShard
from gennode.node.actions import StepJob
from gennode.node.worker import Worker
from gennode.wire.ids import Span
from tests.node.toys import LAYERS, MANIFEST, THIRDS, staged, toy_worker, truth

PROMPT = "the truth and nothing but the truth"
LIES_FROM = 9  # steps are honest before: an answer is well under way

Lie = Callable[[bytes], bytes]


def _filled(value: float) -> Lie:
    return lambda whole: np.full(len(whole) // 4, value, "<f4").tobytes()


LIES: dict[str, Lie] = {
    "not a number": _filled(float("nan")),
    "infinity": _filled(float("inf")),
    "a row too many": lambda whole: whole + bytes(4 * TOY_DIM),
    "no rows": lambda whole: b"",
    "half a row": lambda whole: whole[: len(whole) // 2],
    "a byte too many": lambda whole: whole + b"\0",
}


@dataclass(frozen=True)
class Liar(Worker):
    """A worker whose node sends other bytes than its engine made."""

    lie: Lie = _filled(0.0)
    steps: list[StepJob] = field(default_factory=list)

    def encode(self, job: StepJob, states: States) -> bytes:
        self.steps.append(job)
        honest = super().encode(job, states)
        return self.lie(honest) if len(self.steps) >= LIES_FROM else honest


def liar(span: Span, lie: Lie) -> Liar:
    """A liar that hosts a span."""
    engine = ToyShard(MANIFEST, layer_time_s=1e-5)  # so that routes prefer it
    engine.load(span)
    return Liar(engine, LAYERS, capacity_layers=span.layers, lie=lie)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("lie", LIES)
async def test_a_liar_is_replaced(lie: str, place: int) -> None:
    workers = [toy_worker(span) for span in THIRDS]
    async with staged([liar(THIRDS[place], LIES[lie]), *workers]) as cast:
        asking = asyncio.ensure_future(cast.ask(PROMPT))
        assert await asking == await truth(PROMPT)
        peer = cast.workers[0].machine.peer
        assert [peer] == [lost for repair in cast.repairs for lost in repair.lost]
