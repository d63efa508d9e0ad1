"""In what numbers a worker holds a model's layers, settled before they are counted and placed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from gennode.engine.checkpoint.llama_config import FAMILY
from gennode.engine.child.process import ComputeProcess
from gennode.engine.choice.runs import RunFile
from gennode.engine.folders import Folder
from gennode.engine.gguf.folder import GgufFolder
from gennode.engine.gguf.shard import SLOTS
from gennode.engine.seam import CachePrecision, Precision
from gennode.errors import ResourceError, UsageError
from gennode.node.live import LiveNode
from gennode.sharding.capacity import FLOAT32_BYTES, PLANNED_SESSIONS, Account, account
from gennode.sharding.snapshots import formats
from gennode.wire.manifest import ModelShape

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """What a person asked for. `precision` auto: whatever is quickest here."""

    precision: Precision | Literal["auto"] = "auto"
    cache: CachePrecision = "fp32"
    device: str = "cpu"


@dataclass(frozen=True)
class Format:
    """Of weights and of keys and values.

    `precision` auto: not ours to choose, as in a GGUF file. `compute_class`: of engines that
    hold layers so, as far as sizes go; empty if nothing is known of them. `layer_bytes`: of a
    loaded layer without caches, where more is known than its class. `sessions`: how many have
    room set aside.
    """

    precision: Precision | Literal["auto"]
    cache: CachePrecision = "fp32"
    compute_class: str = ""
    layer_bytes: int = 0
    sessions: int = PLANNED_SESSIONS

    def account(self, shape: ModelShape, memory_bytes: int, layers: int | None = None) -> Account:
        """What `memory_bytes` are good for; see `capacity.account`."""
        weight_bytes, number_bytes = formats(self.compute_class) or (FLOAT32_BYTES, FLOAT32_BYTES)
        if self.layer_bytes:
            weight_bytes = self.layer_bytes / shape.layer_parameters
        return account(
            shape,
            memory_bytes,
            layers=layers,
            sessions=self.sessions,
            weight_bytes=weight_bytes,
            number_bytes=number_bytes,
        )


def run_file() -> Path:
    """Where it is recorded how long layers took, for all nodes of this user."""
    return platformdirs.user_cache_path("gennode") / "runs.jsonl"


def has_choice(shape: ModelShape, folder: Folder | None) -> bool:
    """Whether a model's weights can be held in more than one way: the Llama family's can.

    `folder`: None if the model comes from peers, who share no GGUF files.
    """
    return shape.architecture in FAMILY and not isinstance(folder, GgufFolder)


def format_of(
    shape: ModelShape,
    folder: Folder | None,
    precision: Precision | Literal["auto"],
    wish: Wish,
) -> Format:
    """The format of a model where `precision` was chosen for those that have a choice."""
    if isinstance(folder, GgufFolder):
        # Sessions: all of llama.cpp's slots grow with the longest.
        gguf = folder.gguf
        return Format("auto", "fp32", gguf.compute_class, gguf.layer_memory_bytes, SLOTS)
    cache = wish.cache
    if not has_choice(shape, folder):
        precision, cache = "fp32", "fp32"
    kind = "cpu" if wish.device == "cpu" else "cuda"  # sizes are the same on all accelerators
    short = "-kv8" if cache == "int8" else ""
    return Format(precision, cache, f"{precision}{short}-{kind}")


def narrowest(shape: ModelShape, folder: Folder | None, wish: Wish) -> Format:
    """Of those that may be settled on, the one that takes least.

    UsageError if the model can't be held in what is wished for.
    """
    if not has_choice(shape, folder):
        _refuse(shape, folder, wish)
    if wish.precision != "auto":
        return format_of(shape, folder, wish.precision, wish)
    return format_of(shape, folder, "int8" if wish.device == "cpu" else "fp16", wish)


async def settle(
    node: LiveNode,
    compute: ComputeProcess,
    memory_bytes: int,
    shape: ModelShape,
    folder: Folder | None,
    wish: Wish,
) -> Format:
    """The one that the compute process finds best. DeviceError, UsageError if there is none."""
    found = narrowest(shape, folder, wish)
    if not has_choice(shape, folder):
        return found
    runs = RunFile(run_file())
    precision, fresh = await node.in_engine_thread(
        lambda: compute.settle(wish.precision, shape, wish.device, memory_bytes, runs.read)
    )
    try:
        if fresh:
            runs.add(fresh)
    except ResourceError as error:  # a full disk: the next node measures again
        log.warning("runs_not_recorded why=%s", error)
    return format_of(shape, folder, precision, wish)


def _refuse(shape: ModelShape, folder: Folder | None, wish: Wish) -> None:
    is_gguf = isinstance(folder, GgufFolder)
    name = "a GGUF file" if is_gguf else f"{shape.architecture:.64}"
    if wish.precision not in (("auto",) if is_gguf else ("auto", "fp32")):
        raise UsageError(
            f"{name} can't be computed in {wish.precision} here, only "
            f"{'as it is stored' if is_gguf else 'in fp32'}",
            hint="leave --precision out",
        )
    if wish.cache != "fp32":
        raise UsageError(
            f"the cache of {name} can't be held in {wish.cache} here", hint="leave --cache out"
        )
