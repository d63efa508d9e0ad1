"""Fetching chunks from several peers at once: `blobs.Fetching` on real streams and threads."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from gennode.errors import GennodeError, NetworkError, RemoteError
from gennode.mesh.blobs.fetching import BUSY_PAUSE_S, MAX_SOURCES, Fetching
from gennode.mesh.blobs.stream import BlobStream
from gennode.mesh.transport import Stream
from gennode.wire import planes
from gennode.wire.blobs import Absent, Answer, Busy, Chunk, GetChunk
from gennode.wire.ids import ModelId, PeerId

log = logging.getLogger(__name__)

Reach = Callable[[PeerId], Awaitable[Stream]]
"""Opens a blob stream to a peer; raises NetworkError."""

OnBreach = Callable[[PeerId, str], None]
"""Told once of each source that lied or broke the protocol."""

_CHECKERS = 2  # threads that unpack, hash and write; each hashes over 1 GB/s
MAX_PAUSES = 60  # five minutes of turning us away
_LOOK_S = 1.0  # between looks at the clock while nothing happens


async def fetch_chunks(
    reach: Reach,
    sources: Sequence[PeerId],
    model: ModelId,
    sizes: Mapping[str, int],
    keep: Callable[[str, bytes], None],
    *,
    on_breach: OnBreach = lambda _peer, _reason: None,
) -> None:
    """Fetch every chunk of `sizes` (hash to bytes) and give each to `keep`, once it is checked.

    `keep` is called in threads, in any order. At most MAX_SOURCES peers are asked. NetworkError
    if some chunk can be had from none of them; what `keep` raises ends the fetch.
    """
    await _Fetch(reach, model, sizes, keep, on_breach).run(sources[:MAX_SOURCES])


class _Fetch:
    def __init__(
        self,
        reach: Reach,
        model: ModelId,
        sizes: Mapping[str, int],
        keep: Callable[[str, bytes], None],
        on_breach: OnBreach,
    ) -> None:
        self._reach = reach
        self._model = model
        self._sizes = sizes
        self._keep = keep
        self._on_breach = on_breach
        self._machine = Fetching(sizes)
        self._wakes: dict[PeerId, asyncio.Event] = {}
        self._liars: dict[PeerId, str] = {}
        self._failure: BaseException | None = None

    def _is_over(self) -> bool:
        return self._machine.is_done or self._machine.is_stuck or self._failure is not None

    async def run(self, sources: Sequence[PeerId]) -> None:
        for peer in sources:
            self._machine.add(peer)
            self._wakes[peer] = asyncio.Event()
        with ThreadPoolExecutor(_CHECKERS, thread_name_prefix="chunks") as self._threads:
            async with asyncio.TaskGroup() as self._group:
                for peer in self._wakes:
                    self._group.create_task(self._draw(peer))
        if self._failure is not None:
            raise self._failure
        if not self._machine.is_done:
            raise NetworkError(
                f"{self._machine.missing} of {len(self._sizes)} pieces of the weights can be had "
                f"from none of {len(sources)} peers",
                hint="start a node that has the whole model, then try again: what is here is kept",
            )

    async def _draw(self, peer: PeerId) -> None:
        """Draw chunks from one source for as long as it has some and is honest."""
        try:
            for _ in range(MAX_PAUSES):
                if self._is_over() or not await self._draw_until_busy(peer):
                    return
                until_s = time.monotonic() + BUSY_PAUSE_S
                while not self._is_over() and (left_s := until_s - time.monotonic()) > 0:
                    await self._wait(peer, left_s)
            log.info("source_lost peer=%s why=it is always busy", peer)
        except NetworkError as error:
            log.info("source_lost peer=%s why=%s", peer, error)
        except RemoteError as error:
            self._breach(peer, str(error))
        finally:
            self._machine.drop(peer)
            self._wake_all()

    async def _draw_until_busy(self, peer: PeerId) -> bool:
        """Whether the source asked us to come back later."""
        source = BlobStream(await self._reach(peer), self._wakes[peer].set)
        try:
            while not self._is_over() and peer not in self._liars:
                for chunk in self._machine.ask(peer, time.monotonic()):
                    source.send(GetChunk(self._model, chunk, source.link_kb_s))
                if (taken := source.take()) is not None:
                    if isinstance(taken[0], Busy):
                        self._machine.busy(peer, time.monotonic())
                        self._wake_all()
                        return True
                    self._take(peer, *taken)
                elif self._machine.is_overdue(peer, time.monotonic()):
                    raise NetworkError("it is too slow")
                else:
                    await self._wait(peer, _LOOK_S)
        finally:
            source.abort()
        return False

    async def _wait(self, peer: PeerId, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._wakes[peer].wait()
        except TimeoutError:
            return
        finally:
            self._wakes[peer].clear()

    def _take(self, peer: PeerId, answer: Answer, payload: bytes) -> None:
        if isinstance(answer, Absent) and self._machine.owes(peer, answer.name):
            self._machine.absent(peer, answer.name)
            self._wake_all()
        elif isinstance(answer, Chunk) and answer.chunk in self._sizes:
            if self._machine.owes(peer, answer.chunk):  # else another source was faster
                self._group.create_task(self._check(peer, answer, payload))
        elif not isinstance(answer, Absent) or answer.name not in self._sizes:
            raise RemoteError("an answer to no request")

    async def _check(self, peer: PeerId, answer: Chunk, payload: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, self._store, answer, payload)
            self._machine.kept(peer, answer.chunk, time.monotonic())
        except RemoteError as error:
            self._breach(peer, str(error))
            self._machine.drop(peer)
        except (GennodeError, OSError) as error:
            self._failure = self._failure or error
        self._wake_all()

    def _store(self, answer: Chunk, payload: bytes) -> None:
        size_bytes = self._sizes[answer.chunk]
        data = planes.unpack(payload, size_bytes) if answer.form == "planes" else payload
        if hashlib.sha256(data).hexdigest() != answer.chunk:
            raise RemoteError("a chunk that is not what its hash says")
        self._keep(answer.chunk, data)

    def _breach(self, peer: PeerId, reason: str) -> None:
        if peer not in self._liars:
            self._liars[peer] = reason
            self._on_breach(peer, reason)

    def _wake_all(self) -> None:
        for wake in self._wakes.values():
            wake.set()
