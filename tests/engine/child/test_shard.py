"""Layers in another process compute the same, and the process may die."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gennode.engine.checkpoint.weights import ModelFolder, find_model, open_model
from gennode.engine.child.process import ComputeProcess
from gennode.engine.child.shard import MAX_RESTARTS, ChildShard
from gennode.engine.engines import shard_engine
from gennode.engine.options import EngineOptions
from gennode.engine.seam import ShardEngine, States, StepInput
from gennode.errors import DeviceError, GennodeError, LocalError, ResourceError
from gennode.wire.ids import Span
from tools.tiny_models import LAYERS, make_tiny

LONG_S = 100.0  # for what a busy machine does in its own time
OPTIONS = EngineOptions(precision="fp32", max_cache_bytes=64 * 1024**2, isolated=True)


@pytest.fixture(scope="module")
def folder() -> ModelFolder:
    """The smallest model that is bundled."""
    return open_model(find_model("gennode-small"))


@pytest.fixture(scope="module")
def whole(folder: ModelFolder) -> Span:
    """All its layers."""
    return Span(0, folder.manifest.shape.layers)


@pytest.fixture
def shard(folder: ModelFolder) -> Iterator[ChildShard]:
    """An engine in a process of its own."""
    engine = ChildShard(folder, OPTIONS)
    yield engine
    engine.shutdown()


def until_noticed(engine: ChildShard) -> None:
    """Ask until a killed process no longer answers."""
    with pytest.raises(ResourceError):
        list(iter(engine.cache_use, None))


def parts_of_caches(engine: ChildShard) -> int:
    """By how much the caches' room was divided; it is rounded down to whole pages."""
    return round(OPTIONS.max_cache_bytes / engine.cache_use().limit_bytes)


def states(rows: int, dim: int, seed: int = 0) -> States:
    """Some states."""
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


def outcome(call: Callable[[], object]) -> object:
    """What comes of it, errors as their kind, words and hint."""
    try:
        return call()
    except GennodeError as error:
        return type(error), str(error), error.hint


def deeds(engine: ShardEngine, whole: Span) -> Iterator[object]:
    """What there is to do with an engine, right and wrong, and what comes of each."""
    told: list[tuple[int, int]] = []
    dim, part = engine.dim, Span(1, whole.end)
    yield engine.model, dim, engine.spans()
    engine.load(whole, lambda done, total: told.append((done, total)))
    yield told, engine.spans()
    engine.open("a", whole, 64)
    engine.open(("b", 1), part, 64)
    first, second = states(5, dim), states(1, dim, 1)
    yield [one.tolist() for one in engine.step([StepInput("a", 0, first)])]
    batch = [StepInput("a", 5, second), StepInput(("b", 1), 0, first)]
    yield [one.tolist() for one in engine.step(batch)]
    yield engine.step([])
    yield [one.shape for one in engine.step([StepInput("a", 6, states(0, dim))])]
    yield engine.length("a"), engine.length(("b", 1)), engine.cache_use()
    engine.truncate("a", 2)
    yield engine.length("a")
    yield outcome(lambda: engine.step([StepInput("a", 4, second)]))
    yield outcome(lambda: engine.step([StepInput("a", 0, first.astype(np.float64))]))
    yield outcome(lambda: engine.truncate("a", 9))
    yield outcome(lambda: engine.open("c", Span(0, whole.end + 1), 3))
    yield outcome(lambda: engine.load(Span(0, whole.end + 1)))
    yield outcome(lambda: engine.unload(whole))
    yield from caches(engine, whole)
    for name in ("a", ("b", 1), "d", "e", "a", "never"):
        engine.close(name)
    engine.unload(Span(0, 1))
    yield engine.spans(), engine.profile().compute_class


def caches(engine: ShardEngine, whole: Span) -> Iterator[object]:
    """What is done with caches, as far as the engine can."""
    row = states(1, engine.dim, 2)
    yield (kept := engine.keep("a", 2)) is None
    engine.open("d", whole, 64)
    if kept is not None:
        engine.adopt("d", kept)
        yield engine.step([StepInput("d", 2, row)])[0].tolist()
        engine.forget(kept)
        engine.forget(kept)
    yield engine.cache_position_bytes(whole), engine.cache_position_bytes(Span(1, 2))
    first, second = engine.export("a", 0, 1), engine.export("a", 1, 2)
    yield first, second
    yield outcome(lambda: engine.export("a", 1, 3))
    yield outcome(lambda: engine.export("a", 2, 1))
    engine.open("e", whole, 64)
    yield outcome(lambda: engine.restore("e", second))
    engine.restore("e", first)
    yield outcome(lambda: engine.restore("e", replace(second, payload=b"")))
    yield outcome(lambda: engine.restore("e", replace(second, layout="another")))
    engine.restore("e", second)
    yield engine.step([StepInput("e", 2, row)])[0].tolist()


def test_it_does_what_the_engine_inside_does(
    shard: ChildShard, folder: ModelFolder, whole: Span
) -> None:
    inside = shard_engine(folder, replace(OPTIONS, isolated=False))
    for here, there in zip(deeds(inside, whole), deeds(shard, whole), strict=True):
        assert here == there
    assert shard.profile() is shard.profile()


def test_the_librarys_own_classes_compute_inside_as_well(tmp_path: Path) -> None:
    """They import far more than the fast engine does, and nothing of it may need the outside."""
    make_tiny("gemma2", tmp_path)
    folder, whole = open_model(tmp_path), Span(0, LAYERS)
    inside = ChildShard(folder, OPTIONS)
    found = []
    try:
        for engine in (inside, shard_engine(folder, replace(OPTIONS, isolated=False))):
            engine.load(whole)
            engine.open("a", whole, 8)
            found.append(engine.step([StepInput("a", 0, states(5, engine.dim))])[0].tolist())
    finally:
        inside.shutdown()
    assert found[0] == found[1]


def test_another_folder_is_refused(shard: ChildShard, folder: ModelFolder, tmp_path: Path) -> None:
    shard.reread(folder.path)
    with pytest.raises(LocalError):
        shard.reread(tmp_path)


def test_results_can_be_written_to(shard: ChildShard, whole: Span) -> None:
    shard.load(whole)
    shard.open("a", whole, 8)
    [result] = shard.step([StepInput("a", 0, states(3, shard.dim))])
    result += 1


def test_a_killed_process_costs_its_sequences_and_no_more(shard: ChildShard, whole: Span) -> None:
    shard.load(whole)
    shard.open("a", whole, 64)
    shard.open("b", whole, 64)
    row = states(3, shard.dim)
    before = shard.step([StepInput("a", 0, row)])[0]
    profile, killed = shard.profile(), shard.pid
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(ResourceError, match="killed, perhaps for want of memory") as caught:
        shard.step([StepInput("a", 3, row)])
    assert caught.value.hint
    for name in ("a", "b"):
        with pytest.raises(ResourceError, match="ended with the process"):
            shard.step([StepInput(name, 3, row)])
    assert (shard.spans(), shard.profile()) == ((whole,), profile)
    shard.close("b")
    with pytest.raises(LocalError):
        shard.length("b")
    shard.open("a", whole, 64)  # waits for the next process
    assert shard.pid != killed
    assert np.array_equal(shard.step([StepInput("a", 0, row)])[0], before)
    assert parts_of_caches(shard) == 2


def test_an_idle_process_that_dies_is_replaced_unasked(shard: ChildShard, whole: Span) -> None:
    shard.load(Span(0, 1))
    killed = shard.pid
    os.kill(killed, signal.SIGSEGV)
    pause = threading.Event()
    while shard.pid == killed:  # pytest's own limit ends it, if nothing else does
        pause.wait(0.01)
    shard.load(whole)
    assert shard.spans() == (whole,)
    assert parts_of_caches(shard) == 1  # that was not for memory


def test_what_dies_again_and_again_is_given_up(folder: ModelFolder, whole: Span) -> None:
    engine = ChildShard(folder, OPTIONS, clock=lambda: 5.0)
    heard: list[GennodeError] = []
    engine.on_given_up = heard.append
    try:
        engine.load(Span(0, 1))
        for _ in range(MAX_RESTARTS):
            os.kill(engine.pid, signal.SIGKILL)
            until_noticed(engine)
            engine.load(whole)
        assert parts_of_caches(engine) == 2**MAX_RESTARTS
        os.kill(engine.pid, signal.SIGKILL)
        until_noticed(engine)
        with pytest.raises(ResourceError, match="given up") as caught:
            engine.load(whole)
        assert caught.value.hint
        assert engine.spans() == ()
        assert heard == [caught.value]
        engine.close("never")
    finally:
        engine.shutdown()


def test_shutting_down_waits_for_nobody(shard: ChildShard, whole: Span) -> None:
    shard.load(whole)
    shard.open("a", whole, 64)
    os.kill(shard.pid, signal.SIGSTOP)  # it hangs
    caught: list[object] = []
    row = states(1, shard.dim)
    stepping = threading.Thread(
        target=lambda: caught.append(outcome(lambda: shard.step([StepInput("a", 0, row)])))
    )
    stepping.start()
    shard.shutdown()
    stepping.join(LONG_S)
    assert "ResourceError" in str(caught)
    with pytest.raises(ResourceError):
        shard.load(whole)


def test_a_device_that_is_not_here_is_still_a_device_error(folder: ModelFolder) -> None:
    engine = ChildShard(folder, EngineOptions(device="abacus"))
    for _ in range(2):
        with pytest.raises(DeviceError) as caught:
            engine.load(Span(0, 1))
        assert caught.value.hint
    engine.shutdown()


def use(engine: ChildShard, lie: str) -> None:
    """Ask for what is lied about."""
    engine.load(Span(0, 1))
    engine.open("a", Span(0, 1), 8)
    if lie == "profile":
        engine.profile()
    elif lie in ("part", "layout", "layouts"):
        engine.export("a", 0, 2)
    else:
        engine.step([StepInput("a", 0, states(2, engine.dim))])


@pytest.mark.parametrize(
    "lie", ["huge", "short", "garbage", "part", "layout", "layouts", "spans", "profile"]
)
def test_a_process_that_lies_is_ended(folder: ModelFolder, lie: str) -> None:
    device = f"{folder.manifest.model}:{folder.manifest.shape.dim}"
    process = ComputeProcess(Path(lie), device, module="tests.engine.child.liar")
    engine = ChildShard(folder, OPTIONS, process)
    try:
        with pytest.raises(ResourceError):
            use(engine, lie)
        assert process.wait(LONG_S)
    finally:
        engine.shutdown()


@pytest.mark.parametrize("lie", ["model", "width"])
def test_a_process_that_began_another_model_is_refused(folder: ModelFolder, lie: str) -> None:
    device = "m:8" if lie == "model" else f"{folder.manifest.model}:{folder.manifest.shape.dim}"
    process = ComputeProcess(Path(lie), device, module="tests.engine.child.liar")
    engine = ChildShard(folder, OPTIONS, process)
    with pytest.raises(LocalError):
        engine.load(Span(0, 1))
    assert process.wait(LONG_S)
