"""A model's manifest: its shape and the hash of every piece of its weights."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from gennode.wire.ids import LayerIndex, ModelId

CHUNK_BYTES = 4 * 1024 * 1024
MAX_FILE_CHUNKS = 1 << 18  # files of 1 TiB; the largest published shards have some 50 GB

_Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class ModelShape(msgspec.Struct, frozen=True):
    """The sizes of a decoder that placement, memory and cost are computed from."""

    architecture: Annotated[str, msgspec.Meta(max_length=64)]
    layers: LayerIndex
    dim: _Size
    heads: _Size
    kv_heads: _Size
    head_dim: _Size
    ffn_dim: _Size
    vocab: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    max_positions: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]

    @property
    def layer_parameters(self) -> int:
        """Weights of one transformer layer (attention, gated MLP, two norms)."""
        attention = self.dim * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.dim * self.ffn_dim + 2 * self.dim

    @property
    def position_elements(self) -> int:
        """Numbers that one layer's KV cache keeps for one position."""
        return 2 * self.kv_heads * self.head_dim


class ManifestFile(msgspec.Struct, frozen=True):
    """One file of a model and the SHA-256 of each 4 MiB chunk of it."""

    name: Annotated[str, msgspec.Meta(max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE_CHUNKS * CHUNK_BYTES)]
    chunks: Annotated[
        tuple[Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")], ...],
        msgspec.Meta(max_length=MAX_FILE_CHUNKS),
    ]


class Manifest(msgspec.Struct, frozen=True):
    """What a model id names: two peers with one id hold the same bytes."""

    shape: ModelShape
    files: Annotated[tuple[ManifestFile, ...], msgspec.Meta(max_length=4096)]

    @property
    def model(self) -> ModelId:
        """Hex SHA-256 of the canonical encoding (msgpack, files in name order)."""
        ordered = msgspec.structs.replace(
            self, files=tuple(sorted(self.files, key=lambda file: file.name))
        )
        return ModelId(hashlib.sha256(msgspec.msgpack.encode(ordered, order="sorted")).hexdigest())
