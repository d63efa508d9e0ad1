"""Hidden states to wire bytes and back: the quantiser is part of the protocol.

A codec turns float32 rows [rows, dim], one for each token, into bytes: each row by itself, so
that a frame can be cut by token without being decoded. All numbers are little-endian, and all of
what rounds does so to nearest, ties to even. Each format is specified to the bit in the module
that holds it:

    plain         raw, bf16
    integers      int8, int8-outlier (the default), int6-outlier      with outliers and packing
    minifloats    fp8, mxfp8, mxfp6, mxfp4
    lossless      lossless, bf16-planes

Bits are compared with a slow second implementation in the tests, and held by test vectors.
"""

from __future__ import annotations

from gennode.wire.activations.contract import MAX_DIM, Buffer, Codec, Rows
from gennode.wire.activations.integers import BLOCK, Integers
from gennode.wire.activations.lossless import Planes
from gennode.wire.activations.minifloats import E2M1, E2M3, E4M3, Minifloats
from gennode.wire.activations.outliers import OUTLIERS
from gennode.wire.activations.plain import Bf16, Raw
from gennode.wire.fields import CodecName

__all__ = ["BLOCK", "MAX_DIM", "NAMES", "OUTLIERS", "Buffer", "Codec", "Rows", "codec"]


def codec(name: CodecName) -> Codec:
    """The codec of this name."""
    return _CODECS[name]


_ALL: tuple[Codec, ...] = (
    Raw(),
    Planes("lossless", width=4),
    Bf16(),
    Planes("bf16-planes", width=2),
    Integers("int8", bits=8, apart=False),
    Integers("int8-outlier", bits=8, apart=True),
    Integers("int6-outlier", bits=6, apart=True),
    Minifloats("fp8", E4M3, block=128, is_mx=False),
    Minifloats("mxfp8", E4M3, block=32, is_mx=True),
    Minifloats("mxfp6", E2M3, block=32, is_mx=True),
    Minifloats("mxfp4", E2M1, block=32, is_mx=True),
)
_CODECS: dict[CodecName, Codec] = {one.name: one for one in _ALL}
NAMES: tuple[CodecName, ...] = tuple(_CODECS)
"""Every codec, from the widest to the narrowest of its kind."""
