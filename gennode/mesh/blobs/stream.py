"""Asking one peer for weights: requests out, answers in, and how fast they come."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from gennode.errors import GennodeError, NetworkError, RemoteError
from gennode.mesh.transport import Stream
from gennode.wire.blobs import (
    MAX_ANSWER_BYTES,
    Absent,
    Answer,
    Busy,
    GetManifest,
    ManifestPiece,
    Request,
    decode_answer,
    encode,
)
from gennode.wire.frames import FrameSplitter
from gennode.wire.ids import ModelId
from gennode.wire.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest

MANIFEST_TIMEOUT_S = 30.0  # for each MiB of it
_RATED_BYTES = 512 * 1024  # smaller answers come out of some buffer, and say nothing of the link
_SMOOTHING = 0.3


class BlobStream:
    """One stream to a source. `wake` is called when there is something to `take`."""

    def __init__(self, stream: Stream, wake: Callable[[], None]) -> None:
        self.link_kb_s = 0
        """How fast bytes come in from the source; 0 until it is known."""
        self._stream = stream
        self._wake = wake
        self._splitter = FrameSplitter(MAX_ANSWER_BYTES)
        self._answers: deque[tuple[Answer, bytes]] = deque()
        self._unanswered = 0
        self._began_s: float | None = None  # when the answer that is arriving began to
        self._end: GennodeError | None = None
        stream.start(self._on_data, self._on_close)

    def send(self, request: Request) -> None:
        """Ask; answers come in the same order."""
        self._unanswered += 1
        self._stream.write(*encode(request))

    def take(self) -> tuple[Answer, bytes] | None:
        """The next answer, None if none is here yet.

        RemoteError once the source broke the protocol, NetworkError once the stream has ended.
        """
        if self._answers:
            return self._answers.popleft()
        if self._end is not None:
            raise self._end
        return None

    def abort(self) -> None:
        """End the stream."""
        self._stream.abort()

    def _on_data(self, data: bytes) -> None:
        if self._end is not None:
            return
        now_s = time.perf_counter()
        if self._began_s is None:
            self._began_s = now_s
        try:
            for header, payload in self._splitter.feed(data):
                answer = decode_answer(header)
                if not self._unanswered and not isinstance(answer, Busy):
                    raise RemoteError("an answer that nobody asked for")
                self._unanswered -= 1
                self._answers.append((answer, payload))
                self._rate(len(payload), now_s - self._began_s)
                self._began_s = now_s
        except RemoteError as error:
            self._end = error
            self._answers.clear()
            self._stream.abort()
        if not self._splitter.buffered_bytes:
            self._began_s = None
        if self._answers or self._end:
            self._wake()

    def _on_close(self, reason: str) -> None:
        self._end = self._end or NetworkError(reason)
        self._wake()

    def _rate(self, size_bytes: int, taken_s: float) -> None:
        """From an answer's first byte to its last: what the source needs to read, and to pack,
        falls between answers, so this is the link's rate and not the source's."""
        if size_bytes < _RATED_BYTES or taken_s <= 0:
            return
        kb_s = size_bytes / 1000 / taken_s
        known = self.link_kb_s or kb_s
        self.link_kb_s = max(1, round(known + _SMOOTHING * (kb_s - known)))


async def ask_manifest(stream: Stream, model: ModelId) -> Manifest | None:
    """A source's manifest of a model, None if it has none or no time; ends the stream.

    RemoteError if it is not that model's, NetworkError if the source is gone or too slow.
    """
    changed = asyncio.Event()
    source = BlobStream(stream, changed.set)
    data = bytearray()
    total_bytes = MAX_MANIFEST_BYTES
    try:
        while len(data) < total_bytes:
            source.send(GetManifest(model, len(data)))
            async with asyncio.timeout(MANIFEST_TIMEOUT_S):
                while (taken := source.take()) is None:
                    changed.clear()
                    await changed.wait()
            answer, piece = taken
            if isinstance(answer, Absent | Busy):
                return None
            if not isinstance(answer, ManifestPiece) or answer.offset != len(data) or not piece:
                raise RemoteError("an answer that is no piece of the manifest")
            total_bytes = answer.total_bytes
            data += piece
    except TimeoutError as error:
        raise NetworkError("the manifest takes too long") from error
    finally:
        source.abort()
    return parse_manifest(bytes(data), model)
