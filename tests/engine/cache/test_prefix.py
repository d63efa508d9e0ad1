"""A frame is found only after the very frames of the same owner, and every number comes back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gennode.engine.cache.prefix import MIN_ROWS, Known, PrefixCache, Unknown
from gennode.errors import LocalError
from gennode.wire.ids import ModelId, PeerId, Span

ALICE, BOB = PeerId("alice"), PeerId("bob")
SPAN, MODEL = Span(0, 4), ModelId("m" * 64)
CODEC = "raw"


def frame(content: int, rows: int = MIN_ROWS) -> bytes:
    return bytes([content]) * rows


class Worker:
    """Computes what it does not find; its outputs tell of all frames so far."""

    def __init__(self, **limits: int) -> None:
        self.cache = PrefixCache(MODEL, **limits)
        self.numbers: Iterator[int] = count()
        self.held: set[int] = set()

    def give_back(self, kept: int | None) -> None:
        if kept is not None:
            self.held.remove(kept)  # KeyError: given back twice

    def send(self, session: str, position: int, payload: bytes) -> Known | Unknown | None:
        found = self.cache.look(session, position, len(payload), CODEC, payload)
        if isinstance(found, Unknown) and self.cache.wants(session, found):
            kept = next(self.numbers)
            self.held.add(kept)
            for old in self.cache.add(session, found, kept, b"out" + payload):
                self.give_back(old)
        return found

    def prompt(self, session: str, *contents: int) -> list[bool]:
        """Whether each frame of a prompt was known."""
        return [
            isinstance(self.send(session, number * MIN_ROWS, frame(content)), Known)
            for number, content in enumerate(contents)
        ]


@pytest.fixture
def worker() -> Worker:
    made = Worker()
    for session, owner in (("a", ALICE), ("b", BOB), ("a2", ALICE)):
        made.cache.open(session, owner, SPAN)
    return made


def test_an_equal_prefix_of_the_same_owner_is_known_up_to_where_it_parts(worker: Worker) -> None:
    assert worker.prompt("a", 1, 2, 3) == [False] * 3
    assert worker.prompt("a2", 1, 2, 4, 3) == [True, True, False, False]
    found = worker.send("a2", 0, frame(1))
    assert isinstance(found, Known)
    assert found.output == b"out" + frame(1)


def test_nobody_finds_what_another_owner_sent(worker: Worker) -> None:
    worker.prompt("a", 1, 2)
    assert worker.prompt("b", 1, 2) == [False, False]


@pytest.mark.parametrize("span", [Span(0, 3), Span(1, 4)])
def test_other_layers_are_another_prefix(worker: Worker, span: Span) -> None:
    worker.prompt("a", 1)
    worker.cache.open("a2", ALICE, span)
    assert worker.prompt("a2", 1) == [False]


def test_the_codec_is_part_of_a_name(worker: Worker) -> None:
    worker.prompt("a", 1)
    assert isinstance(worker.cache.look("a2", 0, MIN_ROWS, "int8", frame(1)), Unknown)


def test_what_follows_an_unknown_frame_is_computed_though_it_is_kept(worker: Worker) -> None:
    """The engine has computed the first one into the sequence: it can't adopt the second."""
    worker.prompt("a", 1, 2)
    worker.give_back(worker.cache.evict())
    assert worker.held == {1}
    assert worker.prompt("a2", 1, 2) == [False, False]
    assert worker.prompt("a2", 1, 2) == [True, True]
    assert len(worker.held) == len(worker.cache) == 2  # the second was not kept twice


def test_short_frames_and_what_follows_them_are_left_alone(worker: Worker) -> None:
    assert worker.send("a", 0, frame(1, MIN_ROWS - 1)) is None
    assert worker.send("a", MIN_ROWS - 1, frame(2)) is None
    assert len(worker.cache) == 0


def test_who_goes_back_to_the_end_of_a_frame_goes_on_from_there(worker: Worker) -> None:
    worker.prompt("a", 1, 2, 3)
    worker.prompt("a2", 1, 9)
    assert isinstance(worker.send("a2", 0, frame(1)), Known)
    assert isinstance(worker.send("a2", MIN_ROWS, frame(2)), Known)
    assert worker.send("a2", MIN_ROWS + 1, frame(2)) is None


def test_a_frame_is_not_kept_for_a_session_that_is_over_or_went_back(worker: Worker) -> None:
    found = worker.cache.look("a", 0, MIN_ROWS, CODEC, frame(1))
    assert isinstance(found, Unknown)
    assert worker.cache.wants("a", found)
    worker.cache.look("a", 0, MIN_ROWS, CODEC, frame(2))
    assert not worker.cache.wants("a", found)
    other = worker.cache.look("a", 0, MIN_ROWS, CODEC, frame(2))
    assert isinstance(other, Unknown)
    worker.cache.close("a")
    assert not worker.cache.wants("a", other)
    with pytest.raises(LocalError, match="not open"):
        worker.cache.look("a", 0, MIN_ROWS, CODEC, frame(1))


def test_the_owner_who_has_most_gives_first_and_what_was_used_last_stays(worker: Worker) -> None:
    worker.prompt("b", 7)
    worker.prompt("a", 1)  # number 1
    worker.cache.open("a", ALICE, SPAN)
    worker.prompt("a", 2)  # number 2
    worker.prompt("a2", 1)
    assert [worker.cache.evict() for _ in range(4)] == [2, 0, 1, None]


def test_a_prefix_outlives_what_follows_it(worker: Worker) -> None:
    worker.prompt("a", 1, 2, 3)  # numbers 0, 1, 2
    worker.prompt("a2", 1, 2, 3)
    assert [worker.cache.evict() for _ in range(3)] == [2, 1, 0]


def test_outputs_are_bounded() -> None:
    small = Worker(max_output_bytes=2 * (MIN_ROWS + 3))
    small.cache.open("a", ALICE, SPAN)
    small.prompt("a", 1, 2, 3, 4)
    assert small.cache.output_bytes == 2 * (MIN_ROWS + 3)
    assert len(small.held) == 2


def test_layers_that_go_take_along_what_runs_over_them(worker: Worker) -> None:
    worker.prompt("a", 1)
    worker.cache.open("b", BOB, Span(4, 6))
    worker.prompt("b", 1)
    assert worker.cache.drop(Span(3, 4)) == [0]
    assert worker.cache.drop(Span(0, 6)) == [1]
    assert len(worker.cache) == 0


SESSIONS = st.sampled_from(["s", "t", "u"])


class Swarm(RuleBasedStateMachine):
    """Sessions of two owners, in any order, beside a plain record of what each engine holds."""

    def __init__(self) -> None:
        super().__init__()
        self.worker = Worker(max_entries=5)
        self.owners: dict[str, PeerId] = {}
        self.content: dict[str, list[bytes]] = {}  # whole frames that the engine's sequence holds
        self.kept: dict[int, tuple[PeerId, list[bytes]]] = {}

    @rule(session=SESSIONS, owner=st.sampled_from([ALICE, BOB]))
    def open(self, session: str, owner: PeerId) -> None:
        self.worker.cache.open(session, owner, SPAN)
        self.owners[session], self.content[session] = owner, []

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), content=st.integers(1, 2), again=st.integers(0, 1))
    def step(self, data: st.DataObject, content: int, again: int) -> None:
        session = data.draw(st.sampled_from(sorted(self.owners)))
        have = self.content[session]
        start = max(0, len(have) - again)
        before = set(self.worker.held)
        found = self.worker.send(session, start * MIN_ROWS, frame(content))
        whole = [*have[:start], frame(content)]
        if isinstance(found, Known):
            assert found.kept in before
            assert self.kept[found.kept] == (self.owners[session], whole)
        else:
            assert isinstance(found, Unknown)
            for number in self.worker.held - before:
                self.kept[number] = (self.owners[session], whole)
        self.content[session] = whole

    @rule()
    def evict(self) -> None:
        self.worker.give_back(self.worker.cache.evict())

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.owners)))
        self.worker.cache.close(session)
        del self.owners[session], self.content[session]

    @invariant()
    def holds_what_it_says(self) -> None:
        assert len(self.worker.cache) == len(self.worker.held) <= 5
        assert self.worker.cache.output_bytes == len(self.worker.held) * (MIN_ROWS + 3)

    def teardown(self) -> None:
        for kept in self.worker.cache.drop(SPAN):
            self.worker.give_back(kept)
        assert not self.worker.held
        assert self.worker.cache.output_bytes == 0


Swarm.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSwarm = Swarm.TestCase
