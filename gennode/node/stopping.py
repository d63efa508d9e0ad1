"""Ends that come from outside: signals, another program's word, and the end of a leash."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from gennode.node.live import TICK_S, LiveNode

# A session goes over to a stand-in in about a second. What takes longer has nobody to go to, and
# would only keep whoever stops this node waiting.
DRAIN_LIMIT_S = 10.0


@dataclass
class Stop:
    """Whether somebody told us to stop, and whether we are waiting for just that."""

    body: asyncio.Task[object] | None
    told: asyncio.Event = field(default_factory=asyncio.Event)
    hurried: asyncio.Event = field(default_factory=asyncio.Event)
    """Whether we are to stop at once, and hand nothing over."""
    is_awaited: bool = False

    def tell(self, *, at_once: bool = False) -> None:
        """Somebody wants us to stop; who says so twice wants it at once."""
        if at_once or self.told.is_set():
            self.hurried.set()
        if self.body is not None and not self.told.is_set() and not self.is_awaited:
            self.body.cancel()
        self.told.set()


@asynccontextmanager
async def stoppable(*, leash: bool) -> AsyncIterator[Stop]:
    """A stop that comes from a signal, or with `leash` from the end of standard input.

    Nobody waits for a node whose leash ends, so that is a stop at once. A body that is not
    waiting for a stop yet is cancelled; that is a good end, and no error.
    """
    loop, stop = asyncio.get_running_loop(), Stop(asyncio.current_task())

    def read() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.tell(at_once=True)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.tell)
    if leash:
        loop.add_reader(0, read)
    try:
        yield stop
    except asyncio.CancelledError:
        if stop.body is None or not stop.told.is_set():
            raise
        stop.body.uncancel()


async def drain(node: LiveNode, stop: Stop, on_waiting: Callable[[int], None]) -> int:
    """Have a node's sessions go over to others, for a while; how many are left behind.

    `on_waiting` is told how many there are, whenever that changes.
    """
    if stop.hurried.is_set():
        return node.machine.hosted_sessions
    node.drain()
    told = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_LIMIT_S):
            while (sessions := node.machine.hosted_sessions) and not stop.hurried.is_set():
                if sessions != told:
                    told = sessions
                    on_waiting(sessions)
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.hurried.wait(), TICK_S)
    return node.machine.hosted_sessions
