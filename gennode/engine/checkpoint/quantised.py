"""Checkpoints whose matrices are packed in 4 or 8 bits: GPTQ's and AWQ's, as they are published.

A matrix X.weight of [out, in] is kept as X.qweight, X.qzeros, X.scales and perhaps X.g_idx, and
is (code − zero) × scale, with a zero and a scale for each group of inputs and each output.

GPTQ (Frantar et al. 2022, arXiv:2210.17323; as AutoGPTQ and GPTQModel write it):
    qweight int32 [in / pack, out]: the lowest bits hold the first of `pack` inputs
    qzeros  int32 [groups, out / pack]: the same along outputs; checkpoint_format `gptq` stores
            each zero less one, `gptq_v2` as it is
    g_idx   int32 [in]: each input's group; without it they follow one another
AWQ (Lin et al. 2023, arXiv:2306.00978; as AutoAWQ's version `gemm` writes it):
    qweight int32 [in, out / 8], qzeros int32 [groups, out / 8]: of 8 outputs, those at
            0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated

import msgspec

from gennode.errors import ModelError

Shape = tuple[int, ...]

INTEGERS = ("qweight", "qzeros", "g_idx")
WORD_BITS = 32

_HINT = "take a checkpoint without quantisation, or one of GPTQ (4 or 8 bits) or AWQ (gemm)"


class Quantisation(msgspec.Struct, frozen=True):
    """`quantization_config` of a config.json; other keys tell how it was made."""

    quant_method: str = ""
    bits: int = 0
    group_size: Annotated[int, msgspec.Meta(ge=-1, le=1 << 18)] = 128
    desc_act: bool = False
    checkpoint_format: str | None = None
    format: str | None = None  # the newer name of that
    version: str | None = None
    zero_point: bool = True
    pack_dtype: str = "int32"
    dynamic: dict[str, msgspec.Raw] | None = None

    @property
    def layout(self) -> str:
        """How codes are packed, as the file names it."""
        if self.quant_method == "awq":
            return (self.version or self.format or "gemm").lower()
        return (self.checkpoint_format or self.format or "gptq").lower()

    @property
    def pack(self) -> int:
        """Codes in a word."""
        return WORD_BITS // self.bits

    def problem(self) -> str | None:
        """What we can't read, in words; None if we can."""
        known = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
        widths = {"gptq": (4, 8), "awq": (4,)}
        method = self.quant_method
        if method not in known:
            return f"quantisation by {method[:64]!r} is not supported"
        if self.layout not in known[method]:
            return f"the {method} layout {self.layout[:64]!r} is not supported"
        if self.bits not in widths[method]:
            return f"{method} in {self.bits} bits is not supported"
        if self.group_size == 0:
            return "a quantisation in groups of 0 is none"
        if self.pack_dtype != "int32":
            return f"codes packed in {self.pack_dtype[:64]!r} are not supported"
        if self.dynamic:
            return "quantisation that differs from matrix to matrix is not supported"
        if not self.zero_point:
            return "awq without zero points is not supported"
        return None

    def groups(self, inputs: int) -> int:
        """How many groups a matrix with so many inputs has."""
        return 1 if self.group_size == -1 else -(-inputs // self.group_size)


def packed_shapes(
    quantisation: Quantisation, shapes: Mapping[str, Shape], names: Collection[str]
) -> dict[str, Shape]:
    """The tensors that are there instead of `shapes`, with their shapes.

    `names`: of all tensors of the checkpoint: some matrices may be left as they were. ModelError
    if a matrix's sizes can't be packed.
    """
    found: dict[str, Shape] = {}
    for name, shape in shapes.items():
        if is_packed(name, names):
            found |= _parts(quantisation, name, shape, names)
        else:
            found[name] = shape
    return found


def is_packed(name: str, names: Collection[str]) -> bool:
    """Whether the matrix `name` is kept in packed parts."""
    stem, _, kind = name.rpartition(".")
    return kind == "weight" and f"{stem}.qweight" in names


def _parts(
    quantisation: Quantisation, name: str, shape: Shape, names: Collection[str]
) -> dict[str, Shape]:
    stem = name.rpartition(".")[0]
    pack = quantisation.pack
    is_awq = quantisation.quant_method == "awq"
    if len(shape) != 2 or shape[0] % pack or (shape[1] % pack and not is_awq):
        raise ModelError(f"{name} of {list(shape)} can't be packed by {pack} in a word",
                         hint="take config.json and the weights from the same model")  # fmt: skip
    outputs, inputs = shape
    groups = quantisation.groups(inputs)
    parts: dict[str, Shape] = {
        f"{stem}.qweight": (inputs, outputs // pack) if is_awq else (inputs // pack, outputs),
        f"{stem}.qzeros": (groups, outputs // pack),
        f"{stem}.scales": (groups, outputs),
    }
    if not is_awq and (quantisation.desc_act or f"{stem}.g_idx" in names):
        parts[f"{stem}.g_idx"] = (inputs,)
    return parts
