"""A node whose layers run in a process beside it has none of the engine's weight itself."""

from __future__ import annotations

import subprocess
import sys

_WITHOUT_TORCH = """
import sys
import gennode.node.ask, gennode.node.doctor.examine, gennode.node.join
from gennode.engine.checkpoint.weights import find_model
from gennode.engine.devices import check_device
from gennode.engine.folders import open_folder

check_device("cpu")
folder = open_folder(find_model("gennode-small"))
assert folder.whole_layers() == [0, 1, 2]
raise SystemExit(", ".join({"torch", "transformers", "llama_cpp"} & set(sys.modules)) or None)
"""


def test_a_node_opens_its_model_without_torch() -> None:
    """torch takes a second or more to import, and 200 MB, for each node on a machine."""
    ended = subprocess.run([sys.executable, "-c", _WITHOUT_TORCH], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
