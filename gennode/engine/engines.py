"""Which engine computes a model here: the one place that knows them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gennode.engine.checkpoint.any_config import AnyConfig
from gennode.engine.checkpoint.weights import ModelFolder
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.llama.shard import DEFAULT_CACHE_BYTES, LlamaShard
from gennode.engine.seam import OwnerEngine, Precision, ShardEngine
from gennode.errors import UsageError


@dataclass(frozen=True)
class EngineOptions:
    """How layers are to be computed.

    `precision` auto: whatever is fastest here. `max_cache_bytes`: for the keys and values of all
    sequences, in `max_layers` layers together (all of the model's, if it is 0). `isolated`: in a
    process of its own, which reads nothing but the model and may die without harm.
    """

    device: str = "cpu"
    precision: Precision | Literal["auto"] = "auto"
    max_cache_bytes: int = DEFAULT_CACHE_BYTES
    max_layers: int = 0
    isolated: bool = False


def shard_engine(folder: ModelFolder, options: EngineOptions) -> ShardEngine:
    """An engine without layers yet. Raises DeviceError, ModelError, ResourceError.

    UsageError if the only engine for this model lacks the precision that is asked for.
    """
    if options.isolated:
        from gennode.engine.child.shard import ChildShard  # whose process asks here again

        return ChildShard(folder, options)
    if isinstance(folder.config, AnyConfig):
        # Late: transformers takes seconds to import, and few models need it.
        from gennode.engine.any.shard import AnyShard

        if options.precision not in ("auto", "fp32"):
            raise UsageError(
                f"{folder.config.architecture} can't be computed in {options.precision} here",
                hint="leave the precision out: this model's layers run in fp32",
            )
        return AnyShard(folder, device=options.device, max_cache_bytes=options.max_cache_bytes)
    return LlamaShard(
        folder,
        device=options.device,
        precision=options.precision,
        max_cache_bytes=options.max_cache_bytes,
        max_layers=options.max_layers,
    )


def owner_engine(folder: ModelFolder) -> OwnerEngine:
    """The owner's part of a model. Raises ModelError."""
    if isinstance(folder.config, AnyConfig):
        from gennode.engine.any.owner import AnyOwner

        return AnyOwner(folder)
    return LlamaOwner(folder)
