"""Devices are found by torch's word, and who asks for one that is missing hears what to do."""

from __future__ import annotations

import pytest
import torch

from gennode.engine.devices import check_device, device_memory, pick_device, wait_for
from gennode.errors import DeviceError


def has(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    """Have torch say that it found these accelerators."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_the_cpu_is_always_there() -> None:
    assert pick_device("cpu") == "cpu"
    assert device_memory("cpu") is None
    wait_for(torch.device("cpu"))


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted", "picked"),
    [
        (1, False, "gpu", "cuda:0"),
        (2, True, "gpu", "cuda:0"),
        (0, True, "gpu", "mps"),
        (0, True, "mps", "mps"),
        (2, False, "cuda", "cuda:0"),
        (2, False, "cuda:1", "cuda:1"),
    ],
)
def test_what_torch_has_is_picked(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, wanted: str, picked: str
) -> None:
    has(monkeypatch, cuda=cuda, mps=mps)
    assert pick_device(wanted) == picked


@pytest.mark.parametrize(
    ("cuda", "wanted", "hint"),
    [
        (0, "gpu", "use the device cpu"),
        (0, "cuda", "use the device cpu"),
        (0, "mps", "use the device cpu"),
        (1, "cuda:1", "use cuda:0"),
        (3, "cuda:7", "one of cuda:0 to cuda:2"),
        (1, "mps:1", "use the device cpu"),
        (1, "cpu:1", "use cpu, gpu"),
        (1, "abacus", "use cpu, gpu"),
        (1, "cuda:1:1", "use cpu, gpu"),
        (1, "cuda:٣", "use cpu, gpu"),
        (1, "", "use cpu, gpu"),
    ],
)
def test_a_device_that_is_not_here_is_refused_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, cuda: int, wanted: str, hint: str
) -> None:
    has(monkeypatch, cuda=cuda)
    with pytest.raises(DeviceError) as caught:
        check_device(wanted)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 7


def test_a_torch_for_gpus_without_one_lacks_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch)
    for hip, cuda in (("6.4", None), (None, "12.8")):
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        with pytest.raises(DeviceError) as caught:
            pick_device("gpu")
        assert "driver" in caught.value.hint
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(DeviceError) as caught:
        pick_device("gpu")
    assert "install a torch" in caught.value.hint
