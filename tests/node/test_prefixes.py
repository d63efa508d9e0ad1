"""Frames that were computed before are answered with the same bits, and the engine goes on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pytest

from gennode.engine.cache.prefix import PrefixCache
from gennode.engine.seam import CacheUse, States, StepInput
from gennode.engine.toy import TOY_DIM, ToyShard, toy_manifest
from gennode.node.actions import HopKey, StepJob
from gennode.node.prefixes import Prefixes
from gennode.wire.ids import PeerId, SessionId, Span
from tests.node.conftest import LAYERS, MODEL

ALICE, BOB, SPAN, ROWS = PeerId("alice"), PeerId("bob"), Span(0, LAYERS), 16


class CountingShard(ToyShard):
    """A toy that counts the rows that it computes and what it keeps."""

    def __init__(self) -> None:
        super().__init__(toy_manifest(LAYERS))
        self.load(SPAN)
        self.rows = 0
        self.kept: set[int] = set()
        self.limit = 1 << 40

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        self.rows += sum(len(item.states) for item in batch)
        return super().step(batch)

    def keep(self, sequence: Hashable, positions: int) -> int | None:
        number = super().keep(sequence, positions)
        assert number is not None
        self.kept.add(number)
        return number

    def forget(self, kept: int) -> None:
        super().forget(kept)
        self.kept.remove(kept)  # KeyError: forgotten twice

    def cache_use(self) -> CacheUse:
        return CacheUse(len(self.kept), self.limit)


class Forgetful(CountingShard):
    """An engine that can't keep anything."""

    def keep(self, sequence: Hashable, positions: int) -> int | None:
        return None


class Host:
    """The least of a worker: raw frames, one at a time."""

    def __init__(self, engine: CountingShard) -> None:
        self.engine = engine
        self.prefixes = Prefixes(engine, PrefixCache(MODEL))

    def open(self, session: int, owner: PeerId = ALICE) -> HopKey:
        key = HopKey(SessionId(bytes([session]) * 16), 0)
        self.engine.open(key, SPAN, 256)
        self.prefixes.open(key, owner, SPAN)
        return key

    def step(self, key: HopKey, position: int, states: States) -> bytes:
        payload, rows = states.tobytes(), len(states)
        job = StepJob(MODEL, key, 0, position, position, rows, rows, False, "raw", payload)
        output = self.prefixes.answer(job)
        if output is None:
            output = self.engine.step([StepInput(key, position, states)])[0].tobytes()
            self.prefixes.computed(job, output)
        return output

    def close(self, key: HopKey) -> None:
        self.engine.close(key)
        self.prefixes.close(key)


def prompt(seed: int, rows: int = ROWS) -> States:
    numbers = np.random.default_rng(seed).integers(0, 60, (rows, TOY_DIM))
    return numbers.astype(np.float32)


def answer(host: Host, key: HopKey, *seeds: int) -> list[bytes]:
    """The outputs of a prompt's frames, and of three tokens after them."""
    outputs = [host.step(key, n * ROWS, prompt(seed)) for n, seed in enumerate(seeds)]
    position = len(seeds) * ROWS
    return outputs + [host.step(key, position + n, prompt(99 + n, 1)) for n in range(3)]


def test_a_known_prefix_gives_the_same_bits_without_computing() -> None:
    host = Host(CountingShard())
    first = answer(host, host.open(1), 1, 2, 3)
    before = host.engine.rows
    assert answer(host, host.open(2), 1, 2, 3) == first
    assert host.engine.rows == before + 3
    assert (host.prefixes.hits, host.prefixes.rows) == (3, 3 * ROWS)


def test_frames_that_were_computed_in_one_step_are_all_known_and_end_where_they_should() -> None:
    host = Host(CountingShard())
    key = host.open(1)
    frames = [prompt(seed) for seed in (1, 2, 3)]
    jobs = [
        StepJob(MODEL, key, 0, n, n * ROWS, ROWS, 0, False, "raw", states.tobytes())
        for n, states in enumerate(frames)
    ]
    assert host.prefixes.answer(jobs[0]) is None
    for job in jobs[1:]:
        host.prefixes.follow(job)
    results = host.engine.step([StepInput(key, n * ROWS, one) for n, one in enumerate(frames)])
    for job, states in zip(jobs, results, strict=True):
        host.prefixes.computed(job, states.tobytes())
    plain = Host(Forgetful())
    before = host.engine.rows
    for session, seeds in enumerate([(1, 2, 3), (1, 2, 4), (1, 5)], start=2):
        expected = answer(plain, plain.open(session), *seeds)
        assert answer(host, host.open(session), *seeds) == expected
    assert host.prefixes.hits == 3 + 2 + 1
    assert host.engine.rows == before + 2 * ROWS + 9


def test_where_prompts_part_it_computes_as_without_a_cache() -> None:
    host, plain = Host(CountingShard()), Host(Forgetful())
    answer(host, host.open(1), 1, 2, 3)
    assert answer(host, host.open(2), 1, 4) == answer(plain, plain.open(2), 1, 4)
    assert host.prefixes.hits == 1
    assert plain.prefixes.hits == 0


def test_a_session_that_goes_back_to_its_start_finds_its_own_frames() -> None:
    host = Host(CountingShard())
    key = host.open(1)
    first = answer(host, key, 1, 2)
    assert answer(host, key, 1, 2) == first
    assert host.prefixes.hits == 2


def test_it_lasts_beyond_the_session_and_for_its_owner_alone() -> None:
    host = Host(CountingShard())
    key = host.open(1)
    first = answer(host, key, 1, 2)
    host.close(key)
    assert answer(host, host.open(2, BOB), 1, 2) == first
    assert host.prefixes.hits == 0
    assert answer(host, host.open(3), 1, 2) == first
    assert host.prefixes.hits == 2


def test_a_cache_that_is_nearly_full_gives_up_what_is_kept() -> None:
    host = Host(CountingShard())
    host.engine.limit = 3  # of which nine tenths are two and a bit
    answer(host, host.open(1), 1, 2, 3, 4)
    assert len(host.engine.kept) == 2
    assert host.prefixes.relieve()
    assert host.prefixes.relieve()
    assert not host.prefixes.relieve()
    assert not host.engine.kept


@pytest.mark.parametrize(("span", "left"), [(Span(0, 1), 0), (Span(LAYERS, LAYERS + 1), 2)])
def test_layers_that_go_take_what_runs_over_them(span: Span, left: int) -> None:
    host = Host(CountingShard())
    answer(host, host.open(1), 1, 2)
    host.prefixes.drop(span)
    assert len(host.engine.kept) == left
