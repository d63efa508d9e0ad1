"""The encoder for devices writes what numpy's writes, to the bit."""

from __future__ import annotations

import pytest
import torch

from gennode.engine.wire_gpu import Outgoing, encode_rows
from gennode.errors import LocalError
from gennode.wire.activations import codec
from tests.wire.activations.rows import DIMS, KINDS, awkward


@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_those_of_numpy(kind: str) -> None:
    for seed, dim in enumerate((*DIMS, 4096)):
        for rows in (1, 3):
            states = awkward(kind, rows, dim, seed)
            coded = encode_rows(torch.from_numpy(states))
            assert coded.numpy().tobytes() == codec("int8-outlier").encode(states), (dim, rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", KINDS)
def test_bits_on_a_device_are_those_of_numpy(kind: str) -> None:
    outgoing = Outgoing(3, 4096)
    for rows in (1, 3):
        states = awkward(kind, rows, 4096, seed=rows)
        outgoing.start(torch.from_numpy(states).cuda())
        assert outgoing.payload() == codec("int8-outlier").encode(states)
    outgoing.start(torch.full((1, 4096), torch.nan, device="cuda"))
    with pytest.raises(LocalError):
        outgoing.payload()
