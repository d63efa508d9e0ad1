"""Which engine computes a model here: the one place that knows them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from gennode.engine.checkpoint.weights import ModelFolder
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.llama.shard import DEFAULT_CACHE_BYTES, LlamaShard
from gennode.engine.seam import OwnerEngine, Precision, ShardEngine


@dataclass(frozen=True)
class EngineOptions:
    """How layers are to be computed.

    `precision` auto: whatever is fastest here. `max_cache_bytes`: for the keys and values of all
    sequences, in `max_layers` layers together (all of the model's, if it is 0).
    """

    device: str = "cpu"
    precision: Precision | Literal["auto"] = "auto"
    max_cache_bytes: int = DEFAULT_CACHE_BYTES
    max_layers: int = 0


def shard_engine(folder: ModelFolder, options: EngineOptions) -> ShardEngine:
    """An engine without layers yet. Raises DeviceError, ModelError, ResourceError."""
    return LlamaShard(
        folder,
        device=options.device,
        dtype=torch.float32,
        max_cache_bytes=options.max_cache_bytes,
    )


def owner_engine(folder: ModelFolder) -> OwnerEngine:
    """The owner's part of a model. Raises ModelError."""
    return LlamaOwner(folder)
