"""Rare paths are told from what is sent and from what owners hear."""

from __future__ import annotations

from gennode.node.actions import Rerouted
from gennode.node.stories.paths import RARE, Paths
from gennode.wire.ids import SessionId
from gennode.wire.messages import Credit, Failed, Refuse

SESSION = SessionId(bytes(16))


def test_reasons_tell_paths() -> None:
    paths = Paths()
    paths.sent(Refuse(SESSION, 1, 0, "the frames for a replay are no longer retained"))
    paths.sent(Failed(SESSION, 1, 0, 7, "out of memory"))
    paths.sent(Credit(SESSION, 1, 2, 100))
    paths.rerouted(Rerouted(SESSION, (), (), (), "did not answer a ping"))
    paths.rerouted(Rerouted(SESSION, (), (), (), "it leaves", is_planned=True))
    assert paths == {
        "replay refused": 1, "step failed": 1, "Credit": 1, "hop silent": 1, "handover": 1,
    }  # fmt: skip
    assert set(paths) <= set(RARE)
