"""A set of thousands in two bytes per member, to be compared with another's: a digest's inside.

Each member has a mark, 64 bits of a hash, and a state of three bits. A salt that is drawn for
each sketch multiplies all marks (multiply-shift hashing: Dietzfelbinger et al., 1997); the top
bits of the product choose a bucket and the next 13 stand for the member in it. Two members look
alike in one sketch in a thousand, and no longer in the next: the salt is not known beforehand,
so nobody can make a mark that hides another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from gennode.errors import RemoteError

MAX_MEMBERS = 32_768  # twice as many peers as a directory holds
STATES = 8

_KEY_BITS = 13
_STATE_BITS = 3
_BUCKET_MEMBERS = 8  # on average: one false match in 2^13 / 8 = 1,024
_MAX_BUCKET_BITS = 12  # MAX_MEMBERS / _BUCKET_MEMBERS
_MAX_COUNT = 255  # of a bucket, one byte; chance never fills one so far

Marks = npt.NDArray[np.uint64]
States = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Sketch:
    """Sorted `keys` (bucket and 13 bits) and their `states`, under one salt."""

    salt: int
    bucket_bits: int
    keys: npt.NDArray[np.uint32]
    states: States

    @classmethod
    def unpack(cls, salt: int, counts: bytes, entries: bytes) -> Self:
        """From a message: members per bucket, then two bytes each; RemoteError if they differ."""
        buckets = len(counts)
        bucket_bits = buckets.bit_length() - 1
        if not buckets or buckets != 1 << bucket_bits or bucket_bits > _MAX_BUCKET_BITS:
            raise RemoteError(f"a digest of {buckets} buckets")
        sizes = np.frombuffer(counts, np.uint8)
        if len(entries) % 2 or int(sizes.sum()) != len(entries) // 2:
            raise RemoteError(f"a digest has not the {int(sizes.sum())} entries that it claims")
        packed = np.frombuffer(entries, ">u2").astype(np.uint32)
        bucket = np.repeat(np.arange(buckets, dtype=np.uint32), sizes)
        keys = ((bucket << _KEY_BITS) | (packed >> _STATE_BITS)).astype(np.uint32)
        order = np.argsort(keys, kind="stable")
        return cls(salt | 1, bucket_bits, keys[order], (packed[order] % STATES).astype(np.uint8))

    def pack(self) -> tuple[bytes, bytes]:
        """(members per bucket, two bytes each)."""
        buckets = 1 << self.bucket_bits
        bucket = self.keys >> _KEY_BITS
        sizes = np.bincount(bucket, minlength=buckets)
        keys, states = self.keys, self.states
        if int(sizes.max(initial=0)) > _MAX_COUNT:  # the others ask for, or send, what is left out
            first = np.searchsorted(bucket, np.arange(buckets))
            fits = np.arange(len(keys)) - first[bucket] < _MAX_COUNT
            keys, states, sizes = keys[fits], states[fits], np.minimum(sizes, _MAX_COUNT)
        entries = ((keys % (1 << _KEY_BITS)) << _STATE_BITS) | states
        return sizes.astype(np.uint8).tobytes(), entries.astype(">u2").tobytes()

    def find(self, keys: npt.NDArray[np.uint32]) -> Rows:
        """For each key, where it is in here, or -1."""
        if not len(self.keys):
            return np.full(len(keys), -1, dtype=np.intp)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)

    def only(self, chosen: Rows, states: States) -> Sketch:
        """Some of the members, in rising order, with other states."""
        return Sketch(self.salt, self.bucket_bits, self.keys[chosen], states)


def bucket_bits_for(members: int) -> int:
    """How many buckets a sketch of so many members has, as a power of two."""
    return min(_MAX_BUCKET_BITS, max(0, (members // _BUCKET_MEMBERS).bit_length()))


def sketch(marks: Marks, states: States, salt: int, bucket_bits: int) -> tuple[Sketch, Rows]:
    """The sketch of a set, and for each of its entries the row of `marks` that it stands for."""
    salt |= 1  # an even one would lose bits of every mark
    shift = np.uint64(64 - bucket_bits - _KEY_BITS)
    keys = ((marks * np.uint64(salt)) >> shift).astype(np.uint32)
    order = np.argsort(keys, kind="stable")
    return Sketch(salt, bucket_bits, keys[order], states[order] % STATES), order
