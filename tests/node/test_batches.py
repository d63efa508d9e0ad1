"""What an engine thread does: batches, cuts, cancelling, failures; with the toy's own engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from gennode.engine.seam import States, StepInput
from gennode.engine.toy import TOY_DIM, ToyOwner, ToyShard, toy_manifest
from gennode.errors import LocalError, RemoteError, ResourceError
from gennode.node.actions import (
    CloseJob,
    HopKey,
    Job,
    OpenJob,
    Outcome,
    StepJob,
)
from gennode.node.batches import Batches, Done
from gennode.node.worker import Worker
from gennode.wire.activations import codec
from gennode.wire.fields import CodecName
from gennode.wire.ids import ModelId, SessionId, Span
from tests.node.conftest import LAYERS, MODEL, OWNER, SPARE

WHOLE = Span(0, LAYERS)
RAW = codec("raw")


class Recorder(ToyShard):
    """A toy that remembers its batches, and has no memory for some sequences."""

    def __init__(self, version: int = 0) -> None:
        # a row costs a quarter of a further sequence: few rows fit beside a token
        manifest = toy_manifest(LAYERS, version=version)
        super().__init__(manifest, layer_time_s=2e-3, further_time_s=1e-3)
        self.batches: list[list[tuple[object, int]]] = []
        self.too_large: set[object] = set()

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        self.batches.append([(one.sequence, len(one.states)) for one in batch])
        if any(one.sequence in self.too_large for one in batch):
            raise ResourceError("no memory for the batch")
        return super().step(batch)


class Bench:
    """One worker, its batches, and what came of each step."""

    def __init__(self, engine: Recorder | None = None) -> None:
        self.engine = engine or Recorder()
        self.engine.load(WHOLE)
        self.worker = Worker(self.engine, LAYERS, LAYERS)
        self.batches = Batches(lambda: 0.0)
        self.outcomes: list[Done] = []

    def add(self, job: Job) -> None:
        self.outcomes += self.batches.add(self.worker, job)

    def work(self, turns: int = 1) -> None:
        for _ in range(turns):
            self.outcomes += self.batches.work()

    def drain(self) -> None:
        while not self.batches.is_idle:
            self.work()

    def open(self, *keys: HopKey) -> None:
        for one in keys:
            self.add(OpenJob(self.engine.model, one, 0, WHOLE, 4096, OWNER))
        self.work()

    def of(self, key: HopKey) -> list[Outcome]:
        """What came of a sequence's steps, in order."""
        return [
            out for job, out in self.outcomes if isinstance(job, StepJob) and job.key == key
        ]  # fmt: skip


def key(number: int) -> HopKey:
    return HopKey(SessionId(bytes([number]) * 16), 0)


def embedded(rows: int, position: int = 0) -> States:
    return ToyOwner(toy_manifest(LAYERS)).embed([2 + n % 90 for n in range(rows)], position)


def step(
    of: HopKey, number: int, position: int, rows: int, *, attempt: int = 0, payload: bytes = b"",
    model: ModelId = MODEL, reply_rows: int = 1, rebuild: bool = False,
) -> StepJob:  # fmt: skip
    payload = payload or RAW.encode(embedded(rows, position))
    return StepJob(
        model, of, attempt, number, position, rows, reply_rows, rebuild, "raw", payload
    )  # fmt: skip


def replay(of: HopKey) -> list[StepJob]:
    """A prompt and 60 tokens once more."""
    frames = [(0, 128), *((128 + n, 1) for n in range(60))]
    return [step(of, n, *frame, rebuild=True) for n, frame in enumerate(frames)]


def alone(jobs: Sequence[StepJob]) -> list[bytes]:
    """What an engine gives that computes whole frames, one after the other."""
    engine = ToyShard(toy_manifest(LAYERS))
    engine.load(WHOLE)
    engine.open("it", WHOLE, 4096)
    outputs = []
    for job in jobs:
        states = RAW.decode(job.payload, TOY_DIM)
        outputs.append(RAW.encode(engine.step([StepInput("it", job.position, states)])[0]))
    return outputs


def test_cut_frames_come_out_as_if_they_had_not_been_cut() -> None:
    bench = Bench()
    bench.open(key(1), key(2))
    jobs = [step(key(1), n, 128 * n, 128) for n in range(4)]
    tokens = [step(key(2), n, n, 1) for n in range(120)]
    for job in jobs:
        bench.add(job)
    for token in tokens:
        bench.add(token)
        bench.work()
    bench.drain()
    assert bench.of(key(1)) == alone(jobs)
    assert bench.of(key(2)) == alone(tokens)
    cuts = [rows for batch in bench.engine.batches for one, rows in batch if one == key(1)]
    assert max(cuts) < 128
    assert sum(cuts) == 4 * 128


def test_tokens_of_all_sessions_are_one_batch() -> None:
    bench = Bench()
    keys = [key(number) for number in range(8)]
    bench.open(*keys)
    for one in keys:
        bench.add(step(one, 0, 0, 1))
    bench.work()
    assert [len(batch) for batch in bench.engine.batches] == [8]
    assert all(bench.of(one) == alone([step(one, 0, 0, 1)]) for one in keys)


def test_a_closed_session_is_not_computed_and_each_of_its_steps_is_told_of() -> None:
    bench = Bench()
    bench.open(key(1), key(2))
    jobs = [step(key(1), n, 128 * n, 128) for n in range(3)]
    for job in [*jobs, step(key(2), 0, 0, 1)]:
        bench.add(job)
    bench.work()
    bench.add(CloseJob(MODEL, key(1)))
    assert [type(out) for out in bench.of(key(1))] == [ResourceError] * 3
    assert bench.batches.is_idle
    assert bench.worker.used_layers() == frozenset(range(LAYERS))  # the other's
    bench.add(step(key(1), 3, 0, 1))
    assert isinstance(bench.of(key(1))[-1], ResourceError)


def test_a_newer_attempt_takes_the_place_of_what_waits_from_its_position_on() -> None:
    bench = Bench()
    bench.open(key(1))
    old = [step(key(1), n, 100 * n, 100) for n in range(4)]
    for job in old:
        bench.add(job)
    new = [step(key(1), n, 100 * n, 100, attempt=1) for n in (2, 3)]
    for job in new:
        bench.add(job)
    bench.drain()
    came = {id(job): out for job, out in bench.outcomes if isinstance(job, StepJob)}
    truth = alone(old)
    assert [came[id(job)] for job in old[:2]] == truth[:2]
    assert all(isinstance(came[id(job)], ResourceError) for job in old[2:])
    assert [came[id(job)] for job in new] == truth[2:]


def test_only_the_guilty_one_fails_when_memory_is_short() -> None:
    bench = Bench()
    keys = [key(number) for number in range(4)]
    bench.open(*keys)
    bench.engine.too_large = {key(2)}
    for number in range(2):
        for one in keys:
            bench.add(step(one, number, number, 1))
    bench.drain()
    truth = alone([step(key(0), number, number, 1) for number in range(2)])
    assert [bench.of(one) for one in (key(0), key(1), key(3))] == [truth] * 3
    assert [str(out) for out in bench.of(key(2))] == ["no memory for the batch"] * 2


def test_a_replay_takes_few_batches_and_each_takes_the_tokens_of_others() -> None:
    bench = Bench()
    bench.open(key(1), key(2))
    jobs = replay(key(1))
    for job in jobs:
        bench.add(job)
    tokens: list[StepJob] = []
    while len(bench.of(key(1))) < len(jobs):
        tokens.append(step(key(2), len(tokens), len(tokens), 1))
        bench.add(tokens[-1])
        bench.work()
        assert len(bench.of(key(2))) == len(tokens)
    assert bench.of(key(1)) == alone(jobs)
    assert bench.of(key(2)) == alone(tokens)
    assert len(tokens) < len(jobs)


@pytest.mark.parametrize("broken", [0, 1, 5, 60])
def test_what_lies_behind_a_broken_frame_of_a_replay_fails_with_it(broken: int) -> None:
    bench = Bench()
    bench.open(key(1), key(2))
    jobs = replay(key(1))
    rows = jobs[broken].rows
    payload = np.full((rows, TOY_DIM), np.nan, "<f4").tobytes()
    jobs[broken] = replace(jobs[broken], payload=payload)
    for job in [*jobs, step(key(2), 0, 0, 1)]:
        bench.add(job)
    bench.drain()
    outcomes = bench.of(key(1))
    assert outcomes[:broken] == alone(replay(key(1)))[:broken]
    assert [type(out) for out in outcomes[broken:]] == [RemoteError] * (len(jobs) - broken)
    assert bench.of(key(2)) == alone([step(key(2), 0, 0, 1)])


def test_a_replay_for_which_there_is_no_memory_fails_alone_and_for_that_reason() -> None:
    bench = Bench()
    bench.open(key(1), key(2))
    bench.engine.too_large = {key(1)}
    jobs = replay(key(1))
    for job in [*jobs, step(key(2), 0, 0, 1)]:
        bench.add(job)
    bench.drain()
    assert [str(out) for out in bench.of(key(1))] == ["no memory for the batch"] * len(jobs)
    assert bench.of(key(2)) == alone([step(key(2), 0, 0, 1)])


def test_frames_that_were_computed_in_one_batch_are_all_known_afterwards() -> None:
    bench = Bench()
    prompt = [(n, 20 * n, 20) for n in range(4)]
    for number in (1, 2):
        bench.open(key(number))
        for one in prompt:
            bench.add(step(key(number), *one, reply_rows=int(one[0] == 3)))
        bench.drain()
    assert bench.of(key(1)) == bench.of(key(2)) == alone([step(key(1), *one) for one in prompt])
    assert [one for one, _ in bench.engine.batches[0]].count(key(1)) > 1
    assert not any(one == key(2) for batch in bench.engine.batches for one, _ in batch)


class Greedy(Recorder):
    """Runs out of Python's own memory at the first try of a batch."""

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        if len(batch) > 1:
            raise MemoryError
        return super().step(batch)


def test_a_batch_that_is_too_large_is_done_in_parts() -> None:
    bench = Bench(Greedy())
    bench.open(key(1), key(2))
    for one in (key(1), key(2)):
        bench.add(step(one, 0, 0, 1))
    bench.drain()
    assert bench.of(key(1)) == bench.of(key(2)) == alone([step(key(1), 0, 0, 1)])


def test_a_frame_that_can_not_be_read_is_the_senders_fault_and_nobody_elses() -> None:
    bench = Bench()
    bench.open(key(1), key(2))
    broken = np.full((1, TOY_DIM), np.nan, "<f4").tobytes()
    bench.add(step(key(1), 0, 0, 1, payload=broken))
    bench.add(step(key(1), 1, 1, 1))
    bench.add(step(key(2), 0, 0, 1))
    bench.drain()
    assert [type(out) for out in bench.of(key(1))] == [RemoteError, RemoteError]
    assert bench.of(key(2)) == alone([step(key(2), 0, 0, 1)])


def test_a_gap_fails_and_the_batch_beside_it_does_not() -> None:
    bench = Bench()
    bench.open(key(1), key(2))
    bench.add(step(key(1), 0, 7, 1))
    bench.add(step(key(2), 0, 0, 1))
    bench.drain()
    assert [type(out) for out in bench.of(key(1))] == [LocalError]
    assert bench.of(key(2)) == alone([step(key(2), 0, 0, 1)])


def test_layers_are_loaded_one_by_one_between_the_steps_of_others() -> None:
    bench = Bench()
    bench.engine.unload(Span(2, LAYERS))
    first = Span(0, 2)
    bench.add(OpenJob(MODEL, key(1), 0, first, 4096, OWNER))
    bench.add(OpenJob(MODEL, key(2), 0, WHOLE, 4096, SPARE))
    loaded = []
    for number in range(LAYERS - 2):
        bench.add(step(key(1), number, number, 1)) if number else None
        bench.work()
        loaded.append(bench.engine.spans()[0].end)
    assert loaded == list(range(3, LAYERS + 1))
    assert len(bench.of(key(1))) == LAYERS - 3
    bench.drain()
    assert [job.key for job, out in bench.outcomes if out == b""] == [key(1), key(2)]


def test_who_closes_while_layers_load_is_not_opened() -> None:
    bench = Bench()
    bench.engine.unload(Span(2, LAYERS))
    bench.add(OpenJob(MODEL, key(1), 0, WHOLE, 4096, OWNER))
    bench.work()
    bench.add(CloseJob(MODEL, key(1)))
    assert bench.batches.is_idle
    assert bench.worker.used_layers() == frozenset()


def test_models_take_turns() -> None:
    bench, other = Bench(), Bench(Recorder(version=1))
    bench.open(key(1))
    other.batches = bench.batches
    other.open(key(2))
    bench.add(step(key(1), 0, 0, 2000))
    other.add(step(key(2), 0, 0, 2000, model=other.engine.model))
    assert bench.batches.is_idle is False
    bench.work(8)
    assert abs(len(bench.engine.batches) - len(other.engine.batches)) <= 1
    assert len(other.engine.batches) >= 3


def test_what_an_owner_sent_before_is_not_computed_again() -> None:
    bench = Bench()
    prompt = [(n, 128 * n, 128) for n in range(3)]
    for number in (1, 2):
        bench.open(key(number))
        for one in prompt:
            bench.add(step(key(number), *one))
        bench.add(step(key(number), 3, 384, 1))
        bench.drain()
    truth = alone([step(key(1), *one) for one in [*prompt, (3, 384, 1)]])
    assert bench.of(key(1)) == bench.of(key(2)) == truth
    computed = [rows for batch in bench.engine.batches for one, rows in batch if one == key(2)]
    assert computed == [1]


def test_steps_over_layers_that_left_are_told_so() -> None:
    bench = Bench()
    bench.open(key(1))
    bench.add(step(key(1), 0, 0, 1))
    bench.worker.unload(Span(0, 1))
    bench.drain()
    [outcome] = bench.of(key(1))
    assert "left this worker" in str(outcome)
    assert bench.engine.batches == []


def test_a_model_that_is_forgotten_leaves_nothing_behind() -> None:
    bench = Bench()
    bench.open(key(1))
    bench.add(step(key(1), 0, 0, 5))
    bench.outcomes += bench.batches.forget(MODEL)
    assert bench.batches.is_idle
    assert len(bench.of(key(1))) == 1


@pytest.mark.parametrize("codec_name", ["int8", "int8-outlier"])
def test_what_is_cut_is_encoded_whole(codec_name: CodecName) -> None:
    bench = Bench()
    bench.open(key(1), key(2))
    wire = codec(codec_name)
    payload = wire.encode(embedded(128))
    bench.add(step(key(2), 0, 0, 1))
    bench.add(StepJob(MODEL, key(1), 0, 0, 0, 128, 1, False, codec_name, payload))
    bench.drain()
    assert bench.engine.batches[0] != [(key(1), 128)]
    whole = RAW.decode(alone([step(key(1), 0, 0, 128)])[0], TOY_DIM)
    assert bench.of(key(1)) == [wire.encode(whole)]
