"""Each hop has a deadline of its own where its pace is known, and all together where not."""

from __future__ import annotations

from gennode.node.sessions.patience import ENOUGH_STEPS, MIN_BUSY_S, MIN_PATIENCE_S, REPLAY_LIMIT_S
from gennode.node.sessions.vigil import LEAST_BYTES_PER_S, WORK_LIMIT_S, Vigil
from gennode.node.sessions.watch import IDLE_PONGS, PONG_LIMIT_S, TAKING_LIMIT_S
from gennode.wire.ids import PeerId
from gennode.wire.messages import Pong, Progress
from tests.node.conftest import FIRST, PATH, SECOND, SESSION, THIRD

SLOW_STEP_S = 2.0  # of all hops together, so that their common limit is 8 s
TICK_S = 0.05
ROW_BYTES = 2_000


def begun(token_s: dict[PeerId, float] | None = None, *, steps: int = ENOUGH_STEPS) -> Vigil:
    """Some steps are answered, and each hop has said what one takes it."""
    vigil = Vigil(PATH, row_bytes=ROW_BYTES)
    for number in range(steps):
        vigil.sent(number, 1, -SLOW_STEP_S)
        vigil.answered(number, 1, 0.0)
    for hop in PATH:
        told_s = (token_s or {}).get(hop.peer, 0.0)
        progress = Progress(hop.span.start, steps - 1, False, told_s)
        vigil.heard(hop.peer, Pong(SESSION, 0, (progress,)), steps, 0.0, is_current=True)
    vigil.sent(steps, 1, 0.0)
    return vigil


def judged(
    vigil: Vigil, pongs: dict[PeerId, tuple[int, bool]], *, awaited: int = ENOUGH_STEPS
) -> tuple[float, set[PeerId]]:
    """When somebody is found at fault, and who. Hops in `pongs` answer (passed, busy)."""
    now_s = 0.0
    places = {hop.peer: hop.span.start for hop in PATH}
    while now_s < WORK_LIMIT_S - 1:
        now_s += TICK_S
        fault = vigil.fault(now_s)
        if fault:
            return now_s, fault[0]
        for peer in vigil.pings(now_s):
            if peer not in pongs:
                continue
            pong = Pong(SESSION, 0, (Progress(places[peer], *pongs[peer]),))
            fault = vigil.heard(peer, pong, awaited, now_s, is_current=True)
            if fault:
                return now_s, fault[0]
    return now_s, set()


QUICK = {FIRST: 0.1, SECOND: 0.1, THIRD: 0.1}
HAS, LACKS = ENOUGH_STEPS, ENOUGH_STEPS - 1


def test_an_idle_hop_is_found_by_its_own_deadline() -> None:
    pongs = {FIRST: (HAS, False), SECOND: (LACKS, False), THIRD: (LACKS, False)}
    at_s, who = judged(begun(QUICK), pongs)
    assert who == {SECOND}
    assert MIN_PATIENCE_S < at_s < MIN_PATIENCE_S + 0.25 * (IDLE_PONGS + 3)
    at_s, who = judged(begun(), pongs)
    assert who == {SECOND}
    assert at_s > 4 * SLOW_STEP_S  # nothing is known of it but what all take together


def test_a_silent_hop_is_found_by_its_own_deadline() -> None:
    pongs = {FIRST: (HAS, False), THIRD: (LACKS, False)}
    at_s, who = judged(begun(QUICK), pongs)
    assert who == {SECOND}
    assert at_s < MIN_PATIENCE_S + PONG_LIMIT_S + 0.5


def test_a_silent_hop_that_does_not_have_the_step_is_left_alone_for_now() -> None:
    pongs = {FIRST: (HAS, False), SECOND: (LACKS, True)}
    at_s, who = judged(begun(QUICK), pongs)
    assert who != {THIRD} or at_s > 4 * SLOW_STEP_S


def test_a_busy_hop_gets_more_patience_and_not_for_ever() -> None:
    pongs = {FIRST: (HAS, False), SECOND: (LACKS, True), THIRD: (LACKS, False)}
    at_s, who = judged(begun(QUICK), pongs)
    assert who == {SECOND}
    assert 16 * SLOW_STEP_S < at_s < 16 * SLOW_STEP_S + 1


def test_a_busy_hop_is_not_judged_by_one_step() -> None:
    pongs = {FIRST: (1, False), SECOND: (0, True), THIRD: (0, False)}
    at_s, who = judged(begun(QUICK, steps=1), pongs, awaited=1)
    assert who == set()
    assert at_s > 8 * MIN_BUSY_S


def test_a_hop_that_says_it_needs_for_ever_gets_what_all_get() -> None:
    pongs = {FIRST: (HAS, False), SECOND: (LACKS, False), THIRD: (LACKS, False)}
    at_s, who = judged(begun({**QUICK, SECOND: 1e9}), pongs)
    assert who == {SECOND}
    assert at_s < 4 * SLOW_STEP_S + 0.25 * (IDLE_PONGS + 3)


def test_a_hop_that_says_it_needs_nothing_is_not_hurried() -> None:
    pongs = {FIRST: (HAS, False), SECOND: (LACKS, False), THIRD: (LACKS, False)}
    at_s, _ = judged(begun({**QUICK, SECOND: 1e-9}), pongs)
    assert at_s > MIN_PATIENCE_S


def test_a_replay_that_goes_on_is_no_hang() -> None:
    vigil = begun(QUICK)
    vigil.restart(128, 0.0)
    vigil.sent(HAS, 1, 0.0)
    busy = {hop.peer: Pong(SESSION, 0, (Progress(hop.span.start, -1, True),)) for hop in PATH}
    for tick in range(1, 2000):
        now_s = tick * TICK_S
        if tick % 100 == 0:
            vigil.moved(now_s)
        assert vigil.fault(now_s) is None
        for peer in vigil.pings(now_s):
            assert vigil.heard(peer, busy[peer], HAS, now_s, is_current=True) is None


def test_a_replay_that_comes_in_drops_ends() -> None:
    vigil = begun(QUICK, steps=1)
    vigil.restart(128, 0.0)
    vigil.sent(1, 1, 0.0)
    busy = {hop.peer: Pong(SESSION, 0, (Progress(hop.span.start, -1, True),)) for hop in PATH}
    now_s, moved, fault = 0.0, list[bool](), None
    while fault is None:
        now_s += 1.0
        assert now_s <= REPLAY_LIMIT_S + WORK_LIMIT_S + 1.0
        if now_s % 100 == 0:
            moved.append(vigil.moved(now_s))
        for peer in vigil.pings(now_s):
            vigil.heard(peer, busy[peer], 1, now_s, is_current=True)
        fault = vigil.fault(now_s)
    assert moved == [True, True, True, False]
    assert now_s > REPLAY_LIMIT_S


def test_a_long_prompt_is_not_timed_from_its_first_chunk() -> None:
    vigil = begun(QUICK)
    for number in range(HAS + 1, HAS + 100):
        vigil.sent(number, 1, 0.0)
    for number in range(HAS, HAS + 99):
        now_s = 3.0 * (number - HAS + 1)
        assert vigil.fault(now_s) is None  # more than WORK_LIMIT_S after the first was sent
        vigil.answered(number, 1, now_s)
        for peer in vigil.pings(now_s):
            pong = Pong(SESSION, 0, (Progress(0, number, True),))
            vigil.heard(peer, pong, number + 1, now_s, is_current=True)
    assert now_s > 2 * WORK_LIMIT_S


def _prompt_is_under_way(rows: int) -> Vigil:
    """The first frame of a session, which has reached the first hop and is passed on."""
    vigil = Vigil(PATH, row_bytes=ROW_BYTES)
    vigil.sent(0, rows, 0.0)
    return vigil


def test_a_hop_is_not_idle_while_a_large_frame_may_be_on_its_way() -> None:
    rows = 250
    arrival_s = rows * ROW_BYTES / LEAST_BYTES_PER_S
    waiting = {FIRST: (0, False), SECOND: (-1, False), THIRD: (-1, False)}
    at_s, dead = judged(_prompt_is_under_way(rows), waiting, awaited=0)
    assert dead == {SECOND}
    assert at_s > arrival_s
    sooner_s, dead = judged(_prompt_is_under_way(1), waiting, awaited=0)
    assert dead == {SECOND}
    assert sooner_s < arrival_s


def test_pings_behind_a_prompt_are_waited_for_at_the_first_hop_alone() -> None:
    rows = 250
    at_s, dead = judged(_prompt_is_under_way(rows), {}, awaited=0)
    assert dead == {SECOND, THIRD}
    assert at_s < rows * ROW_BYTES / LEAST_BYTES_PER_S
    others = {SECOND: (-1, False), THIRD: (-1, False)}
    at_s, dead = judged(_prompt_is_under_way(rows), others, awaited=0)
    assert dead == {FIRST}
    assert at_s > rows * ROW_BYTES / LEAST_BYTES_PER_S


def test_who_takes_in_what_we_send_is_not_silent_for_a_while() -> None:
    vigil = begun()
    now_s = 0.0
    while vigil.fault(now_s) is None:
        now_s += TICK_S
        vigil.pings(now_s)
        for hop in PATH:
            vigil.alive(hop.peer, now_s)
    assert now_s > TAKING_LIMIT_S


def test_who_took_things_in_and_then_nothing_more_is_silent() -> None:
    vigil = begun()
    now_s = 0.0
    while vigil.fault(now_s) is None:
        now_s += TICK_S
        vigil.pings(now_s)
        if now_s < TAKING_LIMIT_S / 2:
            vigil.alive(FIRST, now_s)
            vigil.alive(SECOND, now_s)
            vigil.alive(THIRD, now_s)
    since_s = now_s - TAKING_LIMIT_S / 2
    assert PONG_LIMIT_S - 2 * TICK_S < since_s < PONG_LIMIT_S + 1
