"""Huffman by zstd: what comes back, and what is refused before memory is taken."""

from __future__ import annotations

import numpy as np
import pytest

from gennode.errors import RemoteError
from gennode.wire import entropy


def test_uneven_bytes_shrink_and_come_back() -> None:
    plane = np.random.default_rng(1).geometric(0.5, 4096).astype(np.uint8).tobytes()
    small = entropy.compressor().compress(plane)
    assert entropy.shrinks(len(small), len(plane))
    assert entropy.expand(small, 4096, entropy.decompressor()) == plane


def test_noise_does_not_shrink() -> None:
    noise = np.random.default_rng(1).bytes(4096)
    assert not entropy.shrinks(len(entropy.compressor().compress(noise)), 4096)


@pytest.mark.parametrize("size_bytes", [0, 99, 101])
def test_another_size_is_refused(size_bytes: int) -> None:
    small = entropy.compressor().compress(bytes(100))
    with pytest.raises(RemoteError, match="another size"):
        entropy.expand(small, size_bytes, entropy.decompressor())
