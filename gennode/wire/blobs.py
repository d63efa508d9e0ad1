"""What peers say to pass weights on: a manifest by its model's id, a chunk by its hash.

Frames are those of `frames.py`. Answers come in the order of the requests.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

from gennode.errors import RemoteError
from gennode.wire.frames import Buffer, frame
from gennode.wire.ids import ModelId
from gennode.wire.manifest import CHUNK_BYTES, MAX_MANIFEST_BYTES

PIECE_BYTES = 1024 * 1024  # of a manifest per answer
MAX_REQUEST_BYTES = 1024  # the longest takes some 200
MAX_ANSWER_BYTES = CHUNK_BYTES + MAX_REQUEST_BYTES

_Hash = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Model = Annotated[ModelId, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_ManifestBytes = Annotated[int, msgspec.Meta(ge=0, le=MAX_MANIFEST_BYTES)]


class _Base(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Its tag on the wire is its class's name."""


class GetManifest(_Base, frozen=True):
    """Send a model's manifest (its canonical encoding) from `offset` on."""

    model: _Model
    offset: _ManifestBytes


class GetChunk(_Base, frozen=True):
    """Send one chunk. `link_kb_s`: how fast bytes come in here from you; 0 is not known yet."""

    model: _Model
    chunk: _Hash
    link_kb_s: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class ManifestPiece(_Base, frozen=True):
    """The payload is the manifest's bytes from `offset` on, at most PIECE_BYTES."""

    offset: _ManifestBytes
    total_bytes: _ManifestBytes


class Chunk(_Base, frozen=True):
    """The payload is the chunk, as it is or as `planes.pack` makes it."""

    chunk: _Hash
    form: Literal["raw", "planes"]


class Absent(_Base, frozen=True):
    """What was asked for is not here; `name` is the chunk's hash or the model's id."""

    name: _Hash


class Busy(_Base, frozen=True):
    """All places are taken; ask again in a while."""


Request = GetManifest | GetChunk
Answer = ManifestPiece | Chunk | Absent | Busy

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)

T = TypeVar("T")


def encode(message: Request | Answer, payload: Buffer = b"") -> tuple[bytes, Buffer]:
    """A frame in two pieces; the payload is not copied."""
    return frame(_encoder.encode(message), payload)


def decode_request(header: bytes, payload: bytes) -> Request:
    """RemoteError if it is none, or has a payload."""
    if payload:
        raise RemoteError("a request with a payload")
    return _decode(_requests, header)


def decode_answer(header: bytes) -> Answer:
    """RemoteError if it is none."""
    return _decode(_answers, header)


def _decode(decoder: msgspec.msgpack.Decoder[T], header: bytes) -> T:
    try:
        return decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteError(f"malformed blob message: {error}") from error
