"""Which engine computes a model here: the one place that knows them all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gennode.engine.checkpoint.any_config import AnyConfig
from gennode.engine.checkpoint.hashing import Progress
from gennode.engine.checkpoint.weights import ModelFolder, open_model, read_shape
from gennode.engine.gguf.folder import GgufFolder, is_gguf, open_gguf, read_gguf_shape
from gennode.engine.seam import (
    DEFAULT_CACHE_BYTES,
    CachePrecision,
    OwnerEngine,
    Precision,
    ShardEngine,
)
from gennode.errors import UsageError
from gennode.wire.manifest import Manifest, ModelShape

Folder = ModelFolder | GgufFolder
"""A model on disk, in either of the formats that are computed here."""


if TYPE_CHECKING:
    from gennode.engine.child.process import ComputeProcess


@dataclass(frozen=True)
class EngineOptions:
    """How layers are to be computed.

    `precision` auto: whatever is fastest here. `max_cache_bytes`: for the keys and values of all
    sequences, in `max_layers` layers together (all of the model's, if it is 0). `isolated`: in a
    process of its own, which reads nothing but the model and may die without harm. `cache`: for
    models of the Llama family.
    """

    device: str = "cpu"
    precision: Precision | Literal["auto"] = "auto"
    max_cache_bytes: int = DEFAULT_CACHE_BYTES
    max_layers: int = 0
    isolated: bool = False
    cache: CachePrecision = "fp32"


def open_folder(
    path: Path,
    *,
    progress: Progress | None = None,
    cache: Path | None = None,
    known: Manifest | None = None,
) -> Folder:
    """Check and hash a folder with a GGUF file, or one in Hugging Face format; see open_model."""
    if is_gguf(path):
        return open_gguf(path, progress=progress, cache=cache, known=known)
    return open_model(path, progress=progress, cache=cache, known=known)


def read_folder_shape(path: Path) -> ModelShape:
    """The sizes that a folder's files state, nothing hashed. Raises ModelError."""
    return read_gguf_shape(path) if is_gguf(path) else read_shape(path)


def refuse_gguf(folder: Folder, what: str) -> ModelFolder:
    """The folder, for what takes the model in parts; UsageError that says `what` a GGUF can't."""
    if isinstance(folder, GgufFolder):
        raise UsageError(
            f"a GGUF file can't {what}: it is used whole, from a folder of one's own",
            hint="take the same model in Hugging Face format",
        )
    return folder


def shard_engine(
    folder: Folder, options: EngineOptions, process: ComputeProcess | None = None
) -> ShardEngine:
    """An engine without layers yet. Raises DeviceError, ModelError, ResourceError.

    UsageError if the only engine for this model lacks the precision that is asked for. Of GGUF
    it is always in a process of its own: what llama.cpp finds wrong ends its process.
    `process`: the one to run in, if it was started already for this folder and device.
    """
    if options.isolated or isinstance(folder, GgufFolder):
        from gennode.engine.child.shard import ChildShard  # whose process asks `engine_here`

        return ChildShard(folder, options, process)
    return engine_here(folder, options)


def engine_here(folder: Folder, options: EngineOptions) -> ShardEngine:
    """The same in this process, isolated or not."""
    is_llama = isinstance(folder, ModelFolder) and not isinstance(folder.config, AnyConfig)
    if options.cache != "fp32" and not is_llama:
        raise UsageError(
            f"the cache of this model can't be held in {options.cache} here",
            hint="leave that out: models of the Llama family alone have a choice",
        )
    if isinstance(folder, GgufFolder):
        from gennode.engine.gguf.shard import GgufShard

        if options.precision != "auto" or options.device != "cpu":
            raise UsageError(
                "a GGUF file is computed as its weights are stored, on the CPU",
                hint="leave precision and device out",
            )
        return GgufShard(folder, max_cache_bytes=options.max_cache_bytes)
    if isinstance(folder.config, AnyConfig):
        # Late: transformers takes seconds to import, and few models need it.
        from gennode.engine.any.shard import AnyShard

        if options.precision not in ("auto", "fp32"):
            raise UsageError(
                f"{folder.config.architecture} can't be computed in {options.precision} here",
                hint="leave the precision out: this model's layers run in fp32",
            )
        return AnyShard(folder, device=options.device, max_cache_bytes=options.max_cache_bytes)
    # Late: a node whose layers run in another process has no use for torch.
    from gennode.engine.llama.shard import LlamaShard

    return LlamaShard(
        folder,
        device=options.device,
        precision=options.precision,
        max_cache_bytes=options.max_cache_bytes,
        max_layers=options.max_layers,
        short_cache=options.cache == "int8",
    )


def owner_engine(folder: Folder) -> OwnerEngine:
    """The owner's part of a model. Raises ModelError; UsageError if a library is missing."""
    if isinstance(folder, GgufFolder):
        from gennode.engine.gguf.owner import GgufOwner

        return GgufOwner(folder)
    if isinstance(folder.config, AnyConfig):
        from gennode.engine.any.owner import AnyOwner

        return AnyOwner(folder)
    from gennode.engine.llama.owner import LlamaOwner

    return LlamaOwner(folder)
