"""A model's manifest: its shape and the hash of every piece of its weights."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from gennode.errors import RemoteError
from gennode.wire.ids import LayerIndex, ModelId

CHUNK_BYTES = 4 * 1024 * 1024
MAX_MANIFEST_BYTES = 32 * 1024 * 1024  # 67 bytes per 4 MiB: two terabytes of weights
MAX_FILE_CHUNKS = 1 << 18  # files of 1 TiB; the largest published shards have some 50 GB

_Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
_Width = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
_Experts = Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]


class ModelShape(msgspec.Struct, frozen=True, omit_defaults=True):
    """The sizes of a decoder that placement, memory and cost are computed from.

    With `experts`, a token passes through `experts_used` of them, each a gated MLP of width
    `expert_dim`, and through `shared_dim` more that all tokens share; `ffn_dim`, the width of
    the MLP of a model without experts, then counts for nothing. `tied`: embedding and head are
    one matrix; manifests of Llamas, which are older, don't say so. What has its default is left
    out of the encoding, so that models without experts keep the ids that they had before.
    """

    architecture: Annotated[str, msgspec.Meta(max_length=64)]
    layers: LayerIndex
    dim: _Size
    heads: _Size
    kv_heads: _Size
    head_dim: _Size
    ffn_dim: _Size
    vocab: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    max_positions: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    experts: _Experts = 0
    experts_used: _Experts = 0
    expert_dim: _Width = 0
    shared_dim: _Width = 0
    tied: bool = False

    def __post_init__(self) -> None:
        if self.experts and not (0 < self.experts_used <= self.experts and self.expert_dim):
            raise ValueError("experts that no token can use")
        if not self.experts and (self.experts_used or self.expert_dim or self.shared_dim):
            raise ValueError("sizes of experts without experts")

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's attention: queries, keys, values and output.

        Keys and values have `kv_heads` heads (grouped-query attention: Ainslie et al. 2023,
        arXiv:2305.13245).
        """
        return self.dim * self.head_dim * 2 * (self.heads + self.kv_heads)

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert, a gated MLP (Shazeer 2020, arXiv:2002.05202); 0 without any."""
        return 3 * self.dim * self.expert_dim

    @property
    def common_parameters(self) -> int:
        """Weights of one layer that every token passes: all but the experts, with the router."""
        dense_dim = self.shared_dim if self.experts else self.ffn_dim
        mlp = 3 * self.dim * dense_dim + self.dim * self.experts
        return self.attention_parameters + mlp + 2 * self.dim

    @property
    def layer_parameters(self) -> int:
        """Weights of one transformer layer (attention, gated MLP or router and experts, norms)."""
        return self.common_parameters + self.experts * self.expert_parameters

    @property
    def used_parameters(self) -> int:
        """Weights of one layer that one token passes."""
        return self.common_parameters + self.experts_used * self.expert_parameters

    @property
    def owner_parameters(self) -> int:
        """Weights around the layers, which the owner holds: embedding, final norm and head."""
        return (1 if self.tied else 2) * self.vocab * self.dim + self.dim

    @property
    def parameters(self) -> int:
        """Weights of the whole model."""
        return self.layers * self.layer_parameters + self.owner_parameters

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
    def canonical(self) -> bytes:
        """The encoding that is hashed and sent: msgpack, files in name order."""
        ordered = msgspec.structs.replace(
            self, files=tuple(sorted(self.files, key=lambda file: file.name))
        )
        return msgspec.msgpack.encode(ordered, order="sorted")

    @property
    def model(self) -> ModelId:
        """Hex SHA-256 of the canonical encoding."""
        return ModelId(hashlib.sha256(self.canonical).hexdigest())


def chunk_sizes(file: ManifestFile) -> tuple[int, ...]:
    """Bytes of each chunk of a file; all but the last are whole."""
    whole, rest = divmod(file.size_bytes, CHUNK_BYTES)
    return (CHUNK_BYTES,) * whole + ((rest,) if rest else ())


def parse_manifest(data: bytes, model: ModelId) -> Manifest:
    """The manifest that a peer sent for a model id; RemoteError if it is not that one.

    The hash is checked before anything is decoded. It binds the sender to the id and not to
    the truth, so sizes, names and chunk counts are checked as well.
    """
    if len(data) > MAX_MANIFEST_BYTES or hashlib.sha256(data).hexdigest() != model:
        raise RemoteError(f"a manifest of {len(data)} bytes is not that of the model asked for")
    try:
        manifest = msgspec.msgpack.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteError(f"malformed manifest: {error}") from error
    if len({file.name for file in manifest.files}) != len(manifest.files):
        raise RemoteError("a manifest names a file twice")
    for file in manifest.files:
        if len(file.chunks) != -(-file.size_bytes // CHUNK_BYTES):
            raise RemoteError(f"a manifest's {file.name} has chunks that don't fit its size")
    if manifest.canonical != data:  # what we make of it would go by another id
        raise RemoteError("a manifest is not in its canonical encoding")
    return manifest
