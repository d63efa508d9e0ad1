"""The precision that a worker computes in, settled before any of its layers is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from gennode.engine.checkpoint.llama_config import FAMILY
from gennode.engine.checkpoint.shelf import FolderShelf
from gennode.engine.checkpoint.weights import ModelFolder
from gennode.engine.choice.choose import Job
from gennode.engine.choice.here import candidates, choose_here
from gennode.engine.choice.runs import Layer, Run
from gennode.engine.devices import pick_device
from gennode.engine.llama.fastest import MIN_LAYER_PARAMETERS, WORTH, fastest
from gennode.engine.llama.precision import arithmetic, available
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.seam import Precision, ShardEngine
from gennode.wire.ids import Span
from gennode.wire.manifest import Manifest, ModelShape

# A worker that is asked now and then; what several ask at once is quickest in the same precision.
JOB = Job(sessions=4, prompt=32, answer=32)
BATCHES, CHUNKS = (1, 4), (8, 32)
STEP_S = 0.05  # of measuring each of the four steps above

# Of a layer that is measured whole. It is held in each precision at once, 7 bytes for each weight,
# and a larger one takes more seconds to pack than the choice is worth.
MAX_PARAMETERS = 1 << 26
_BYTES_OF_ALL = 8

_CACHE_BYTES = 16 * 1024**2  # a few sequences of 64 positions at most, in one layer
_NOISE = 1 << 16  # numbers that are drawn; more would take longer than to measure


def settle(
    wanted: Precision | Literal["auto"],
    shape: ModelShape,
    device: str,
    *,
    memory_bytes: int,
    hardware: str,
    recorded: Sequence[Run],
) -> tuple[Precision, list[Run]]:
    """The precision for a model of the Llama family, and what was measured for that.

    On a CPU it is learned: by runs of other layers, or else this model's layer is measured, with
    random weights, and the runs are returned to be recorded. Where that layer is too large for
    that, or for `memory_bytes`, the products alone are tried; see `fastest`. DeviceError if
    `wanted` can't be computed here.
    """
    place = torch.device(pick_device(device))
    if wanted != "auto":
        return arithmetic(wanted, place).precision, []
    if place.type != "cpu" or shape.layer_parameters < MIN_LAYER_PARAMETERS:
        return fastest(shape, place), []
    record, options = _Passed(recorded), candidates(available(place), BATCHES, CHUNKS)
    most = min(MAX_PARAMETERS, memory_bytes // _BYTES_OF_ALL)
    try:
        chosen = choose_here(
            JOB,
            Layer.of(shape),
            options,
            lambda: _engines(shape, device, available(place), most),
            runs=record,
            hardware=hardware,
            step_s=STEP_S,
            worth=WORTH,
        )
    except _UnfitError:
        return fastest(shape, place), []
    return chosen.precision, record.fresh


class _UnfitError(Exception):
    """A layer that is too large to be measured, or whose sizes no engine takes."""


class _Passed:
    """Runs that were passed to us; we can write no file, so others keep what is new."""

    def __init__(self, recorded: Sequence[Run]) -> None:
        self._recorded = recorded
        self.fresh: list[Run] = []

    def read(self, hardware: str) -> list[Run]:
        return [run for run in self._recorded if run.hardware == hardware]

    def add(self, runs: Sequence[Run]) -> None:
        self.fresh.extend(runs)


def _engines(
    shape: ModelShape, device: str, precisions: Iterable[Precision], most: int
) -> Mapping[Precision, ShardEngine]:
    """One with a random layer for each precision."""
    is_odd = shape.heads % shape.kv_heads or shape.head_dim % 2  # it may be any peer's claim
    if is_odd or shape.layer_parameters > most:
        raise _UnfitError
    engines: dict[Precision, ShardEngine] = {}
    for precision in precisions:
        engine = LlamaShard(
            _noise_folder(shape), device=device, precision=precision, max_cache_bytes=_CACHE_BYTES
        )
        engine.load(Span(0, 1))
        engines[precision] = engine
    return engines


class _NoiseFolder(ModelFolder):
    """A model of one layer whose weights are random, and nowhere but in memory."""

    def read(
        self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        first = next(iter(shapes.values()))
        size = (sum(each[0] for each in shapes.values()), *first[1:])
        noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        result = torch.empty(size, dtype=dtype or torch.float32)
        flat = result.view(-1)
        for start in range(0, len(flat), _NOISE):
            flat[start : start + _NOISE] = noise[: len(flat) - start]
        return result.mul_(size[-1] ** -0.5)


def _noise_folder(shape: ModelShape) -> ModelFolder:
    config = FAMILY[shape.architecture](
        hidden_size=shape.dim,
        intermediate_size=shape.ffn_dim,
        num_hidden_layers=1,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        max_position_embeddings=shape.max_positions,
    )
    manifest, path = Manifest(config.shape, ()), Path()
    shelf = FolderShelf(path, manifest)
    return _NoiseFolder(path, config, manifest, frozenset(), {}, (), shelf)
