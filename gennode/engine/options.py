"""What engines are told when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gennode.engine.seam import DEFAULT_CACHE_BYTES, CachePrecision, Precision


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
