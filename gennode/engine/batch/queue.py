"""Steps that wait for the engine, and which of them make up the next batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence, Set
from dataclasses import dataclass, field

from gennode.engine.batch.cost import MAX_ROWS, MIN_ROWS, NOTHING, Load, StepCost, load_of
from gennode.engine.batch.shares import Shares
from gennode.errors import LocalError

LEAD_ROWS = 4096  # more service than others had sets nobody back by more than a long prompt does
EXPECTED_BATCHES = 64  # for so long a sequence whose token went out is expected to come back


@dataclass(frozen=True)
class Work:
    """One step of a sequence: `rows` positions from `position` on.

    `number` is the caller's name for it, of which no two wait at a time. `owner`: who is served
    by it. `is_awaited`: whether its owner goes on only once it is done, so that a further step
    will follow soon; not so in a replay, nor for all but the last part of a prompt.
    """

    key: Hashable
    owner: Hashable
    number: int
    position: int
    rows: int
    is_awaited: bool = True

    @property
    def is_token(self) -> bool:
        """Whether somebody waits for a single row."""
        return self.rows == 1 and self.is_awaited


@dataclass(frozen=True)
class Slice:
    """Some rows of a step, in one batch: `first_row` counts within the step."""

    key: Hashable
    number: int
    first_row: int
    rows: int
    position: int
    """Of the slice's first row in its sequence."""
    is_last: bool
    """Whether the step is done with it."""

    @property
    def load(self) -> Load:
        """What it adds to a batch."""
        return load_of(self.position, self.rows)


@dataclass
class _Waiting:
    """A sequence's steps in order; the first may be done in part."""

    works: deque[tuple[Work, int]] = field(default_factory=deque)
    """Each with how many rows of prompts had been taken when it came."""
    done_rows: int = 0  # of the first
    rows: int = 0  # left, of all


class StepQueue:
    """Which rows are computed next. Pure: no clock, no engine.

    Every batch takes all single rows that somebody waits for, so that no token waits for more
    than one batch. Then rows of prompts and of replays, as many as the cost model lets in beside
    them; a step may be cut, and go on in a later batch (Sarathi-Serve, arXiv:2403.02310). Of
    steps that nobody waits for several of a sequence may be in one batch, and the one behind
    them. Where a batch without tokens has run while some were expected, the next one holds so
    much less.

    Among prompts the least of this sum goes first, so that a short one need not wait for a long
    one that began before it (FastServe's aim, arXiv:2305.05920, with lengths known):

        rows left  +  lead of its owner, at most LEAD_ROWS  +  rows taken when it came

    The last term is its age. Whoever comes after `left + lead` rows were taken, comes behind. So
    a sequence's next step begins before W + K (left + LEAD_ROWS) further rows are taken, with K
    sequences waiting, and W rows of theirs that waited already.
    """

    def __init__(self, *, lead_rows: int = LEAD_ROWS) -> None:
        self._lead_rows = lead_rows
        self._waiting: dict[Hashable, _Waiting] = {}
        self._expected: dict[Hashable, tuple[int, int]] = {}  # key -> (batch, position)
        self._shares: Shares[Hashable] = Shares()
        self._taken_rows = 0  # of prompts, ever
        self._batches = 0
        self._stalled_s = 0.0  # how long the batch before made tokens wait, if they came then
        self._out: tuple[Slice, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def head(self, key: Hashable) -> int | None:
        """The number of a key's next step."""
        waiting = self._waiting.get(key)
        return waiting.works[0][0].number if waiting else None

    def add(self, work: Work) -> None:
        """A step more, behind those of its key that wait already."""
        if work.rows < 1:
            raise LocalError("a step without rows is no work")
        self._expected.pop(work.key, None)
        waiting = self._waiting.setdefault(work.key, _Waiting())
        waiting.works.append((work, self._taken_rows))
        waiting.rows += work.rows
        self._shares.join(work.owner)

    def cancel(self, key: Hashable, position: int = 0) -> tuple[int, ...]:
        """Forget a key's steps that start at `position` or later; their numbers.

        Not while a batch is out.
        """
        self._check_in()
        self._expected.pop(key, None)
        waiting = self._waiting.get(key)
        if waiting is None:
            return ()
        dropped = [work for work, _ in waiting.works if work.position >= position]
        if waiting.works[0][0] in dropped:
            waiting.done_rows = 0
        waiting.works = deque(one for one in waiting.works if one[0].position < position)
        waiting.rows = sum(work.rows for work, _ in waiting.works) - waiting.done_rows
        for work in dropped:
            self._shares.leave(work.owner)
        if not waiting.works:
            del self._waiting[key]
        return tuple(work.number for work in dropped)

    def skip(self, key: Hashable) -> None:
        """A key's next step need not be computed. Not while a batch is out."""
        self._check_in()
        work, _ = self._waiting[key].works[0]
        self._waiting[key].rows -= work.rows - self._waiting[key].done_rows
        self._pop(key)

    def next(self, cost: StepCost) -> tuple[Slice, ...]:
        """The next batch; empty if nothing waits. `done` must follow before anything else."""
        self._check_in()
        tokens = [key for key, one in self._waiting.items() if one.works[0][0].is_token]
        batch = [_slice(self._waiting[key].works[0][0], 0, 1) for key in tokens]
        if len(tokens) < len(self._waiting):
            batch += self._prompts(cost, batch, self._waiting.keys() - set(tokens))
        self._batches += bool(batch)
        self._out = tuple(batch)
        return self._out

    def _prompts(self, cost: StepCost, tokens: Sequence[Slice], keys: Set[Hashable]) -> list[Slice]:
        """Rows of prompts and replays that fit beside tokens."""
        batch: list[Slice] = []
        load = sum((one.load for one in tokens), NOTHING)
        expected = self._expected_load()
        limit_s = cost.limit_s(load, expected)
        if tokens:  # some of them may have waited for the batch before, had that no tokens
            limit_s -= self._stalled_s
        left = MAX_ROWS
        for work, first in self._in_turn(keys):
            waits = work.rows - first
            most = min(left, waits)
            rows = cost.fitting_rows(limit_s, load, work.position + first, most)
            rows = max(rows, min(most, MIN_ROWS - MAX_ROWS + left))
            if rows < waits:
                rows -= rows % cost.cut_rows
            if not batch:
                rows = max(rows, min(most, cost.cut_rows))
            if rows < 1:
                break
            batch.append(_slice(work, first, rows))
            load += batch[-1].load
            left -= rows
            if rows < waits:
                break
        self._stalled_s = cost.seconds(load) if expected.rows and not tokens else 0.0
        return batch

    def _in_turn(self, keys: Set[Hashable]) -> Iterator[tuple[Work, int]]:
        """Steps that may be computed next, each if all before it are; and the first row left."""
        for key in sorted(keys, key=self._rank):
            waiting = self._waiting[key]
            first, end = waiting.done_rows, waiting.works[0][0].position
            for work, _ in waiting.works:
                if work.position != end:  # it goes back
                    break
                yield work, first
                if work.is_awaited:
                    break
                first, end = 0, work.position + work.rows

    def done(self) -> None:
        """The batch is computed."""
        for one in self._out:
            waiting = self._waiting[one.key]
            work, _ = waiting.works[0]
            self._shares.serve(work.owner, one.rows)
            waiting.done_rows += one.rows
            waiting.rows -= one.rows
            if not work.is_token:
                self._taken_rows += one.rows
            if one.is_last:
                self._pop(one.key)
        self._out = ()

    def _pop(self, key: Hashable) -> None:
        waiting = self._waiting[key]
        work, _ = waiting.works.popleft()
        waiting.done_rows = 0
        self._shares.leave(work.owner)
        if not waiting.works:
            del self._waiting[key]
            if work.is_awaited:
                self._expected[key] = self._batches, work.position + work.rows

    def _rank(self, key: Hashable) -> tuple[float, int]:
        waiting = self._waiting[key]
        work, came = waiting.works[0]
        lead = min(self._shares.lead(work.owner), self._lead_rows)
        return waiting.rows + lead + came, work.number

    def _expected_load(self) -> Load:
        """Single tokens that should come soon."""
        for key in [*self._expected]:  # in the order in which they went out
            if self._batches - self._expected[key][0] < EXPECTED_BATCHES:
                break
            del self._expected[key]
        return sum((load_of(position, 1) for _, position in self._expected.values()), NOTHING)

    def _check_in(self) -> None:
        if self._out:
            raise LocalError("the batch before is not done yet")


def _slice(work: Work, first: int, rows: int) -> Slice:
    is_last = first + rows == work.rows
    return Slice(work.key, work.number, first, rows, work.position + first, is_last)
