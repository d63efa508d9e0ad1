"""raw and bf16: rounding, the largest numbers, and those that are none."""

from __future__ import annotations

import numpy as np
import pytest

from gennode.errors import RemoteError
from gennode.wire.activations import codec
from tests.wire.activations.rows import KINDS, awkward


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "the largest"])
def test_bf16_is_that_of_torch(kind: str) -> None:
    torch = pytest.importorskip("torch")
    states = awkward(kind, 3, 500, seed=1)
    theirs = torch.from_numpy(states).bfloat16().float().numpy()
    ours = codec("bf16").decode(codec("bf16").encode(states), 500)
    np.testing.assert_array_equal(ours, np.clip(theirs, -3.3895314e38, 3.3895314e38))


def test_bf16_stays_finite() -> None:
    states = np.array([[3.4028234663852886e38, -3.4028234663852886e38]], np.float32)
    assert codec("bf16").encode(states).hex() == "7f7f7fff"


@pytest.mark.parametrize("halves", ["807f", "c07f", "80ff"])
def test_bf16_that_is_not_finite_is_refused(halves: str) -> None:
    with pytest.raises(RemoteError, match="finite"):
        codec("bf16").decode(bytes.fromhex(halves), 1)


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_raw_that_is_not_finite_is_refused(number: float) -> None:
    with pytest.raises(RemoteError, match="finite"):
        codec("raw").decode(np.array([1, number], "<f4").tobytes(), 2)
