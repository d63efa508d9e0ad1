"""What a worker announces, how it leaves layers, and that it keeps to its share of the time."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import msgspec
import pytest

from gennode.engine.seam import CachePart, States, StepInput
from gennode.engine.toy import TOY_DIM, ToyShard, toy_manifest
from gennode.errors import LocalError, ResourceError
from gennode.node.actions import (
    ExportJob,
    HopKey,
    OpenJob,
    Outcome,
    RestoreJob,
    Send,
    StepJob,
)
from gennode.node.batches import Batches
from gennode.node.hops.admission import HopLimits
from gennode.node.hops.hop import HopMachine
from gennode.node.worker import Worker
from gennode.wire.activations import codec
from gennode.wire.ids import Hop, SessionId, Span, session_id
from gennode.wire.messages import Refuse
from tests.node.conftest import FIRST, LAYERS, MODEL, OWNER, SECOND, SESSION, THIRD, opening

MANIFEST = toy_manifest(LAYERS)
KEY = HopKey(SESSION, 0)


FOUR = Span(0, 4)


def worker(span: Span = FOUR, *, capacity_layers: int = 5, on_request: bool = True) -> Worker:
    engine = ToyShard(MANIFEST, layer_time_s=0.002, further_time_s=0.001)
    engine.load(span)
    return Worker(engine, LAYERS, capacity_layers, loads_on_request=on_request)


def begin(host: Worker, span: Span, key: HopKey = KEY) -> Outcome:
    return outcome(Batches(), host, OpenJob(MODEL, key, 0, span, 64, OWNER))


def one_step(host: Worker, position: int = 0, batches: Batches | None = None) -> Outcome:
    payload = bytes(codec("raw").row_bytes(TOY_DIM))
    job = StepJob(MODEL, KEY, 0, position, position, 1, 1, False, "raw", payload)
    return outcome(batches or Batches(), host, job)


def outcome(batches: Batches, host: Worker, job: OpenJob | StepJob) -> Outcome:
    """What comes of one job, in as many turns as it takes."""
    outcomes = batches.add(host, job)
    while not batches.is_idle:
        outcomes += batches.work()
    [(done, result)] = outcomes
    assert done is job
    return result


def test_hops_are_told_what_a_position_of_a_cache_takes() -> None:
    host = worker()
    assert host.terms().cache_position_bytes(Span(0, 3)) == 3 * (TOY_DIM - 1) * 8


def test_what_is_withdrawn_is_announced_no_longer_but_room_all_the_same() -> None:
    host = worker()
    assert (host.hosting().spans, host.hosting().spare_layers) == ((Span(0, 4),), 1)
    host.withdraw(Span(1, 2))
    assert host.hosting().spans == (Span(0, 1), Span(2, 4))
    assert host.hosting().spare_layers == 2
    assert host.leaving() == (Span(1, 2),)
    host.restore(Span(0, 4))
    assert host.hosting().spans == (Span(0, 4),)


def test_new_sessions_keep_off_withdrawn_layers_and_old_ones_stay() -> None:
    host = worker(Span(2, 4))
    machine = HopMachine(SECOND, HopLimits())
    machine.host(host.terms())
    machine.receive(OWNER, opening(1), b"", 0.0)
    host.withdraw(Span(3, 4))
    fresh = msgspec.structs.replace(opening(1), session=session_id(OWNER, b"t" * 8))
    [refused] = machine.receive(OWNER, fresh, b"", 0.0)
    assert isinstance(refused, Send)
    assert isinstance(refused.message, Refuse)
    assert "leaving" in refused.message.reason
    path = (Hop(FIRST, Span(0, 3)), Hop(SECOND, Span(3, 4)), Hop(THIRD, Span(4, 6)))
    [accepted] = machine.receive(OWNER, opening(1, attempt=1, path=path), b"", 0.0)
    assert not isinstance(accepted, Send)  # the engine is asked to open it


def test_layers_that_are_unloaded_close_what_runs_over_them() -> None:
    host = worker()
    assert begin(host, Span(0, 2)) == b""
    assert begin(host, Span(2, 4), HopKey(SESSION, 2)) == b""
    assert host.used_layers() == frozenset(range(4))
    host.withdraw(Span(0, 1))
    host.unload(Span(0, 1))
    assert host.engine.spans() == (Span(1, 4),)
    assert host.leaving() == ()
    assert host.used_layers() == frozenset({2, 3})
    error = one_step(host)
    assert isinstance(error, ResourceError)
    assert "left this worker" in str(error)
    host.close(HopKey(SESSION, 2))
    assert host.used_layers() == frozenset()


def test_layers_are_loaded_on_request_only_where_their_files_are() -> None:
    for host, fits in ((worker(), True), (worker(on_request=False), False)):
        assert host.terms().can_host(Span(3, 5)) is fits
        assert isinstance(begin(host, Span(3, 5)), bytes) is fits
        assert not host.terms().can_host(Span(0, 6))
        assert host.hosting().spare_layers == 1 - fits  # room there is, for plans


class Slow(ToyShard):
    """A toy whose steps take a while of a clock of its own."""

    clock_s = 0.0

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        self.clock_s += 2.0
        return super().step(batch)


def test_a_share_of_the_time_is_rested() -> None:
    engine = Slow(MANIFEST, layer_time_s=0.002, further_time_s=0.001)
    engine.load(Span(0, 2))
    rests: list[float] = []

    def rest(pause_s: float) -> None:
        rests.append(pause_s)
        engine.clock_s += pause_s

    host, batches = (
        Worker(engine, LAYERS, 2, share=0.25, rest=rest),
        Batches(lambda: engine.clock_s),
    )
    begin(host, Span(0, 2))
    for position in range(3):
        assert isinstance(one_step(host, position, batches), bytes)
    assert rests == [6.0, 6.0]
    engine.clock_s += 5.0  # nobody asked: that counts as rest
    one_step(host, 3, batches)
    assert rests[-1] == 1.0
    assert host.hosting().layer_time_s == 0.008
    assert host.hosting().further_time_s == 0.004


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, float("nan")])
def test_a_share_is_a_part_of_one(share: float) -> None:
    with pytest.raises(LocalError, match="share"):
        Worker(ToyShard(MANIFEST), LAYERS, 2, share=share)


class CrampedShard(ToyShard):
    """A toy with room for one cache: a sequence's, or one that is kept."""

    def open(self, sequence: Hashable, span: Span, max_positions: int) -> None:
        if self.cache_use().used_bytes or self._kept:
            raise ResourceError("no page is left")
        super().open(sequence, span, max_positions)


def test_a_new_session_takes_the_place_of_what_is_kept_and_of_no_other_session() -> None:
    engine = CrampedShard(MANIFEST)
    engine.load(FOUR)
    host, batches = Worker(engine, LAYERS, LAYERS), Batches()
    other = HopKey(SessionId(b"o" * 16), 0)
    assert begin(host, FOUR) == b""
    payload = bytes(16 * codec("raw").row_bytes(TOY_DIM))
    step = StepJob(MODEL, KEY, 0, 0, 0, 16, 1, False, "raw", payload)
    assert isinstance(outcome(batches, host, step), bytes)
    refused = begin(host, FOUR, other)
    assert isinstance(refused, ResourceError)
    assert "no page" in str(refused)
    assert outcome(batches, host, step) != b""  # who is here goes on
    host.close(KEY)
    assert engine._kept
    assert begin(host, FOUR, other) == b""
    assert not engine._kept


class FullShard(ToyShard):
    """A toy that takes nothing in while something is kept, or others hold all there is."""

    is_full = False

    def restore(self, sequence: Hashable, part: CachePart) -> None:
        if self._kept or self.is_full:
            raise ResourceError("no page is left")
        super().restore(sequence, part)


def test_what_comes_in_takes_the_place_of_what_is_kept_and_of_no_other_session() -> None:
    engine = FullShard(MANIFEST)
    engine.load(FOUR)
    host, batches, other = Worker(engine, LAYERS, LAYERS), Batches(), HopKey(SESSION, 1)
    begin(host, FOUR)
    payload = bytes(16 * codec("raw").row_bytes(TOY_DIM))
    outcome(batches, host, StepJob(MODEL, KEY, 0, 0, 0, 16, 1, False, "raw", payload))
    part = host.export(ExportJob(MODEL, KEY, 0, 0, 1 << 22))
    begin(host, FOUR, other)
    job = RestoreJob(MODEL, other, 0, part.layout, 0, part.end, part.payload)
    assert engine._kept
    assert host.take_in(job) == b""
    assert not engine._kept
    engine.is_full = True
    begin(host, FOUR, other)
    with pytest.raises(ResourceError):
        host.take_in(job)
    assert engine.length(KEY) == 16
