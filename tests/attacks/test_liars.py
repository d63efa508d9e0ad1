"""Workers that send frames which can't be right: each is replaced, and no token changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gennode.engine.toy import TOY_DIM, ToyShard
from gennode.mesh.links.links import Links
from gennode.node.live import LiveNode
from gennode.wire.frames import Buffer
from gennode.wire.ids import PeerId
from gennode.wire.messages import Message, Step
from tests.node.toys import MANIFEST, THIRDS, staged, toy_worker, truth

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


class LyingLinks:
    """A node's links, through which its frames leave changed."""

    def __init__(self, links: Links, lie: Lie) -> None:
        self._links = links
        self._lie = lie
        self._steps = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._links, name)

    def send(self, peer: PeerId, message: Message, payload: Buffer = b"") -> int:
        """Lie about a step, once there were some."""
        self._steps += isinstance(message, Step)
        if isinstance(message, Step) and self._steps >= LIES_FROM:
            payload = self._lie(bytes(payload))
        return self._links.send(peer, message, payload)


def corrupt(node: LiveNode, lie: Lie) -> None:
    """From now on this node lies."""
    node.links = LyingLinks(node.links, lie)  # type: ignore[assignment]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("lie", LIES)
async def test_a_liar_is_replaced(lie: str, place: int) -> None:
    quick = ToyShard(MANIFEST, layer_time_s=1e-5)  # so that routes prefer it
    workers = [toy_worker(span) for span in THIRDS]
    async with staged([toy_worker(THIRDS[place], quick), *workers]) as cast:
        corrupt(cast.workers[0], LIES[lie])
        assert await cast.ask(PROMPT) == await truth(PROMPT)
        peer = cast.workers[0].machine.peer
        assert [peer] == [lost for repair in cast.repairs for lost in repair.lost]
