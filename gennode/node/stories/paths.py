"""Which rare paths of the protocol a story took, as the wire and the owners show them."""

from __future__ import annotations

from collections import Counter

from gennode.node.actions import Rerouted
from gennode.wire.messages import (
    CachePart,
    Credit,
    Failed,
    Fed,
    Feed,
    Leaving,
    Message,
    Missing,
    Open,
    Refuse,
    Step,
)

_REASONS = {
    "no longer retained": "replay refused",
    "sessions are taken": "worker full",
    "are kept for those": "worker full",
    "one owner may hold": "worker full",
    "no memory for another": "opening failed",
    "out of memory": "step failed",
    "a value that is not finite": "step garbled",
    "too much is waiting": "queue full",
    "frames are missing": "frames missing",
    "put aside can't be read": "frame unreadable",
    "can't be reached": "link given up",
    "did not answer a ping": "hop silent",
    "idle while a step": "hop stuck",
    "computes without": "hop endless",
}
"""What reasons say, and the path that they show."""

RAREST = ("frame unreadable", "hop endless")
"""What may be missing even in a hundred stories."""

RARE = (
    *(path for path in dict.fromkeys(_REASONS.values()) if path not in RAREST),
    "CachePart",
    "Credit",
    "Feed",
    "Fed",
    "Leaving",
    "handover",
    "frames replayed",
    "tokens replayed",
    "hop opened again",
    "peer missed",
    "message doubled",
    "nobody there",
)
"""All that must have happened in a hundred stories."""


class Paths(Counter[str]):
    """How often each path was taken."""

    def sent(self, message: Message) -> None:
        """Look at a message that goes out."""
        match message:
            case Step():  # first, since there is one for each token
                if message.rebuild and message.layer == 0:
                    self["tokens replayed"] += 1
            case Open():
                if message.replay_positions:
                    self["frames replayed"] += 1
                if message.attempt and message.index <= message.rebuild_until:
                    self["hop opened again"] += 1
            case Refuse() | Failed():
                self._because(message.reason)
            case Missing():
                self["peer missed"] += 1
            case Credit() | Feed() | CachePart() | Fed() | Leaving():
                self[type(message).__name__] += 1

    def rerouted(self, event: Rerouted) -> None:
        """A session goes on elsewhere."""
        if event.is_planned:
            self["handover"] += 1
        self._because(event.reason)

    def _because(self, reason: str) -> None:
        for words, path in _REASONS.items():
            if words in reason:
                self[path] += 1
