"""`gennode publish` without its words: sign the next version, pass on its weights, tell workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gennode.engine.checkpoint.weights import find_model
from gennode.engine.folders import open_folder, refuse_gguf
from gennode.errors import ResourceError, UsageError
from gennode.node.fetch import Sharing
from gennode.node.live import LiveNode
from gennode.node.meeting import rendezvous_key
from gennode.node.progress import ShowProgress
from gennode.node.running import running
from gennode.node.state import StateFolder, hash_cache
from gennode.node.stopping import stoppable
from gennode.node.transports import Listening
from gennode.wire.ids import ModelId, PeerId
from gennode.wire.release import Line, Release, read_release, sign_release
from gennode.wire.signing import Key, Signed

_MAX_RECORD_BYTES = 64 * 1024


@dataclass(frozen=True)
class PublishOptions:
    """What a person asked for. `model`: a folder, or the name of a bundled model."""

    state: Path
    model: str
    name: str
    listening: Listening


class Published(msgspec.Struct, frozen=True):
    """A release that is out, and where its weights come from."""

    line: str
    number: int
    model: ModelId
    previous: str
    peer: PeerId
    addresses: tuple[str, ...]
    told: int
    """Workers that it was pushed to."""


class Record:
    """What a publisher has signed so far, on its disk: a number is never given twice."""

    def __init__(self, state: Path) -> None:
        self._path = state / "releases.json"

    def last(self, line: Line) -> Signed | None:
        """The last release of a line. UsageError if the file is damaged."""
        return self._read().get(line.name)

    def add(self, signed: Signed) -> None:
        """Note a release, before anybody else sees it."""
        known = {**self._read(), read_release(signed).name: signed}
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(known))
            fresh.replace(self._path)
        except OSError as error:
            raise ResourceError(f"can't write {self._path}: {error.strerror}") from error

    def _read(self) -> dict[str, Signed]:
        try:
            with open(self._path, "rb") as file:
                return msgspec.json.decode(file.read(_MAX_RECORD_BYTES), type=dict[str, Signed])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise UsageError(
                f"{self._path} is damaged: {error}",
                hint="restore it, or move it away and publish while peers that know the last "
                "release are up",
            ) from error


def next_release(
    key: Key, name: str, model: ModelId, layers: int, own: Signed | None, heard: Release | None
) -> Signed:
    """What to publish: the last release again if it is of this model, else the next number.

    `own`: the last one that was noted here; `heard`: the newest that peers know.
    """
    last = read_release(own) if own else None
    if heard and (last is None or heard.number > last.number):
        own, last = None, heard
    if last is None:
        return sign_release(key, name, 1, model, None, layers)
    if own is not None and last.model == model:
        return own
    return sign_release(key, name, last.number + 1, model, last.model, layers)


async def publish(
    options: PublishOptions, *, on_ready: Callable[[Published], None], progress: ShowProgress
) -> None:
    """Publish, then pass the weights on until SIGINT or SIGTERM."""
    state = StateFolder(options.state)
    state.prepare()
    with state.locked():
        key, record = state.key(), Record(options.state)
        with progress("checking the model's files") as report:
            opened = open_folder(find_model(options.model), progress=report, cache=hash_cache())
        folder = refuse_gguf(opened, "be published")
        model, layers = folder.manifest.model, folder.manifest.shape.layers
        async with (
            stoppable(leash=False) as stop,
            running(key, options.listening, peers=state.peers) as started,
        ):
            node, line = started.node, Line(key.peer, options.name)
            node.machine.releases.follow(line)
            await node.bootstrap(options.listening.bootstrap)
            async with Sharing(node) as shared:
                shared.add(folder.shelf, folder.whole_layers())
                await node.hear(model)
                heard = node.machine.releases.newest(line)
                signed = next_release(key, options.name, model, layers, record.last(line), heard)
                record.add(signed)
                await node.transport.provide(rendezvous_key(model))
                on_ready(_published(node, signed, node.release(signed)))
                stop.is_awaited = True
                await stop.told.wait()


def _published(node: LiveNode, signed: Signed, told: int) -> Published:
    release = read_release(signed)
    return Published(
        line=str(release.line),
        number=release.number,
        model=release.model,
        previous=release.previous,
        peer=release.publisher,
        addresses=node.transport.addresses(),
        told=told,
    )
