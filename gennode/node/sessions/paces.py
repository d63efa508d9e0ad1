"""How long each hop says that a token takes it, and how long it takes to answer a ping."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from gennode.node.sessions.patience import limit_s
from gennode.wire.ids import Hop, PeerId
from gennode.wire.messages import Pong

TOLD = 16  # recent values of a hop: enough for its usual spread
LEAST_SHARE = 0.5  # of a growth that a hop's own time has to explain for it to be the cause
LEAST_PING_SHARE = 0.1  # the same for pings, which are shorter than what slows a step down


@dataclass
class _Pace:
    """What one hop told, and how pings to it fared: the first time, and since."""

    first_token_s: float = 0.0
    token_s: deque[float] = field(default_factory=lambda: deque(maxlen=TOLD))
    first_ping_s: float | None = None
    ping_s: float = 0.0

    @property
    def token_growth_s(self) -> float:
        return self.token_s[-1] - self.first_token_s if self.token_s else 0.0

    @property
    def ping_growth_s(self) -> float:
        return 0.0 if self.first_ping_s is None else self.ping_s - self.first_ping_s


class Paces:
    """The paces of the hops of a path. A hop may lie about its own, and harms itself alone:
    it is judged by what it said itself, and never given more time than all hops together."""

    def __init__(self, path: tuple[Hop, ...]) -> None:
        self._paces = {hop: _Pace() for hop in path}

    def follow(self, path: tuple[Hop, ...]) -> None:
        """The path has changed: forget who is not on it."""
        self._paces = {hop: self._paces.get(hop, _Pace()) for hop in path}

    def heard(self, peer: PeerId, pong: Pong, ping_s: float | None) -> None:
        """A pong came; `ping_s`: so long after its ping."""
        token_s = {one.layer: one.token_s for one in pong.progress}
        for hop, pace in self._paces.items():
            if hop.peer != peer:
                continue
            told_s = token_s.get(hop.span.start, 0.0)
            if told_s > 0.0:
                pace.first_token_s = pace.first_token_s or told_s
                pace.token_s.append(told_s)
            if ping_s is not None:
                pace.ping_s = ping_s
                pace.first_ping_s = ping_s if pace.first_ping_s is None else pace.first_ping_s

    @property
    def trip_s(self) -> float:
        """How long the slowest ping to a hop was under way the last time."""
        return max(pace.ping_s for pace in self._paces.values())

    def limit_s(self, hop: Hop, rows: int) -> float | None:
        """How long a hop may have so many rows; None if it never said what one takes it."""
        told = self._paces[hop].token_s
        return limit_s(told, rows) if told else None

    def cause(self, growth_s: float) -> Hop | None:
        """The hop that made each token take so much longer: by its own word, else by pings."""
        slower, pace = max(self._paces.items(), key=lambda item: item[1].token_growth_s)
        if pace.token_growth_s >= LEAST_SHARE * growth_s:
            return slower
        farther, pace = max(self._paces.items(), key=lambda item: item[1].ping_growth_s)
        return farther if pace.ping_growth_s >= LEAST_PING_SHARE * growth_s else None
