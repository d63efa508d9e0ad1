"""The wheel holds all that a node needs: code, types, the daemon's messages, the models."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_MODELS_BYTES = 12 * 1000 * 1000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The checkout, built."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(target)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    return zipfile.ZipFile(next(target.glob("gennode-*.whl")))


def test_everything_is_in_it(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    in_tree = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "gennode").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert in_tree <= names
    assert "gennode/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"gennode"}


def test_the_models_are_small(wheel: zipfile.ZipFile) -> None:
    models = [info for info in wheel.infolist() if info.filename.startswith("gennode/models/")]
    assert sum("model.safetensors" in info.filename for info in models) == 3
    assert sum(info.file_size for info in models) <= MAX_MODELS_BYTES
