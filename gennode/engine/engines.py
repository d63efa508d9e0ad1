"""Which engine computes a model here: the one place that knows them all."""

from __future__ import annotations

from gennode.engine.checkpoint.any_config import AnyConfig
from gennode.engine.checkpoint.weights import ModelFolder
from gennode.engine.child.process import ComputeProcess
from gennode.engine.child.shard import ChildShard
from gennode.engine.folders import Folder
from gennode.engine.gguf.folder import GgufFolder
from gennode.engine.options import EngineOptions
from gennode.engine.seam import OwnerEngine, ShardEngine
from gennode.errors import UsageError


def shard_engine(
    folder: Folder, options: EngineOptions, process: ComputeProcess | None = None
) -> ShardEngine:
    """An engine without layers yet. Raises DeviceError, ModelError, ResourceError.

    UsageError if the only engine for this model lacks the precision that is asked for. Of GGUF
    it is always in a process of its own: what llama.cpp finds wrong ends its process.
    `process`: the one to run in, if it was started already for this folder and device.
    """
    if options.isolated or isinstance(folder, GgufFolder):
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
