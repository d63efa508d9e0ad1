"""One random Llama in several kinds of GGUF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from gennode.engine.gguf.native import is_installed
from tests.engine.gguf.making import make, quantise

needs_llama = pytest.mark.skipif(
    not is_installed(), reason="llama-cpp-python is NOT INSTALLED: llama.cpp is not tested"
)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    """The folder of a random Llama, with the F16 file below it, and the model itself."""
    folder = tmp_path_factory.mktemp("gguf")
    return folder, make(folder)


@pytest.fixture(scope="session")
def kinds(model: tuple[Path, LlamaForCausalLM]) -> Callable[[str], Path]:
    """The folder of that Llama in any kind."""
    folder, _ = model

    def get(kind: str) -> Path:
        path = folder / "gguf" / kind
        return path if path.exists() else quantise(folder, kind)

    return get
