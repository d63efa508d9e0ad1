"""The system kills a compute process for want of memory, in the middle of an answer."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import pytest

from tests.faults.cages import caged, without_cages
from tests.faults.stage import SPANS, Stage, eventually, measured

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        bool(without_cages()), reason=f"NO MEMORY CGROUP, so nothing runs out: {without_cages()}"
    ),
]

PROMPT = "sort " + " ".join(str(number) for number in range(150, 20, -1)) + " ="  # wants room
TRIES = 5  # an allocator may still have what the first takes


def test_only_compute_processes_die(stage: Stage) -> None:
    """Both replicas of some layers are short of memory, so that whoever is chosen is killed."""
    stage.asker.ask(prompt=PROMPT)
    truth = stage.asker.answer()["tokens"]
    replicas = [worker for worker in stage.workers if worker.span == SPANS[-1]]
    nodes = [worker.pid for worker in replicas]
    before = {pid for worker in replicas if (pid := worker.compute_pid)}
    killed: set[int] = set()
    with ExitStack() as cages:
        for pid in before:
            cages.enter_context(caged(pid))
        for _ in range(TRIES):
            stage.asker.ask(prompt=PROMPT)
            answer = stage.asker.answer()
            assert answer["tokens"] == truth
            killed = before - {worker.compute_pid for worker in replicas}
            if killed:
                break
    assert killed
    assert [worker.pid for worker in replicas] == nodes
    for worker in replicas:
        eventually(partial(getattr, worker, "compute_pid"), "another computes")
    seen = f"{len(killed)} of them died, same; longest gap {answer['longest_gap_s']:.2f} s"
    measured("compute processes run out of memory", "only they die, the same tokens", seen)
