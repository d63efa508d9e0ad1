"""Workers die or freeze in the middle of an answer; owners vanish."""

from __future__ import annotations

import signal
import time

import pytest

from gennode.errors import NoRouteError
from gennode.node.hops.hop import IDLE_S, ORPHAN_S
from gennode.node.sessions.patience import FIRST_PATIENCE_S
from gennode.node.sessions.watch import PONG_LIMIT_S
from tests.faults.stage import Stage, eventually, measured

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SAME = "the same tokens"
MISSED_S = FIRST_PATIENCE_S + 2 * PONG_LIMIT_S  # by then an owner has given up on two workers


@pytest.mark.parametrize("place", [0, 1])
def test_a_worker_is_killed(stage: Stage, place: int) -> None:
    stage.asker.ask(pause_at=[8])
    victim = stage.on(stage.asker.paused())[place]
    victim.kill()
    stage.asker.go()
    answer = stage.asker.answer()
    assert answer["tokens"] == stage.truth
    assert len(answer["repairs"]) == 1
    measured(f"hop {place} killed", SAME, f"same; gap {answer['longest_gap_s']:.2f} s")


def test_two_workers_are_killed_at_once(stage: Stage) -> None:
    stage.asker.ask(pause_at=[8])
    for victim in stage.on(stage.asker.paused()):
        victim.kill()
    stage.asker.go()
    answer = stage.asker.answer()
    assert answer["tokens"] == stage.truth
    measured("both hops killed at once", SAME, f"same; gap {answer['longest_gap_s']:.2f} s")


def test_a_worker_freezes_and_thaws(stage: Stage) -> None:
    """Frozen while its answer is awaited; what it says when it thaws is too late to count."""
    stage.asker.ask(pause_at=[8, 30])
    path = stage.asker.paused()
    victim = stage.on(path)[1]
    victim.signal(signal.SIGSTOP)
    stage.asker.go()
    assert victim not in stage.on(stage.asker.paused())
    victim.signal(signal.SIGCONT)
    stage.asker.go()
    answer = stage.asker.answer()
    assert answer["tokens"] == stage.truth
    [spare] = [one for one in stage.others(path) if one.span == victim.span]
    spare.kill()
    stage.asker.ask(pause_at=[8])
    assert victim in stage.on(stage.asker.paused())
    stage.asker.go()
    assert stage.asker.answer()["tokens"] == stage.truth
    gap = f"same; gap {answer['longest_gap_s']:.2f} s; the thawed one serves again"
    measured("a hop frozen, then thawed", SAME, gap)


def test_all_replicas_of_a_layer_are_gone_and_back(stage: Stage) -> None:
    """A session that runs waits for them; a new one is told at once that there is no route."""
    stage.asker.ask(pause_at=[8])
    last = stage.on(stage.asker.paused())[-1]
    replicas = [worker for worker in stage.workers if worker.span == last.span]
    for worker in replicas:
        worker.signal(signal.SIGSTOP)
    stage.asker.go()
    eventually(lambda: stage.asker.waiting_s() > MISSED_S, "the owner has missed both")
    for worker in replicas:
        worker.signal(signal.SIGCONT)
    answer = stage.asker.answer()
    assert answer["tokens"] == stage.truth
    gap = f"same; gap {answer['longest_gap_s']:.2f} s"
    measured("all replicas of a layer frozen, then back", "waits 15 s, " + SAME, gap)

    for worker in replicas:
        worker.signal(signal.SIGSTOP)
    start_s = time.monotonic()
    stage.asker.ask()
    error = stage.asker.error()
    spent_s = time.monotonic() - start_s
    for worker in replicas:
        worker.signal(signal.SIGCONT)
    assert error["code"] == NoRouteError.exit_code
    assert error["hint"]
    stage.asker.ask()
    assert stage.asker.answer()["tokens"] == stage.truth
    promised = "one clear error in 10 s; works again after"
    measured("a prompt while all are gone", promised, f"{spent_s:.1f} s: {error['words']}")


def test_what_an_owner_left_behind_is_freed(stage: Stage) -> None:
    asker = stage.new_asker()
    asker.ask(pause_at=[8])
    hops = stage.on(asker.paused())
    assert [hop.status().sessions for hop in hops] == [1, 1]
    asker.kill()
    spent_s = eventually(
        lambda: all(hop.status().sessions == 0 for hop in hops), "the sessions are freed"
    )
    assert spent_s < IDLE_S
    promised = f"freed in {ORPHAN_S:g} s after its links broke"
    measured("the owner is killed", promised, f"freed after {spent_s:.1f} s")
