"""`gennode relay` without its words: carry traffic for peers behind NATs, until stopped."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gennode.node.progress import ShowProgress
from gennode.node.running import running
from gennode.node.state import NodeCard, StateFolder
from gennode.node.stopping import stoppable
from gennode.node.transports import Listening
from gennode.wire.ids import ModelId, PeerId


@dataclass(frozen=True)
class RelayOptions:
    """What a person asked for. `leash`: leave when standard input ends."""

    state: Path
    listening: Listening
    leash: bool = False


class Relaying(msgspec.Struct, frozen=True):
    """A relay that is ready."""

    peer: PeerId
    addresses: tuple[str, ...]


async def relay(
    options: RelayOptions, *, on_ready: Callable[[Relaying], None], progress: ShowProgress
) -> None:
    """Relay until SIGINT or SIGTERM. NetworkError if we can't carry what sessions need."""
    state = StateFolder(options.state)
    state.prepare()
    with state.locked():
        key = state.key()
        async with (
            stoppable(leash=options.leash) as stop,
            running(key, options.listening, stop=stop) as started,
        ):
            await started.node.bootstrap(options.listening.bootstrap)
            with progress("sending more than 128 KiB through this relay", unit="steps"):
                await started.settle()
            ready = Relaying(key.peer, started.node.transport.addresses())
            control = str(started.status_socket)
            state.publish(NodeCard(key.peer, os.getpid(), ready.addresses, control, ModelId("")))
            on_ready(ready)
            stop.is_awaited = True
            await stop.told.wait()
