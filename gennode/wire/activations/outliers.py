"""A row's largest numbers, which are sent apart: found, written and read.

    kept × u16 index, ascending | kept × f16 value          kept = min(16, dim)

They are the numbers of largest magnitude; of equal ones those of lower index. A value is rounded
to the nearest f16, ties to even; beyond ±65504 it is ±65504.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gennode.errors import RemoteError
from gennode.wire.activations.contract import Rows, Words, any_of, check_finite

OUTLIERS = 16  # of each row
F16_MAX = np.float32(65504)
F16_MAX_BITS = 0x477F_E000  # the same as bits of a float32

_FEW, _MANY = 64, 256  # groups of columns: more of them leave fewer candidates


Indices = npt.NDArray[np.int64]
HalfWords = npt.NDArray[np.uint16]


def kept_of(dim: int) -> int:
    """How many numbers of a row are outliers."""
    return min(OUTLIERS, dim)


def find(magnitudes: Words, kept: int) -> tuple[Indices, int]:
    """Places of each row's `kept` largest magnitudes in all of them, ascending, [rows, kept].

    And the largest of all. `magnitudes`: bits, [rows, padded], C-contiguous, rows filled up with
    zeros to a multiple of 64. LocalError if one is not finite.

    Columns are taken together in groups. As many groups reach the `kept`-th largest of their
    maxima, so at least as many magnitudes do, and few more: only those are looked at.
    """
    rows, width = magnitudes.shape
    groups = _MANY if width % _MANY == 0 else _FEW
    largest = np.maximum.reduce(magnitudes.reshape(rows, -1, groups), axis=1)
    largest.sort(axis=1)
    top = check_finite(largest[:, -1])  # of each row
    flat = magnitudes.reshape(-1)
    candidates = (magnitudes >= largest[:, -kept, None]).reshape(-1).nonzero()[0]
    if len(candidates) == rows * kept:
        return candidates.reshape(rows, kept), top
    size = flat[candidates]
    if rows == 1:
        edge = len(size) - kept
        chosen = candidates[size >= np.partition(size, edge)[edge]]
        if len(chosen) == kept:
            return chosen.reshape(1, kept), top
    row = candidates // width
    order = np.lexsort((-size, row))  # stable: of equal ones the lower index comes first
    first = np.searchsorted(row, np.arange(rows))
    chosen = candidates[order[first[:, None] + np.arange(kept)]]
    chosen.sort(axis=1)
    return chosen, top


def write(values: Rows, places: Indices, width: int, target: HalfWords, top: int) -> None:
    """Put outliers, [rows, kept], into the first 2 × kept words of each row of `target`.

    `places` count through rows of `width`; `top`: bits of the largest magnitude.
    """
    rows, kept = places.shape
    if top > F16_MAX_BITS:
        np.clip(values, -F16_MAX, F16_MAX, out=values)
    target[:, :kept] = places if rows == 1 else places - width * np.arange(rows)[:, None]
    target.view("<f2")[:, kept : 2 * kept] = values


def restore(states: Rows, index: HalfWords, values: Rows) -> None:
    """Put outliers, [rows, kept], back to their columns of `states`, [rows, dim], C-contiguous.

    RemoteError if the indices are not ascending or too large.
    """
    rows, dim = states.shape
    last = index[0, -1] if rows == 1 else np.maximum.reduce(index[:, -1])
    if last >= dim or any_of(index[:, 1:] <= index[:, :-1]):
        raise RemoteError("a frame's outlier indices are out of range or out of order")
    places = index if rows == 1 else index + np.arange(0, rows * dim, dim)[:, None]
    states.reshape(-1)[places] = values
