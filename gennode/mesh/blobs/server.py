"""Serving weights to other peers: a few streams at a time, and only what a manifest lists."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Protocol, Self

from gennode.errors import GennodeError, NetworkError, RemoteError
from gennode.mesh.blobs.fetching import PROTOCOL
from gennode.mesh.transport import Stream, Transport
from gennode.wire import planes
from gennode.wire.blobs import (
    MAX_REQUEST_BYTES,
    PIECE_BYTES,
    Absent,
    Answer,
    Busy,
    Chunk,
    GetManifest,
    ManifestPiece,
    Request,
    decode_request,
    encode,
)
from gennode.wire.frames import FrameSplitter
from gennode.wire.ids import ModelId, PeerId
from gennode.wire.manifest import CHUNK_BYTES

log = logging.getLogger(__name__)

MAX_UPLOADS = 8  # streams at a time; each may hold three chunks' memory, 12 MiB
MAX_UPLOADS_OF_ONE = 2  # a fetch and the next one, while the first's stream still closes
MAX_REQUESTS = 16  # that wait on one stream; honest fetchers have three
IDLE_LIMIT_S = 30.0  # without a whole request: a place is for those who want something
DRAIN_LIMIT_S = 60.0  # for a chunk to leave: slower readers make room
_DRAIN_CHECK_S = 0.002  # streams don't say when they have sent; a chunk takes ten times that
_READERS = 2  # disks gain little from more
_SMOOTHING = 0.2


class Shelf(Protocol):
    """One model's weights on this machine, as far as they are here."""

    @property
    def model(self) -> ModelId:
        """The manifest's id."""

    @property
    def manifest_bytes(self) -> bytes:
        """The manifest's canonical encoding."""

    def read(self, chunk: str) -> bytes | None:
        """A chunk by its hash, None if it is not here. Called in a thread.

        Raises GennodeError or OSError if it can't be read.
        """


class BlobServer:
    """Answers `/gennode/blob/1` from its shelves. An async context manager."""

    def __init__(
        self,
        transport: Transport,
        *,
        is_banned: Callable[[PeerId], bool] = lambda _peer: False,
        on_breach: Callable[[PeerId, str], None] = lambda _peer, _reason: None,
    ) -> None:
        self.sent_bytes = 0
        """Payload bytes given out, as they travelled."""
        self._is_banned = is_banned
        self._on_breach = on_breach
        self._transport = transport
        self._shelves: dict[ModelId, Shelf] = {}
        self._uploads: Counter[PeerId] = Counter()
        self._streams: set[Stream] = set()
        self._pack_mb_s, self._saved_share = 300.0, 0.3  # until some were packed
        self._stack = AsyncExitStack()

    def add(self, shelf: Shelf) -> None:
        """Serve a model from now on; replaces an older shelf of the same model."""
        self._shelves[shelf.model] = shelf

    def remove(self, model: ModelId) -> None:
        """Serve a model no more."""
        self._shelves.pop(model, None)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="blobs")
            stack.callback(self._threads.shutdown, cancel_futures=True)
            self._group = await stack.enter_async_context(asyncio.TaskGroup())
            await self._transport.accept(PROTOCOL, self._accept)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shelves.clear()
        self._uploads.clear()
        for stream in list(self._streams):
            stream.abort()  # their tasks end by it
        await self._stack.__aexit__(None, None, None)

    def _accept(self, stream: Stream) -> None:
        peer = stream.peer
        if self._is_banned(peer):
            stream.start(lambda _data: None, lambda _reason: None)
            stream.abort()
            return
        full = sum(self._uploads.values()) >= MAX_UPLOADS
        if not self._shelves or full or self._uploads[peer] >= MAX_UPLOADS_OF_ONE:
            stream.start(lambda _data: None, lambda _reason: None)
            stream.write(*encode(Busy()))
            stream.close()
            return
        self._uploads[peer] += 1
        self._streams.add(stream)
        self._group.create_task(self._upload(stream, _Inbox(stream)))

    async def _upload(self, stream: Stream, inbox: _Inbox) -> None:
        try:
            while True:
                async with asyncio.timeout(IDLE_LIMIT_S):
                    request = await inbox.next()
                async with asyncio.timeout(DRAIN_LIMIT_S):
                    answer, payload = await self._answer(request)
                    while stream.unsent_bytes() > CHUNK_BYTES:  # noqa: ASYNC110 - no event tells
                        await asyncio.sleep(_DRAIN_CHECK_S)
                stream.write(*encode(answer, payload))
                self.sent_bytes += len(payload)
        except TimeoutError:
            log.info("upload_ended peer=%s why=it was too slow", stream.peer)
        except RemoteError as error:
            self._on_breach(stream.peer, str(error))
        except NetworkError:
            pass  # it has what it wanted
        except Exception as error:  # noqa: BLE001 - task root: one upload must not end the node
            log.error("upload_failed peer=%s why=%r", stream.peer, error)
        finally:
            self._streams.discard(stream)
            self._uploads[stream.peer] -= 1
            self._uploads += Counter()  # forgets those who have none
            stream.abort()

    async def _answer(self, request: Request) -> tuple[Answer, bytes]:
        shelf = self._shelves.get(request.model)
        if isinstance(request, GetManifest):
            if shelf is None:
                return Absent(request.model), b""
            whole = shelf.manifest_bytes
            piece = whole[request.offset : request.offset + PIECE_BYTES]
            return ManifestPiece(request.offset, len(whole)), piece
        if shelf is None:
            return Absent(request.chunk), b""
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, self._read, shelf, request.chunk, request.link_kb_s / 1000
        )
        return found or (Absent(request.chunk), b"")

    def _read(self, shelf: Shelf, chunk: str, link_mb_s: float) -> tuple[Answer, bytes] | None:
        try:
            data = shelf.read(chunk)
        except (GennodeError, OSError) as error:
            log.warning("chunk_unreadable chunk=%s why=%s", chunk, error)
            return None
        if data is None:
            return None
        if hashlib.sha256(data).hexdigest() != chunk:  # whoever got it would take us for a liar
            log.error("chunk_damaged model=%s chunk=%s: fetch the model again", shelf.model, chunk)
            return None
        if planes.pays(link_mb_s, self._pack_mb_s, self._saved_share):
            start_s = time.perf_counter()
            packed = planes.pack(data)
            if packed is not None:
                self._measure(len(data), len(packed), time.perf_counter() - start_s)
                return Chunk(chunk, "planes"), packed
        return Chunk(chunk, "raw"), data

    def _measure(self, raw_bytes: int, packed_bytes: int, pack_s: float) -> None:
        pack_mb_s = raw_bytes / 1e6 / max(pack_s, 1e-9)
        saved_share = 1 - packed_bytes / raw_bytes
        self._pack_mb_s += _SMOOTHING * (pack_mb_s - self._pack_mb_s)
        self._saved_share += _SMOOTHING * (saved_share - self._saved_share)


class _Inbox:
    """Requests of one stream, in order; a peer that piles them up is refused."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._splitter = FrameSplitter(MAX_REQUEST_BYTES)
        self._waiting: deque[Request] = deque()
        self._changed = asyncio.Event()
        self._end: GennodeError | None = None
        stream.start(self._on_data, self._on_close)

    async def next(self) -> Request:
        """The next request; RemoteError at a wrong one, NetworkError at the stream's end."""
        while not self._waiting:
            if self._end is not None:
                raise self._end
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()

    def _on_data(self, data: bytes) -> None:
        if self._end is not None:
            return
        try:
            for header, payload in self._splitter.feed(data):
                self._waiting.append(decode_request(header, payload))
                if len(self._waiting) > MAX_REQUESTS:
                    raise RemoteError(f"more than {MAX_REQUESTS} requests wait")
        except RemoteError as error:
            self._end = error
            self._waiting.clear()
        self._changed.set()

    def _on_close(self, reason: str) -> None:
        self._end = self._end or NetworkError(reason)
        self._waiting.clear()
        self._changed.set()
