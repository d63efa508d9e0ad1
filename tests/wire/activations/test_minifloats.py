"""Small floats: the nearest one each time, and scales as the specifications have them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from gennode.errors import RemoteError
from gennode.wire.activations import codec
from gennode.wire.activations.minifloats import E2M1, E2M3, E4M3, Element, Minifloats
from gennode.wire.fields import CodecName
from tests.wire.activations.rows import KINDS, awkward

ELEMENTS = [E4M3, E2M3, E2M1]
MX: list[CodecName] = ["mxfp8", "mxfp6", "mxfp4"]


def _nearest(element: Element, numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """By looking at all elements, in double precision."""
    table = element.values()[: element.largest + 1].astype(np.float64)
    size = np.minimum(np.abs(numbers.astype(np.float64)), table[-1])
    distance = np.abs(size[:, None] - table)
    first = distance.argmin(axis=1)
    second = np.minimum(first + 1, element.largest)
    every = np.arange(len(numbers))
    is_tie = distance[every, first] == distance[every, second]
    code = np.where(is_tie & (first % 2 == 1), second, first)
    signed: npt.NDArray[np.int64] = code | np.signbit(numbers).astype(int) << element.bits - 1
    return signed.astype(np.uint8)


@pytest.mark.parametrize("element", ELEMENTS)
def test_the_nearest_element_is_taken(element: Element) -> None:
    rng = np.random.default_rng(1)
    table = element.values()[: element.largest + 1]
    between = (table[1:] + table[:-1]) / 2
    near = np.concatenate([between, np.nextafter(between, 0), np.nextafter(between, 999)])
    spread = rng.standard_normal(4000) * 10.0 ** rng.integers(-12, 3, 4000)
    numbers = np.concatenate([table, near, spread, [0.0, 1e30, 1e-45]]).astype(np.float32)
    numbers = np.concatenate([numbers, -numbers])
    np.testing.assert_array_equal(element.encode(numbers), _nearest(element, numbers))


def test_e4m3_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    codes = torch.arange(256, dtype=torch.uint8)
    theirs = codes.view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(E4M3.values(), theirs)
    numbers = np.linspace(-448, 448, 100_001, dtype=np.float32)
    coded = torch.from_numpy(numbers).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(E4M3.encode(numbers), coded)


@pytest.mark.parametrize(
    ("element", "largest", "least"), [(E4M3, 448, 2**-9), (E2M3, 7.5, 0.125), (E2M1, 6, 0.5)]
)
def test_ranges_are_those_of_the_specification(
    element: Element, largest: float, least: float
) -> None:
    assert element.values()[element.largest] == largest
    assert element.values()[1] == least


@pytest.mark.parametrize("name", MX)
@pytest.mark.parametrize("kind", KINDS)
def test_mx_scales_are_the_largest_powers_that_fit(name: CodecName, kind: str) -> None:
    chosen = codec(name)
    assert isinstance(chosen, Minifloats)
    states = awkward(kind, 5, 100, seed=3)
    payload = np.frombuffer(chosen.encode(states), np.uint8).reshape(5, -1)
    for row, coded in zip(states, payload, strict=True):
        for block, byte in enumerate(coded[:4].tolist()):
            largest = float(np.abs(row[32 * block : 32 * block + 32]).max())
            exponent = np.frexp(largest)[1] - 1 if largest else -999
            assert byte == max(0, exponent - chosen.element.emax + 127)
    back = chosen.decode(payload.tobytes(), 100)
    worst = 2.0 ** -(chosen.element.mantissa_bits + 1) * np.abs(states)
    smallest = np.repeat(np.ldexp(1.0, payload[:, :4].astype(int) - 127), 32, axis=1)[:, :100]
    limit = np.maximum(worst, smallest * chosen.element.values()[1] / 2)
    held = np.abs(states) / smallest > chosen.element.values()[chosen.element.largest]
    assert (np.abs(back - states)[~held] <= limit[~held]).all()


@pytest.mark.parametrize("name", MX)
def test_scales_that_no_encoder_writes_are_refused(name: CodecName) -> None:
    chosen = codec(name)
    assert isinstance(chosen, Minifloats)
    payload = bytearray(chosen.encode(np.full((1, 64), 3e38, np.float32)))
    assert np.isfinite(chosen.decode(payload, 64)).all()
    assert payload[0] == 254 - chosen.element.emax
    for byte in (payload[0] + 1, 254, 255):
        payload[1] = byte
        with pytest.raises(RemoteError, match="scale"):
            chosen.decode(payload, 64)


@pytest.mark.parametrize("name", ["fp8", "mxfp8"])
@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_elements_that_are_no_numbers_are_refused(name: CodecName, code: int) -> None:
    payload = bytearray(codec(name).encode(np.ones((1, 64), np.float32)))
    payload[-1] = code
    with pytest.raises(RemoteError, match="no number"):
        codec(name).decode(payload, 64)


@pytest.mark.parametrize("scale", [0x7C00, 0x7E00, 0x8000, 0xBC00])
def test_a_scale_of_fp8_is_finite_and_positive(scale: int) -> None:
    payload = bytearray(codec("fp8").encode(np.ones((1, 64), np.float32)))
    payload[:2] = scale.to_bytes(2, "little")
    with pytest.raises(RemoteError, match="scale"):
        codec("fp8").decode(payload, 64)
