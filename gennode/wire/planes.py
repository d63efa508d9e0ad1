"""Weights made smaller for the way, without loss: the exponents apart, and coded by Huffman.

A trained weight's exponent takes few values, its sign and mantissa look like noise (ZipNN,
Hershcovitch et al. 2024, arXiv:2411.05239). Turning each number left by one bit brings the whole
exponent into its highest byte. The bytes of one place form a plane; planes that shrink are
compressed, the others travel as they are.

    packed = width u8 | mask of compressed planes u8 | length u32 of each plane | planes | rest
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from gennode.errors import RemoteError
from gennode.wire import entropy
from gennode.wire.manifest import CHUNK_BYTES

WIDTHS = (2, 4)  # bytes of a bf16 (or fp16), and of an fp32
SAMPLE_BYTES = 64 * 1024  # enough to see which width shrinks, at 1/64 of a chunk's cost

_HEAD = struct.Struct("<BB")


def pack(chunk: bytes) -> bytes | None:
    """A packed form that `unpack` restores, or None if the chunk does not shrink."""
    start = max(0, (len(chunk) - SAMPLE_BYTES) // 2) & ~3
    sample = chunk[start : start + SAMPLE_BYTES]
    tried = {width: _pack(sample, width, (1 << width) - 1) for width in WIDTHS}
    width = min(WIDTHS, key=lambda width: len(tried[width]))
    if not entropy.shrinks(len(tried[width]), len(sample)):
        return None
    packed = _pack(chunk, width, mask=tried[width][1])
    return packed if entropy.shrinks(len(packed), len(chunk)) else None


def pays(link_mb_s: float, pack_mb_s: float, saved_share: float) -> bool:
    """Whether packing saves more time on the link than it takes at both ends.

    `link_mb_s`: how fast bytes arrive, 0 if nobody knows: then they go as they are, which
    measures it. `pack_mb_s`: how fast the sender packs; unpacking is faster, so that twice the
    packing time bounds both. `saved_share`: of the bytes. Nothing is won by working while
    others wait for the core, so no overlap with the sending is counted on.
    """
    return link_mb_s > 0 and saved_share / link_mb_s > 2 / pack_mb_s


def unpack(packed: bytes, size_bytes: int) -> bytes:
    """The chunk of `size_bytes` that was packed; RemoteError if it is no packed chunk of that size.

    What is decompressed is bounded before memory is taken for it.
    """
    if len(packed) < _HEAD.size or size_bytes > CHUNK_BYTES:
        raise RemoteError("a packed chunk of a wrong size")
    width, mask = _HEAD.unpack_from(packed)
    if width not in WIDTHS or mask >> width:
        raise RemoteError("a packed chunk of unknown form")
    head_bytes = _HEAD.size + 4 * width
    if len(packed) < head_bytes:
        raise RemoteError("a packed chunk that is cut short")
    lengths = struct.unpack_from(f"<{width}I", packed, _HEAD.size)
    count, rest = divmod(size_bytes, width)
    if len(packed) != head_bytes + sum(lengths) + rest:
        raise RemoteError("a packed chunk whose lengths don't add up")
    places = np.empty((count, width), np.uint8)
    start = head_bytes
    for place, length in enumerate(lengths):
        plane = packed[start : start + length]
        start += length
        places[:, place] = _plane(plane, count, compressed=bool(mask >> place & 1))
    numbers = places.reshape(-1).view(_kind(width))
    turned = (numbers >> 1) | (numbers << (8 * width - 1))
    return bytes(turned.tobytes()) + packed[start:]


def _pack(chunk: bytes, width: int, mask: int) -> bytes:
    """`mask`: which planes to try; those that don't shrink stay as they are."""
    count = len(chunk) // width
    numbers = np.frombuffer(chunk, _kind(width), count)
    turned = (numbers << 1) | (numbers >> (8 * width - 1))
    compressor = entropy.compressor()
    planes = []
    for place in range(width):
        plane = (turned >> (8 * place)).astype(np.uint8).tobytes()
        if mask >> place & 1:
            small = compressor.compress(plane)
            if entropy.shrinks(len(small), len(plane)):
                plane = small
            else:
                mask ^= 1 << place
        planes.append(plane)
    lengths = struct.pack(f"<{width}I", *map(len, planes))
    return b"".join((_HEAD.pack(width, mask), lengths, *planes, chunk[count * width :]))


def _plane(data: bytes, count: int, *, compressed: bool) -> npt.NDArray[np.uint8]:
    if compressed:
        data = entropy.expand(data, count, entropy.decompressor())
    if len(data) != count:
        raise RemoteError("a plane of a wrong length")
    return np.frombuffer(data, np.uint8)


def _kind(width: int) -> str:
    return f"<u{width}"
