"""GGUF through the one place that chooses engines: found, isolated, and not taken along."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gennode.engine.child.shard import ChildShard
from gennode.engine.engines import engine_here, owner_engine, shard_engine
from gennode.engine.folders import open_folder
from gennode.engine.gguf.folder import open_gguf
from gennode.engine.gguf.owner import GgufOwner
from gennode.engine.gguf.shard import GgufShard
from gennode.engine.options import EngineOptions
from gennode.engine.seam import StepInput
from gennode.errors import ResourceError, UsageError
from gennode.wire.ids import Span
from tests.engine.gguf.conftest import needs_llama
from tests.engine.gguf.making import LAYERS

pytestmark = needs_llama
WHOLE = Span(0, LAYERS)


@pytest.fixture
def isolated(kinds: Callable[[str], Path]) -> Iterator[ChildShard]:
    engine = shard_engine(open_folder(kinds("q8_0")), EngineOptions())
    assert isinstance(engine, ChildShard)
    yield engine
    engine.shutdown()


def test_llama_cpp_runs_in_a_process_of_its_own_with_the_same_bits(
    isolated: ChildShard, kinds: Callable[[str], Path]
) -> None:
    isolated.load(WHOLE)
    here = GgufShard(open_gguf(kinds("q8_0")))
    here.load(WHOLE)
    states = np.random.default_rng(1).standard_normal((9, 256), dtype=np.float32)
    found = []
    for engine in (isolated, here):
        engine.open("one", WHOLE, 16)
        found.append(engine.step([StepInput("one", 0, states)])[0])
    assert isolated.pid != os.getpid()
    assert np.array_equal(found[0], found[1])
    assert isolated.profile().compute_class == "gguf-q8_0-cpu"


def test_an_abort_ends_that_process_alone(isolated: ChildShard) -> None:
    isolated.load(Span(0, 2))
    isolated.open("one", Span(0, 2), 16)
    os.kill(isolated.pid, signal.SIGABRT)  # as llama.cpp's assertions do
    states = np.zeros((1, 256), np.float32)
    with pytest.raises(ResourceError):
        isolated.step([StepInput("one", 0, states)])
    isolated.open("two", Span(0, 2), 16)
    [result] = isolated.step([StepInput("two", 0, states)])
    assert result.shape == (1, 256)


def test_what_can_not_be_chosen_is_refused(kinds: Callable[[str], Path]) -> None:
    folder = open_folder(kinds("q8_0"))
    for options in (EngineOptions(precision="int8"), EngineOptions(precision="fp32")):
        with pytest.raises(UsageError, match="as its weights are stored"):
            engine_here(folder, options)
    assert isinstance(owner_engine(folder), GgufOwner)
    assert open_folder(kinds("q8_0"), known=folder.manifest).manifest == folder.manifest
