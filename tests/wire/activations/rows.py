"""Rows that are hard on a quantiser, and the formats of integers once more, slowly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]
Kind = Callable[[np.random.Generator, tuple[int, int]], npt.NDArray[np.floating]]

KINDS: dict[str, Kind] = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "ties in size": lambda rng, size: rng.integers(-3, 4, size).astype(float),
    "ties between codes": lambda rng, size: rng.integers(-254, 255, size) / 2,
    "any size": lambda rng, size: rng.standard_normal(size) * 10.0 ** rng.integers(-46, 38, size),
    "scales below the normal": lambda rng, size: rng.standard_normal(size) * 1e-6,
    "below every scale": lambda rng, size: rng.standard_normal(size) * 1e-8,
    "subnormal": lambda rng, size: rng.standard_normal(size) * 1e-40,
    "zeros of both signs": lambda rng, size: np.copysign(0.0, rng.standard_normal(size)),
    "few": lambda rng, size: rng.standard_normal(size) * (rng.random(size) < 0.02),
    "huge rows": lambda rng, size: (
        rng.standard_normal(size) * 10.0 ** rng.integers(-3, 38, (size[0], 1))
    ),
    "equal": lambda rng, size: np.full(size, rng.standard_normal()),
    "the largest": lambda rng, size: rng.choice([-1.0, 1.0], size) * 3.4028234663852886e38,
}
DIMS = (1, 3, 15, 16, 17, 63, 64, 65, 100, 192, 256, 320, 1000, 1024)


def awkward(kind: str, rows: int, dim: int, seed: int) -> Rows:
    """Finite float32 rows of a kind."""
    rng = np.random.default_rng(seed)
    made = KINDS[kind](rng, (rows, dim))
    return np.clip(made, -3.4028234663852886e38, 3.4028234663852886e38).astype(np.float32)


def slow_integers(states: Rows, *, bits: int, apart: bool) -> bytes:
    """What `int8`, `int8-outlier` and `int6-outlier` have to write, number by number."""
    return b"".join(_slow_row([np.float32(x) for x in row], bits, apart) for row in states)


def _slow_row(row: list[np.float32], bits: int, apart: bool) -> bytes:
    dim, top = len(row), (1 << bits - 1) - 1
    kept = min(16, dim) if apart else 0
    index = sorted(sorted(range(dim), key=lambda i: (-abs(row[i]), i))[:kept])
    largest = np.float32(65504)
    values = [np.float16(max(-largest, min(largest, row[i]))) for i in index]
    rest = [np.float32(0) if i in index else x for i, x in enumerate(row)]
    scales, codes = [], []
    for start in range(0, dim, 64):
        block = rest[start : start + 64]
        scale = np.float16(min(max(map(abs, block)) / np.float32(top), largest))
        scales.append(scale)
        for x in block:
            whole = int(np.rint(x / np.float32(scale))) if scale else 0
            codes.append(max(-top, min(top, whole)) % (1 << bits))
    parts = (np.array(index, "<u2"), np.array(values, "<f2"), np.array(scales, "<f2"))
    return b"".join(part.tobytes() for part in parts) + _slow_codes(codes, bits)


def _slow_codes(codes: list[int], bits: int) -> bytes:
    if bits == 8:
        return bytes(codes)
    length = -(-len(codes) // 4)
    filled = codes + [0] * (4 * length - len(codes))
    quarters = [filled[start : start + length] for start in range(0, 4 * length, length)]
    whole = [a | b << 6 | c << 12 | d << 18 for a, b, c, d in zip(*quarters, strict=True)]
    return bytes(one >> shift & 255 for shift in (0, 8, 16) for one in whole)
