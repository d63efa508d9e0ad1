"""Matrices of packed checkpoints, as numbers again; see `quantised` for how they are packed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch

from gennode.engine.checkpoint.quantised import WORD_BITS, Quantisation, Shape, packed_shapes
from gennode.errors import ModelError

_AWQ_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)  # of the outputs 0 to 7
_CHUNK_INPUTS = 1024  # unpacked at a time, so that what is between takes little beside the matrix


def read_packed(
    quantisation: Quantisation,
    name: str,
    shape: Shape,
    names: Collection[str],
    read: Callable[[Mapping[str, Shape]], torch.Tensor],
) -> torch.Tensor:
    """The matrix `name`, float32 [out, in]; `read` gives one tensor, by its name and shape."""
    wanted = packed_shapes(quantisation, {name: shape}, names)
    return unpack(quantisation, name, shape, {one: read({one: wanted[one]}) for one in wanted})


def unpack(
    quantisation: Quantisation, name: str, shape: Shape, parts: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """The matrix `name`, float32 [out, in], from its parts as `packed_shapes` names them.

    No bit is lost: a code less a zero has 9 bits and a scale at most 11. ModelError if g_idx
    names a group that is not there.
    """
    stem = name.rpartition(".")[0]
    outputs, inputs = shape
    words, scales = parts[f"{stem}.qweight"], parts[f"{stem}.scales"].float()
    zeros = _zeros(quantisation, parts[f"{stem}.qzeros"]).float()
    group = parts.get(f"{stem}.g_idx")
    if group is None:
        size = inputs if quantisation.group_size == -1 else quantisation.group_size
        group = torch.arange(inputs) // size
    group = group.long()
    if inputs and not 0 <= int(group.min()) <= int(group.max()) < len(scales):
        raise ModelError(f"{stem}.g_idx names a group that is not there",
                         hint="download the model again")  # fmt: skip
    result = torch.empty(shape, dtype=torch.float32)
    step = 1 if quantisation.quant_method == "awq" else quantisation.pack
    for start in range(0, inputs, _CHUNK_INPUTS):
        end = min(start + _CHUNK_INPUTS, inputs)
        codes = _codes(quantisation, words[start // step : end // step]).view(-1, outputs)
        where = group[start:end]
        result[:, start:end] = codes.float().sub_(zeros[where]).mul_(scales[where]).T
    return result


def _codes(quantisation: Quantisation, words: torch.Tensor) -> torch.Tensor:
    """Codes of [inputs, outputs] from their words."""
    if quantisation.quant_method == "awq":
        return _spread(words, _AWQ_SHIFTS, quantisation.bits).flatten(1)
    shifts = range(0, WORD_BITS, quantisation.bits)
    return _spread(words, shifts, quantisation.bits).transpose(1, 2).flatten(0, 1)


def _zeros(quantisation: Quantisation, words: torch.Tensor) -> torch.Tensor:
    """Zeros of [groups, outputs] from their words."""
    if quantisation.quant_method == "awq":
        return _spread(words, _AWQ_SHIFTS, quantisation.bits).flatten(1)
    shifts = range(0, WORD_BITS, quantisation.bits)
    zeros = _spread(words, shifts, quantisation.bits).flatten(1)
    if quantisation.layout == "gptq":
        zeros = (zeros + 1) & ((1 << quantisation.bits) - 1)
    return zeros


def _spread(words: torch.Tensor, shifts: Collection[int], bits: int) -> torch.Tensor:
    """The codes of each word along a new last axis."""
    by = torch.tensor(list(shifts), dtype=torch.int32)
    return (words[:, :, None] >> by) & ((1 << bits) - 1)
