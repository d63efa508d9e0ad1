"""How much work peers may make for us, each and all together, and how near they come. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gennode.wire.ids import PeerId
from gennode.wire.messages import Message, Step

# A message costs about 20 µs to read and 50 µs to act on. An honest worker takes tens a second;
# a replay after a fault is a burst of thousands of steps, each dropped at once unless its
# session is open here.
MESSAGES_PER_S = 500.0
MESSAGES_BURST = 4000.0
STEP_COST = 0.1
ALL_MESSAGES_PER_S = 4000.0  # a third of one core
ALL_MESSAGES_BURST = 16_000.0

# An honest peer opens one stream, and five more within 0.3 s while its connection is broken.
STREAMS_PER_S = 4.0
STREAMS_BURST = 64.0

MAX_METERED = 4096  # peers whose use is remembered: the directory's digest holds as many


@dataclass
class Bucket:
    """Fills with time and empties with use; may run into debt, which is then waited off."""

    rate_per_s: float
    burst: float
    level: float
    at_s: float

    @classmethod
    def full(cls, rate_per_s: float, burst: float, now_s: float) -> Bucket:
        """A bucket that nothing has been taken from."""
        return cls(rate_per_s, burst, burst, now_s)

    def take(self, cost: float, now_s: float) -> None:
        """Use something up, whether it is there or not."""
        self.level = min(self.burst, self.level + (now_s - self.at_s) * self.rate_per_s) - cost
        self.at_s = now_s

    def may_take(self, now_s: float) -> bool:
        """Use one up if it is there; whether it was."""
        self.take(1.0, now_s)
        if self.level >= 0.0:
            return True
        self.level += 1.0
        return False

    @property
    def wait_s(self) -> float:
        """How long from the last `take` until the debt is paid; 0 without debt."""
        return max(0.0, -self.level / self.rate_per_s)


def cost(message: Message) -> float:
    """What a message takes of its allowance: what steps cause is bounded by their session."""
    return STEP_COST if isinstance(message, Step) else 1.0


class Allowances:
    """What each peer has left, and all of them."""

    def __init__(self, now_s: float) -> None:
        self._all = Bucket.full(ALL_MESSAGES_PER_S, ALL_MESSAGES_BURST, now_s)
        self._messages: dict[PeerId, Bucket] = {}
        self._streams: dict[PeerId, Bucket] = {}

    def work(self, peer: PeerId, cost: float, now_s: float) -> float:
        """Count the messages of one read; for how many seconds not to read on.

        When all together ask for too much, those wait that have used half of their own burst:
        a flood of one peer, or of many, does not hold up the others.
        """
        own = _bucket(self._messages, peer, MESSAGES_PER_S, MESSAGES_BURST, now_s)
        own.take(cost, now_s)
        self._all.take(cost, now_s)
        shared_s = self._all.wait_s if own.level < MESSAGES_BURST / 2 else 0.0
        return max(own.wait_s, shared_s)

    def may_open(self, peer: PeerId, now_s: float) -> bool:
        """Count a stream; whether it is one of not too many."""
        own = _bucket(self._streams, peer, STREAMS_PER_S, STREAMS_BURST, now_s)
        return own.may_take(now_s)


def _bucket(
    buckets: dict[PeerId, Bucket], peer: PeerId, rate_per_s: float, burst: float, now_s: float
) -> Bucket:
    """A peer's bucket; the one that was made first is forgotten where there are too many."""
    bucket = buckets.get(peer)
    if bucket is None:
        while len(buckets) >= MAX_METERED:
            del buckets[next(iter(buckets))]
        bucket = buckets[peer] = Bucket.full(rate_per_s, burst, now_s)
    return bucket


@dataclass(frozen=True)
class Use:
    """How much of a limit is used now, and was at most."""

    name: str
    limit: int
    used: int
    highest: int


class Gauges:
    """The limits of a node by name, each with what is used of it."""

    def __init__(self, limits: dict[str, int]) -> None:
        self._limits = limits
        self._used = dict.fromkeys(limits, 0)
        self._highest = dict.fromkeys(limits, 0)

    def set(self, name: str, used: int) -> None:
        """So much is used now."""
        self._used[name] = used
        self._highest[name] = max(self._highest[name], used)

    def uses(self) -> Iterator[Use]:
        """All of them, in the order in which they were named."""
        for name, limit in self._limits.items():
            yield Use(name, limit, self._used[name], self._highest[name])
