"""Ends that come from outside: signals, and the end of a leash."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Stop:
    """Whether somebody told us to stop, and whether we are waiting for just that."""

    told: asyncio.Event = field(default_factory=asyncio.Event)
    is_awaited: bool = False


@asynccontextmanager
async def stoppable(*, leash: bool) -> AsyncIterator[Stop]:
    """A stop that comes from a signal, or with `leash` from the end of standard input.

    A body that is not waiting for it yet is cancelled; that is a good end, and no error.
    """
    loop, body, stop = asyncio.get_running_loop(), asyncio.current_task(), Stop()

    def tell() -> None:
        if body is not None and not stop.told.is_set() and not stop.is_awaited:
            body.cancel()
        stop.told.set()

    def read() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            tell()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, tell)
    if leash:
        loop.add_reader(0, read)
    try:
        yield stop
    except asyncio.CancelledError:
        if body is None or not stop.told.is_set():
            raise
        body.uncancel()
