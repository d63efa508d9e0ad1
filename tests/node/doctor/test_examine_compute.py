"""A compute process is started, held, asked for its device's figures, and gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from gennode.engine.child.jail import expected_jail
from gennode.errors import DeviceError
from gennode.node.doctor.examine_compute import examine_compute


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither files nor processes are, whatever a test met."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = psutil.Process().children()
    yield
    assert not list(tmp_path.iterdir())
    _, alive = psutil.wait_procs(set(psutil.Process().children()) - set(before), timeout=60)
    assert not alive


async def test_what_holds_it_is_what_was_to_be_expected() -> None:
    told: list[tuple[int, int]] = []

    @contextmanager
    def progress(title: str, *, unit: str = "") -> Iterator[Callable[[int, int], None]]:
        assert title
        assert unit == "steps"
        yield lambda done, total: told.append((done, total))

    found = await examine_compute("cpu", progress)
    assert found.report.is_sound()
    assert found.report.device == "cpu"
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1]
    if found.jail.landlock:
        assert found.jail.words.startswith(expected_jail())
    else:
        assert "no" in expected_jail()


async def test_a_missing_device_is_found_and_nothing_is_left() -> None:
    with pytest.raises(DeviceError) as caught:
        await examine_compute("abacus")
    assert "cuda:1" in caught.value.hint
