"""No page is overwritten while somebody reads it, none is lost, and most lie side by side."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gennode.engine.cache.pages import PAGE_POSITIONS, Copy, Pages, pages_for
from gennode.errors import LocalError, ResourceError

PAGE = PAGE_POSITIONS


def grow(pages: Pages, sequence: str, positions: int) -> list[int]:
    """Append to a sequence whose pages are all full."""
    start = len(pages.of(sequence)) * PAGE
    assert pages.write(sequence, start, start + positions) == []
    return list(pages.of(sequence))


def opened(count: int, **sequences: int) -> Pages:
    """Sequences, each with the most pages that it may have."""
    pages = Pages(count)
    for name, most in sequences.items():
        pages.open(name, most * PAGE)
    return pages


def test_a_sequence_grows_in_one_piece_beside_one_that_may_grow_too() -> None:
    pages = opened(12, a=4, b=4)
    for number in range(4):
        assert grow(pages, "a", PAGE) == list(range(number + 1))
        assert grow(pages, "b", PAGE) == list(range(4, 5 + number))


def test_a_gap_that_was_left_is_used_again() -> None:
    pages = opened(20, a=4, b=4, c=4)
    for name in "abc":
        grow(pages, name, 4 * PAGE)
    pages.close("b")
    pages.open("d", 4 * PAGE)
    assert grow(pages, "d", PAGE) == [4]


def test_where_no_gap_holds_all_that_may_come_both_get_half() -> None:
    pages = opened(16, a=100, b=100)
    assert grow(pages, "a", PAGE) == [0]
    assert grow(pages, "b", PAGE) == [8]


def test_who_is_blocked_moves_to_where_there_is_room_for_all_of_it() -> None:
    pages = opened(40, a=11, b=100, c=100)
    for name, first in (("a", 0), ("b", 20), ("c", 10)):
        assert grow(pages, name, PAGE) == [first]
    assert grow(pages, "a", 9 * PAGE) == list(range(10))
    pages.close("b")
    copies = pages.write("a", 10 * PAGE, 10 * PAGE + 1)
    assert copies == [Copy(number, 25 + number, PAGE) for number in range(10)]
    assert pages.of("a") == list(range(25, 36))
    assert pages.free == 40 - 11 - 1
    pages.keep("a", 10 * PAGE)
    assert pages.write("a", 5, 6)[0].rows == 5  # what moved is known to be filled


def test_a_full_cache_splits_sequences_and_refuses_what_does_not_fit() -> None:
    pages = opened(4, a=3, b=1)
    grow(pages, "a", PAGE)
    pages.write("b", 0, 1)
    assert pages.of("b") == [3]
    grow(pages, "a", 2 * PAGE)
    assert pages.of("a") == [0, 1, 2]
    with pytest.raises(ResourceError, match="no page is left"):
        pages.write("b", 1, PAGE + 1)
    assert (pages.of("b"), pages.free) == ([3], 0)
    with pytest.raises(ResourceError, match="no page is left"):
        pages.open("c", 1)
    pages.truncate("a", PAGE)
    assert pages.write("b", 1, 2 * PAGE) == []
    assert pages.of("b") == [3, 2]


def test_each_empty_sequence_has_a_claim_to_a_page() -> None:
    pages = opened(2, a=1, b=1)
    with pytest.raises(ResourceError, match="no page is left"):
        pages.open("c", 1)
    pages.open("a", 1)


def test_what_is_kept_is_written_on_by_the_first_and_copied_by_the_second() -> None:
    pages = opened(8, a=2, b=2)
    pages.write("a", 0, 40)
    kept = pages.keep("a", 40)
    assert pages.write("a", 40, 41) == []
    pages.adopt("b", kept)
    assert pages.of("b") == [0]
    assert pages.write("b", 40, 41) == [Copy(0, 2, 40)]
    pages.forget(kept)
    pages.forget(kept)
    assert pages.free == 6


def test_who_goes_back_does_not_overwrite_what_is_kept() -> None:
    pages = opened(8, a=2, b=2)
    pages.write("a", 0, 40)
    kept = pages.keep("a", 40)
    assert pages.write("a", 10, 11) == [Copy(0, 1, 10)]
    assert pages.write("a", 11, 12) == []
    pages.adopt("b", kept)
    assert pages.of("b") == [0]
    assert pages.write("b", 0, 1) == []  # there is nothing to copy
    assert pages.of("b") != [0]


def test_a_shared_prefix_stays_shared_where_pages_are_few() -> None:
    pages = opened(8, a=4, b=4)
    grow(pages, "a", 2 * PAGE)
    kept = pages.keep("a", 2 * PAGE)
    pages.write("a", 2 * PAGE, 2 * PAGE + 1)
    pages.adopt("b", kept)
    assert pages.write("b", 2 * PAGE, 2 * PAGE + 1) == []
    assert pages.of("b")[:2] == [0, 1]
    assert pages.free == 4


def test_a_shared_prefix_is_copied_into_one_piece_where_there_are_many() -> None:
    pages = opened(20, a=4, b=4)
    grow(pages, "a", 2 * PAGE)
    kept = pages.keep("a", 2 * PAGE)
    pages.write("a", 2 * PAGE, 2 * PAGE + 1)
    pages.adopt("b", kept)
    copies = pages.write("b", 2 * PAGE, 2 * PAGE + 1)
    assert copies == [Copy(0, 4, PAGE), Copy(1, 5, PAGE)]
    assert pages.of("b") == [4, 5, 6]


def test_calls_that_make_no_sense_are_refused() -> None:
    pages = opened(4, a=2, b=2)
    with pytest.raises(LocalError, match="holds nothing"):
        Pages(0)
    with pytest.raises(LocalError, match="not open"):
        pages.of("z")
    with pytest.raises(LocalError, match="gap"):
        pages.write("a", 1, 2)
    with pytest.raises(LocalError, match="gap"):
        pages.write("a", 0, -1)
    with pytest.raises(LocalError, match="no pages"):
        pages.keep("a", 1)
    with pytest.raises(LocalError, match="nothing is kept"):
        pages.adopt("a", 7)
    pages.write("a", 0, 1)
    kept = pages.keep("a", 1)
    with pytest.raises(LocalError, match="empty"):
        pages.adopt("a", kept)


NAMES = st.sampled_from(["s", "t", "u"])


class Memory(RuleBasedStateMachine):
    """Sequences that share a small memory beside plain lists of what each has written."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages(9)
        self.slots = [0] * (9 * PAGE)
        self.written = 0
        self.content: dict[str, list[int]] = {}
        self.kept: dict[int, list[int]] = {}

    @rule(name=NAMES, most=st.integers(1, 9 * PAGE))
    def open(self, name: str, most: int) -> None:
        self.content.pop(name, None)
        try:
            self.pages.open(name, most)
        except ResourceError:
            return
        self.content[name] = []

    @precondition(lambda self: self.content)
    @rule(data=st.data(), back=st.integers(0, 70), rows=st.sampled_from([1, 2, 63, 64, 130]))
    def write(self, data: st.DataObject, back: int, rows: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.content)))
        have = self.content[name]
        position = max(0, len(have) - back)
        before = list(self.pages.of(name))
        try:
            copies = self.pages.write(name, position, position + rows)
        except ResourceError:
            assert self.pages.of(name) == before
            return
        old = list(self.slots)
        for copy in copies:
            source, target = copy.source * PAGE, copy.target * PAGE
            self.slots[target : target + copy.rows] = old[source : source + copy.rows]
        new = [self.written + row for row in range(rows)]
        self.written += rows
        for row, value in enumerate(new, start=position):
            self.slots[self.pages.of(name)[row // PAGE] * PAGE + row % PAGE] = value
        self.content[name] = have[:position] + new

    @precondition(lambda self: self.content)
    @rule(data=st.data(), cut=st.integers(0, 100))
    def truncate(self, data: st.DataObject, cut: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.content)))
        length = max(0, len(self.content[name]) - cut)
        self.pages.truncate(name, length)
        del self.content[name][length:]

    @precondition(lambda self: any(self.content.values()))
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, have in self.content.items() if have)))
        positions = data.draw(st.integers(1, len(self.content[name])))
        kept = self.pages.keep(name, positions)
        assert kept not in self.kept
        self.kept[kept] = self.content[name][:positions]

    @precondition(lambda self: self.kept and self.content)
    @rule(data=st.data())
    def adopt(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.content)))
        kept = data.draw(st.sampled_from(sorted(self.kept)))
        self.pages.truncate(name, 0)
        self.pages.adopt(name, kept)
        self.content[name] = list(self.kept[kept])
        assert self.pages.kept_positions(kept) == len(self.kept[kept])

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        kept = data.draw(st.sampled_from(sorted(self.kept)))
        self.pages.forget(kept)
        del self.kept[kept]

    @precondition(lambda self: self.content)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.content)))
        self.pages.close(name)
        del self.content[name]

    @invariant()
    def everybody_reads_what_was_written(self) -> None:
        for name, values in self.content.items():
            pages = self.pages.of(name)
            assert len(pages) == len(set(pages)) == pages_for(len(values))
            rows = range(len(values))
            assert values == [self.slots[pages[row // PAGE] * PAGE + row % PAGE] for row in rows]

    def teardown(self) -> None:
        for name in self.content:
            self.pages.close(name)
        for kept, values in self.kept.items():  # what is kept is still what it was
            self.pages.open("reader", 9 * PAGE)
            self.pages.adopt("reader", kept)
            pages = self.pages.of("reader")
            rows = range(len(values))
            assert values == [self.slots[pages[row // PAGE] * PAGE + row % PAGE] for row in rows]
            self.pages.close("reader")
            self.pages.forget(kept)
        assert self.pages.free == 9


Memory.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestMemory = Memory.TestCase
