"""Which rows come next: order, budget, short prompts first, and that nobody starves."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gennode.engine.batch.cost import MAX_ROWS, MIN_ROWS, STRETCH, StepCost, load_of
from gennode.engine.batch.queue import LEAD_ROWS, Slice, StepQueue, Work
from gennode.engine.seam import Profile
from gennode.errors import LocalError
from gennode.wire.ids import ModelId

LAYERS = 10
# a row costs a quarter of a further sequence; 36 rows take as long as all that is fixed
PROFILE = Profile(ModelId("0" * 64), "toy", 10e-3, 0.1, 1e-3)
COST = StepCost(PROFILE, LAYERS)


EXACT = StepCost(replace(PROFILE, cut_rows=8), LAYERS)  # cuts elsewhere would change bits


@dataclass
class Bench:
    """A queue and what came of it; steps are numbered as they are added."""

    queue: StepQueue = field(default_factory=StepQueue)
    cost: StepCost = COST
    ends: dict[Hashable, int] = field(default_factory=dict)
    count: int = 0
    finished: list[int] = field(default_factory=list)

    def add(self, key: Hashable, rows: int, *, owner: Hashable = None, waits: bool = True) -> int:
        """One step more of a sequence; its number."""
        position = self.ends.get(key, 0)
        self.ends[key] = position + rows
        self.count += 1
        who = key if owner is None else owner
        self.queue.add(Work(key, who, self.count, position, rows, waits))
        return self.count

    def batch(self) -> tuple[Slice, ...]:
        """Compute one batch."""
        batch = self.queue.next(self.cost)
        self.queue.done()
        self.finished += [one.number for one in batch if one.is_last]
        return batch

    def drain(self) -> list[tuple[Slice, ...]]:
        """Compute all that waits."""
        batches = []
        while not self.queue.is_empty:
            batches.append(self.batch())
        return batches


def rows_of(batch: tuple[Slice, ...]) -> dict[Hashable, int]:
    return {one.key: one.rows for one in batch}


def test_all_tokens_first_then_rows_of_prompts_up_to_the_budget() -> None:
    bench = Bench()
    bench.add("prompt", 128)
    for key in "abc":
        bench.add(key, 1)
    [*tokens, prompt] = bench.batch()
    assert [(one.key, one.rows, one.is_last) for one in tokens] == [(k, 1, True) for k in "abc"]
    assert (prompt.key, prompt.first_row, prompt.is_last) == ("prompt", 0, False)
    load = sum((one.load for one in tokens[1:]), tokens[0].load)
    assert COST.seconds(load + prompt.load) <= STRETCH * COST.seconds(load)
    assert COST.seconds(load + load_of(0, prompt.rows + 1)) > STRETCH * COST.seconds(load)


def test_a_step_goes_on_where_it_was_cut() -> None:
    bench = Bench()
    number = bench.add("prompt", 100)
    places = []
    while number not in bench.finished:
        bench.add("token", 1)
        [_, slice_] = bench.batch()
        places.append((slice_.first_row, slice_.rows))
    assert len(places) > 1
    assert [first for first, _ in places[1:]] == [first + rows for first, rows in places[:-1]]
    assert sum(rows for _, rows in places) == 100


def test_the_shorter_prompt_goes_first_though_it_came_later() -> None:
    bench = Bench()
    for _ in range(16):
        bench.add("long", 128, waits=False)
    first = rows_of(bench.batch())
    assert set(first) == {"long"}
    bench.add("short", 40)
    assert next(iter(rows_of(bench.batch()))) == "short"
    assert bench.count in bench.finished


def test_a_long_prompt_does_not_wait_for_ever() -> None:
    # two rows of somebody new before each batch: the shortest first alone would never end
    bench = Bench()
    rows = 600
    number = bench.add("long", rows)
    for count in range(30):
        if number in bench.finished:
            break
        for part in range(100):
            bench.add(("short", count, part), 2, waits=False)
        bench.batch()
    else:
        pytest.fail("it starved")


def test_who_had_more_stands_back_even_with_shorter_prompts() -> None:
    bench = Bench()
    for number in range(40):
        bench.add(("greedy", number), 64, owner="greedy")
    bench.add("modest", 512, owner="modest")
    before = 0
    while bench.queue._waiting["modest"].done_rows == 0:
        before += sum(one.rows for one in bench.batch() if one.key != "modest")
    assert 448 <= before < 448 + MAX_ROWS  # as much as it asks for itself; 2,560 wait


def test_a_prompt_is_cut_short_while_a_token_is_expected_and_long_when_none_is() -> None:
    bench = Bench()
    bench.add("prompt", 512)
    [alone] = bench.batch()
    bench.drain()
    bench.queue.cancel("prompt")  # it has ended
    bench.add("answer", 1)
    bench.batch()
    bench.add("prompt", 512)
    [beside] = bench.batch()
    assert beside.rows < alone.rows
    assert COST.seconds(beside.load) <= STRETCH * COST.seconds(load_of(1, 1))
    bench.drain()
    bench.queue.cancel("answer")
    bench.queue.cancel("prompt")
    bench.add("another", 512)
    [alone_again] = bench.batch()
    assert alone_again.rows == alone.rows


def test_an_owner_that_never_comes_back_is_not_expected_for_ever() -> None:
    bench = Bench()
    bench.add("gone", 1)
    bench.batch()
    bench.add("prompt", 512)
    sizes = [bench.batch()[0].rows]
    for _ in range(100):
        bench.add("prompt", 512, waits=False)
        sizes.append(bench.batch()[0].rows)
    assert sizes[0] < sizes[-1]


def test_what_is_cancelled_is_not_computed_and_the_rest_is() -> None:
    bench = Bench()
    numbers = [bench.add("a", 128) for _ in range(4)]
    other = bench.add("b", 128)
    bench.add("token", 1)
    bench.batch()  # a has begun, or b has
    assert bench.queue.cancel("a", position=256) == tuple(numbers[2:])
    assert bench.queue.cancel("a", position=512) == ()
    bench.drain()
    assert sorted(bench.finished) == sorted([*numbers[:2], other, bench.count])
    assert bench.queue.cancel("a") == ()
    bench.ends["a"] = 0
    again = bench.add("a", 20)
    bench.batch()
    assert bench.queue.cancel("a") in ((), (again,))
    assert bench.queue.is_empty


def test_a_step_that_was_cut_can_be_cancelled() -> None:
    bench = Bench()
    number = bench.add("a", 500)
    bench.add("token", 1)
    bench.batch()
    assert bench.queue.cancel("a") == (number,)
    assert bench.queue.is_empty
    bench.ends["a"] = 0
    bench.add("a", 30)
    assert sum(one.rows for batch in bench.drain() for one in batch) == 30


def test_the_queue_is_not_asked_while_a_batch_is_out() -> None:
    bench = Bench()
    bench.add("a", 1)
    bench.queue.next(COST)
    with pytest.raises(LocalError, match="not done"):
        bench.queue.next(COST)
    with pytest.raises(LocalError, match="not done"):
        bench.queue.cancel("a")
    with pytest.raises(LocalError, match="without rows"):
        bench.queue.add(Work("b", "b", 7, 0, 0))


def replay(bench: Bench, key: Hashable) -> int:
    """A prompt and 200 tokens again, and a token that its owner waits for; how many steps."""
    for rows in [128, 40, *[1] * 200]:
        bench.add(key, rows, waits=False)
    return bench.add(key, 1)


def test_a_replay_takes_many_steps_of_its_sequence_into_a_batch() -> None:
    bench = Bench(cost=EXACT)
    last = replay(bench, "lost")
    batches = bench.drain()
    assert bench.finished == list(range(1, last + 1))
    assert len(batches) < 10
    rows = [sum(one.rows for one in batch) for batch in batches]
    assert max(rows) <= MAX_ROWS
    for batch in batches:
        loads = sum((one.load for one in batch[1:]), batch[0].load)
        assert EXACT.seconds(loads) <= EXACT.limit_s(load_of(0, 0), load_of(0, 0))


def test_tokens_of_others_do_not_wait_for_a_replay() -> None:
    bench = Bench(cost=EXACT)
    last = replay(bench, "lost")
    batches = 0
    while last not in bench.finished:
        own = bench.add("other", 1)
        batch = bench.batch()
        assert own in bench.finished
        token, *rest = batch
        load = sum((one.load for one in rest), token.load)
        assert EXACT.seconds(load) <= STRETCH * EXACT.seconds(token.load) * (1 + 1e-9)
        batches += 1
    assert batches < 202


def test_behind_a_step_that_is_awaited_and_one_that_goes_back_nothing_is_taken() -> None:
    bench = Bench()
    bench.add("a", 3, waits=True)
    bench.add("a", 3, waits=False)
    assert rows_of(bench.batch()) == {"a": 3}
    bench.drain()
    bench.add("a", 3, waits=False)
    bench.ends["a"] = 2
    bench.add("a", 5, waits=False)
    assert len(bench.batch()) == 1
    assert len(bench.batch()) == 1


def test_steps_are_cut_only_where_no_bit_changes() -> None:
    bench = Bench(cost=EXACT)
    number = bench.add("prompt", 203)
    cuts = []
    while number not in bench.finished:
        bench.add("token", 1)
        [_, one] = bench.batch()
        cuts.append((one.first_row, one.rows))
    assert len(cuts) > 2
    assert all(first % 8 == 0 for first, _ in cuts)
    assert all(rows % 8 == 0 for _, rows in cuts[:-1])


keys = st.integers(0, 5)
events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), keys, st.sampled_from([1, 1, 1, 2, 5, 60, 128, 500])),
        st.tuples(st.just("replay"), keys, st.sampled_from([1, 1, 1, 2, 5, 60, 128, 500])),
        st.tuples(st.just("batch"), st.just(0), st.just(0)),
        st.tuples(st.just("cancel"), keys, st.integers(0, 600)),
    ),
    max_size=60,
)


@given(events)
@settings(deadline=None)
def test_each_row_once_in_order_whatever_comes(
    history: list[tuple[str, int, int]],
) -> None:
    bench = Bench(cost=EXACT)
    left: dict[int, list[tuple[int, int]]] = {key: [] for key in range(6)}
    awaited: set[int] = set()
    expected: dict[int, int] = {}  # step -> rows computed so far

    def check(batch: tuple[Slice, ...]) -> None:
        heads = {key: steps[0] for key, steps in left.items() if steps}
        tokens = {k for k, (number, rows) in heads.items() if rows == 1 and number in awaited}
        assert {one.key for one in batch} >= tokens
        assert bool(batch) is bool(heads)
        before: dict[int, int] = {}
        for one in batch:
            assert isinstance(one.key, int)
            assert before.get(one.key) not in awaited
            number, rows = left[one.key][0]
            before[one.key] = number
            assert one.first_row % 8 == 0
            assert (one.number, one.first_row) == (number, expected.get(number, 0))
            expected[number] = one.first_row + one.rows
            assert one.is_last is (expected[number] == rows)
            if one.is_last:
                left[one.key].pop(0)
        prompts = [one for one in batch if one.key not in tokens]
        assert sum(one.rows for one in prompts) <= MAX_ROWS

    for kind, key, size in history:
        if kind in ("add", "replay"):
            number = bench.add(key, size, owner=key % 2, waits=kind == "add")
            left[key].append((number, size))
            awaited |= {number} if kind == "add" else set()
        elif kind == "batch":
            check(bench.batch())
        else:
            dropped = bench.queue.cancel(key, size)
            kept = [one for one in left[key] if one[0] not in dropped]
            assert [*kept, *((n, r) for n, r in left[key] if n in dropped)] == left[key]
            left[key] = kept
            bench.ends[key] = min(bench.ends.get(key, 0), size) if dropped else bench.ends.get(
                key, 0)  # fmt: skip
            if not kept:
                bench.ends[key] = 0
    while not bench.queue.is_empty:
        check(bench.batch())
    assert not any(left.values())


@given(
    st.lists(st.lists(st.tuples(keys, st.sampled_from([2, 3, 30, 128])), max_size=4), max_size=80),
    st.integers(0, 5),
    st.sampled_from([0, 50, LEAD_ROWS]),
)
@settings(deadline=None, max_examples=40)
def test_nobody_waits_for_more_rows_than_promised(
    rounds: list[list[tuple[int, int]]], tokens: int, lead_rows: int
) -> None:
    bench = Bench(StepQueue(lead_rows=lead_rows))
    taken = 0
    since: dict[int, int] = {}  # step that is its sequence's next -> rows taken until then
    most: dict[int, int] = {}  # rows left of its sequence, at most
    before: dict[int, int] = {}  # rows of others that waited then
    for adds in [*rounds, *([[]] * 2000)]:
        for key, rows in adds:
            bench.add(key, rows, owner=key % 2)
        for token in range(tokens):
            bench.add(("token", token), 1)
        for waiting in bench.queue._waiting.values():
            number = waiting.works[0][0].number
            most[number] = max(most.get(number, 0), waiting.rows)
            if waiting.works[0][0].rows > 1 and not waiting.done_rows:
                total = sum(one.rows for one in bench.queue._waiting.values())
                waited = taken - since.setdefault(number, taken)
                ahead = before.setdefault(number, total - waiting.rows)
                assert waited <= ahead + 6 * (most[number] + lead_rows)
        batch = bench.batch()
        taken += sum(one.rows for one in batch if isinstance(one.key, int))
        if not batch and not adds:
            break
    assert bench.queue.is_empty


def test_every_batch_gets_some_rows_of_prompts_done() -> None:
    slow = StepCost(PROFILE, LAYERS)
    queue = StepQueue()
    queue.add(Work("token", "a", 1, 0, 1))
    queue.add(Work("prompt", "b", 2, 0, 128))
    for _ in range(40):  # rows seem to take for ever
        slow.measured(load_of(0, 64), 500.0)
        slow.measured(load_of(0, 1), 1e-3)
    batch = queue.next(slow)
    assert rows_of(batch) == {"token": 1, "prompt": MIN_ROWS}
