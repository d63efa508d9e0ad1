"""Parts of caches keep their order with the steps of their own sequence, and with no other; and
come out of batches as they should."""

from __future__ import annotations

from dataclasses import replace

from gennode.engine.toy import ToyShard, toy_manifest
from gennode.errors import LocalError, RemoteError, ResourceError
from gennode.node.actions import CloseJob, Exported, ExportJob, HopKey, RestoreJob, StepJob
from gennode.node.transfers import Transfers
from gennode.wire.ids import SessionId, Span
from tests.node import test_batches as batching
from tests.node.conftest import LAYERS, MODEL
from tests.node.test_batches import WHOLE, Bench, alone, key

ONE, OTHER = (HopKey(SessionId(bytes([number]) * 16), 0) for number in (1, 2))


def export(key: HopKey, start: int = 0) -> ExportJob:
    return ExportJob(MODEL, key, 0, start, 1000)


def restore(key: HopKey, start: int = 0) -> RestoreJob:
    return RestoreJob(MODEL, key, 0, "toy", start, start + 1, b"x")


def step(key: HopKey, number: int = 0) -> StepJob:
    return StepJob(MODEL, key, 0, number, number, 1, 1, False, "raw", b"")


def nothing_waits(_key: HopKey) -> bool:
    return False


def test_jobs_are_done_one_by_one_in_order() -> None:
    transfers = Transfers()
    jobs: list[ExportJob | RestoreJob] = [
        export(ONE),
        restore(OTHER),
        restore(OTHER, 1),
        export(OTHER),
    ]
    for job in jobs:
        transfers.add(job)
    assert [transfers.next(nothing_waits) for _ in range(5)] == [*jobs, None]
    assert transfers.is_empty


def test_what_comes_in_waits_for_steps_of_its_own_and_lets_others_pass() -> None:
    transfers = Transfers()
    for job in (restore(ONE), restore(ONE, 1), export(ONE), restore(OTHER)):
        transfers.add(job)
    done = [transfers.next(lambda key: key == ONE) for _ in range(3)]
    assert done == [export(ONE), restore(OTHER), None]
    assert [transfers.next(nothing_waits) for _ in range(2)] == [restore(ONE), restore(ONE, 1)]


def test_steps_wait_for_what_comes_in_before_them() -> None:
    transfers = Transfers()
    transfers.add(export(ONE))
    assert not transfers.holds(step(ONE))
    for job in (restore(ONE), restore(ONE, 1)):
        transfers.add(job)
    assert not transfers.holds(step(OTHER))
    assert transfers.holds(step(ONE))
    assert transfers.next(nothing_waits) == export(ONE)
    assert transfers.next(nothing_waits) == restore(ONE)
    assert transfers.released() == []
    assert transfers.holds(step(ONE, 1))
    assert transfers.next(nothing_waits) == restore(ONE, 1)
    assert transfers.released() == [step(ONE), step(ONE, 1)]
    assert transfers.is_empty


def test_a_sequence_that_ends_takes_all_of_its_own_along() -> None:
    transfers = Transfers()
    for job in (restore(ONE), export(OTHER), export(ONE)):
        transfers.add(job)
    transfers.holds(step(ONE))
    assert transfers.keys() == {ONE, OTHER}
    assert transfers.drop(ONE) == [restore(ONE), export(ONE), step(ONE)]
    assert transfers.keys() == {OTHER}


def moved(bench: Bench, source: HopKey, target: HopKey, max_bytes: int) -> list[RestoreJob]:
    """All of a sequence's cache, as jobs that give it to another one."""
    parts: list[RestoreJob] = []
    start = 0
    while True:
        bench.add(ExportJob(MODEL, source, 0, start, max_bytes))
        bench.drain()
        job, part = bench.outcomes.pop()
        assert isinstance(job, ExportJob)
        assert isinstance(part, Exported)
        assert part.start == start
        if part.end == start:
            return parts
        assert len(part.payload) <= max_bytes
        parts.append(
            RestoreJob(MODEL, target, 0, part.layout, start, part.end, part.payload)
        )  # fmt: skip
        start = part.end


POSITION_BYTES = ToyShard(toy_manifest(LAYERS)).cache_position_bytes(WHOLE)


def test_a_cache_goes_over_in_parts_and_the_steps_that_follow_wait_for_it() -> None:
    bench = Bench()
    bench.open(key(1), key(2), key(3))
    prompt, token = batching.step(key(1), 0, 0, 100), batching.step(key(1), 1, 100, 1)
    bench.add(prompt)
    bench.drain()
    parts = moved(bench, key(1), key(2), 7 * POSITION_BYTES + 1)
    assert [part.end - part.start for part in parts] == [7] * 14 + [2]
    for part in parts:
        bench.add(part)
    bench.add(batching.step(key(2), 1, 100, 1))
    tokens = [batching.step(key(3), n, n, 1) for n in range(len(parts))]
    for number, other in enumerate(tokens):
        bench.add(other)
        bench.work()
        restored = [out for job, out in bench.outcomes if isinstance(job, RestoreJob)]
        assert restored == [b""] * (number + 1)  # one in each turn, and a batch beside it
        assert len(bench.of(key(3))) == number + 1
    bench.drain()
    assert bench.of(key(2)) == alone([prompt, token])[1:]
    assert bench.of(key(3)) == alone(tokens)


def test_a_part_waits_for_steps_of_its_own_that_came_before() -> None:
    bench = Bench()
    bench.open(key(1), key(2))
    frames = [batching.step(key(1), 0, 0, 40), batching.step(key(1), 1, 40, 60)]
    for job in frames:
        bench.add(job)
    bench.drain()
    parts = moved(bench, key(1), key(2), 10 * POSITION_BYTES)
    bench.add(batching.step(key(2), 0, 0, 40))
    for part in parts[4:]:
        bench.add(part)
    bench.add(batching.step(key(2), 2, 100, 1))
    bench.drain()
    assert bench.of(key(2))[-1] == alone([*frames, batching.step(key(1), 2, 100, 1)])[-1]


def test_parts_that_do_not_fit_fail_for_their_sender_and_change_nothing() -> None:
    bench = Bench()
    bench.open(key(1), key(2))
    bench.add(batching.step(key(1), 0, 0, 100))
    bench.drain()
    [part] = moved(bench, key(1), key(2), 1 << 22)
    for bad in (
        replace(part, layout="other"),
        replace(part, payload=part.payload[:-1]),
        replace(part, start=1),
        replace(part, end=1 << 40),
    ):
        bench.add(bad)
        bench.drain()
        assert isinstance(bench.outcomes.pop()[1], RemoteError)
    bench.add(part)
    bench.add(part)
    bench.drain()
    assert [type(out) for _, out in bench.outcomes[-2:]] == [bytes, RemoteError]


def test_parts_of_a_sequence_that_ends_or_is_gone_are_told_of() -> None:
    bench = Bench()
    bench.open(key(1), key(2))
    export = ExportJob(MODEL, key(1), 0, 0, 1 << 22)
    bench.add(export)
    bench.add(RestoreJob(MODEL, key(1), 0, "toy", 0, 1, b""))
    bench.add(batching.step(key(1), 0, 1, 1))
    bench.add(CloseJob(MODEL, key(1)))
    bench.add(export)
    assert [type(out) for _, out in bench.outcomes[-4:]] == [ResourceError] * 4
    bench.add(replace(export, key=key(2)))
    bench.worker.unload(Span(0, 1))
    bench.add(batching.step(key(2), 0, 0, 1))  # too late, too
    bench.drain()
    assert all("left this worker" in str(out) for _, out in bench.outcomes[-2:])
    assert bench.batches.is_idle


def test_what_is_behind_the_end_is_an_empty_part_and_too_small_ones_are_our_bug() -> None:
    bench = Bench()
    bench.open(key(1))
    bench.add(batching.step(key(1), 0, 0, 9))
    bench.drain()
    for start, max_bytes in ((9, 1 << 22), (50, 1 << 22), (0, POSITION_BYTES - 1)):
        bench.add(ExportJob(MODEL, key(1), 0, start, max_bytes))
    bench.drain()
    found = [out for _, out in bench.outcomes[-3:]]
    assert found[:2] == [Exported("", 9, 9, b""), Exported("", 50, 50, b"")]
    assert isinstance(found[2], LocalError)
