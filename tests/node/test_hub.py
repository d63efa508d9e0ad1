"""Models of the Hugging Face hub, as far as its cache shows without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gennode.engine.checkpoint.weights import find_model
from gennode.errors import ModelError
from gennode.node.hub import find_or_download
from gennode.node.progress import unwatched

REVISION = "0" * 40
FIND = """
import sys
from gennode.errors import GennodeError
from gennode.node.hub import find_or_download
from gennode.node.progress import unwatched
try:
    print(find_or_download(sys.argv[1], unwatched))
except GennodeError as error:
    print(type(error).__name__, error.hint)
"""


def offline(cache: Path, model: str) -> str:
    """What comes of a model in a process that may not use the network."""
    variables = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    command = [sys.executable, "-c", FIND, model]
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_model_in_the_hubs_cache_is_taken_from_there(tmp_path: Path) -> None:
    home = tmp_path / "models--someone--small"
    snapshot = home / "snapshots" / REVISION
    shutil.copytree(find_model("gennode-small"), snapshot)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(REVISION)
    assert offline(tmp_path, "hub:someone/small") == str(snapshot)


def test_a_hub_that_can_not_be_reached_is_said_with_a_hint(tmp_path: Path) -> None:
    told = offline(tmp_path, "hub:someone/small")
    assert told.startswith("NetworkError")
    assert "peers" in told


def test_what_is_no_name_is_refused() -> None:
    with pytest.raises(ModelError, match="no model"):
        find_or_download("hub:../../etc", unwatched)
    with pytest.raises(ModelError, match="there is no model"):
        find_or_download("someone/small", unwatched)
    assert find_or_download("gennode-small", unwatched) == find_model("gennode-small")
