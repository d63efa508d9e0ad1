"""Which sequence holds which page of a cache: numbers alone, no memory.

Pages are numbered as they lie in memory. A sequence whose pages follow each other can be read
without copying, so that is the normal case: a sequence grows to its right, and a new one is
placed where it has room to. Sequences that share a prefix hold the same pages. Nobody writes
over what another one reads: who wants to gets pages of his own (copy on write), with one
exception that costs nothing, which is to write on where a page's filled rows end.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from gennode.errors import LocalError, ResourceError

PAGE_POSITIONS = 64  # as many as a block of attention reads; half a page is lost per sequence
ROOMY_SHARE = 0.5  # of all pages: while fewer are held, speed of reading goes before sharing

_FREE = re.compile(b"\x01+")


@dataclass(frozen=True)
class Copy:
    """The first `rows` positions of page `source` have to be copied to page `target`."""

    source: int
    target: int
    rows: int


@dataclass
class _Sequence:
    most: int
    """Pages that it may come to hold."""
    pages: list[int] = field(default_factory=list)
    version: int = 0


@dataclass(frozen=True)
class _Kept:
    positions: int
    pages: tuple[int, ...]


def pages_for(positions: int) -> int:
    """How many pages so many positions take."""
    return -(-positions // PAGE_POSITIONS)


class Pages:
    """Counts who holds each of `count` pages; says what has to be copied, and copies nothing."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise LocalError(f"a cache of {count} pages holds nothing")
        self._holders = [0] * count
        self._filled = [0] * count  # rows that some holder may read
        self._free = bytearray(b"\x01" * count)
        self._free_count = count
        self._sequences: dict[Hashable, _Sequence] = {}
        self._kept: dict[int, _Kept] = {}
        self._last_kept = 0
        self._last_version = 0

    @property
    def count(self) -> int:
        """All pages."""
        return len(self._holders)

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return self._free_count

    def open(self, sequence: Hashable, max_positions: int) -> None:
        """Begin a sequence without pages, or empty it if it exists already.

        ResourceError if no page would be left for it, were all that are empty to take one.
        """
        self.close(sequence)
        if sum(not one.pages for one in self._all()) >= self._free_count:
            raise _no_page_left(self.count)
        self._sequences[sequence] = _Sequence(pages_for(max_positions))

    def of(self, sequence: Hashable) -> list[int]:
        """A sequence's pages in order; not to be changed."""
        return self._known(sequence).pages

    def version(self, sequence: Hashable) -> int:
        """Another number whenever a sequence's pages are others than before."""
        return self._known(sequence).version

    def close(self, sequence: Hashable) -> None:
        """End a sequence and let go of its pages. Idempotent."""
        known = self._sequences.pop(sequence, None)
        if known is not None:
            self._release(known.pages)

    def truncate(self, sequence: Hashable, length: int) -> None:
        """Let go of the pages from position `length` on."""
        known = self._known(sequence)
        needed = pages_for(length)
        if needed < len(known.pages):
            self._release(known.pages[needed:])
            del known.pages[needed:]
            self._renew(known)

    def write(self, sequence: Hashable, position: int, end: int) -> list[Copy]:
        """Have pages for [0, end), of which [position, end) may be written; the rest is dropped.

        What is returned must be copied before anything is written, all at once: sources may
        belong to nobody any more. ResourceError if too few pages are free: nothing has changed.
        """
        known = self._known(sequence)
        if not 0 <= position <= end or position > len(known.pages) * PAGE_POSITIONS:
            raise LocalError(f"positions {position} to {end} leave a gap in a sequence's pages")
        if position == end:  # nothing is to be written: shared pages may stay
            self.truncate(sequence, end)
            return []
        total = pages_for(end)
        shared = [
            index
            for index in range(position // PAGE_POSITIONS, min(total, len(known.pages)))
            if self._is_read_by_others(known.pages[index], position - index * PAGE_POSITIONS)
        ]
        if len(shared) + max(0, total - len(known.pages)) > self._free_count:
            raise _no_page_left(self.count)
        self.truncate(sequence, end)
        copies: list[Copy] = []
        if shared or total > len(known.pages):
            copies = self._replace(known, shared, position, total)
        for index in range(position // PAGE_POSITIONS, total):
            self._filled[known.pages[index]] = min(end - index * PAGE_POSITIONS, PAGE_POSITIONS)
        return copies

    def _replace(
        self, known: _Sequence, shared: list[int], position: int, total: int
    ) -> list[Copy]:
        """Give a sequence `total` pages, others for those that are `shared`: what to copy."""
        before, pages = list(known.pages), known.pages
        is_moved = self._move(known, total, is_split=bool(shared))
        if not is_moved:
            for index in shared:
                pages[index] = self._take(pages[index - 1] if index else None)
            while len(pages) < total:
                pages.append(self._take(pages[-1] if pages else None))
        copies = _copies(before, pages, position)
        self._release(old for old, new in zip(before, pages, strict=False) if old != new)
        if is_moved:
            for copy in copies:
                self._filled[copy.target] = copy.rows
        self._renew(known)
        return copies

    # -- sharing ------------------------------------------------------------------------------

    def keep(self, sequence: Hashable, positions: int) -> int:
        """Hold the pages of the first `positions` beyond the sequence's end; their number."""
        known = self._known(sequence)
        if not 0 < positions <= len(known.pages) * PAGE_POSITIONS:
            raise LocalError(f"{positions} positions can't be kept: they have no pages")
        self._last_kept += 1
        self._kept[self._last_kept] = _Kept(
            positions, tuple(self._share(known.pages[: pages_for(positions)]))
        )
        return self._last_kept

    def kept_positions(self, kept: int) -> int:
        """How many positions were kept; LocalError if nothing is under this number."""
        return self._known_kept(kept).positions

    def adopt(self, sequence: Hashable, kept: int) -> None:
        """Give an empty sequence the pages of what was kept."""
        known, source = self._known(sequence), self._known_kept(kept)
        if known.pages:
            raise LocalError("only an empty sequence can adopt")
        known.pages.extend(self._share(source.pages))
        self._renew(known)

    def forget(self, kept: int) -> None:
        """Hold it no longer. Idempotent."""
        source = self._kept.pop(kept, None)
        if source is not None:
            self._release(source.pages)

    # -- counting -----------------------------------------------------------------------------

    def _known(self, sequence: Hashable) -> _Sequence:
        known = self._sequences.get(sequence)
        if known is None:
            raise LocalError(f"sequence {sequence!r} is not open")
        return known

    def _known_kept(self, kept: int) -> _Kept:
        source = self._kept.get(kept)
        if source is None:
            raise LocalError(f"nothing is kept under number {kept}")
        return source

    def _renew(self, known: _Sequence) -> None:
        self._last_version += 1
        known.version = self._last_version

    def _is_read_by_others(self, page: int, row: int) -> bool:
        """Whether writing from `row` on would overwrite what another holder may read."""
        return self._holders[page] > 1 and row < self._filled[page]

    def _share(self, pages: Iterable[int]) -> Iterable[int]:
        for page in pages:
            self._holders[page] += 1
        return pages

    def _release(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._free[page] = 1
                self._free_count += 1

    def _acquire(self, page: int) -> int:
        self._holders[page] = 1
        self._free[page] = 0
        self._free_count -= 1
        return page

    # -- where --------------------------------------------------------------------------------

    def _take(self, after: int | None) -> int:
        """A free page: the one after a sequence's last if it can be, else where most are."""
        if after is not None and after + 1 < self.count and self._free[after + 1]:
            return self._acquire(after + 1)
        start, end = max(self._gaps(), key=lambda gap: gap[1] - gap[0])
        is_shared_out = start - 1 in self._claims()
        return self._acquire((start + end) // 2 if is_shared_out else start)

    def _move(self, known: _Sequence, total: int, *, is_split: bool) -> bool:
        """Place a sequence anew, if it is new or can't stay in one piece and there is a place.

        Pages that others hold as well are left to them only while the cache is roomy.
        """
        pages = known.pages
        if total == 0 or (pages and self._fits_in_place(pages, total) and not is_split):
            return False
        shared = sum(self._holders[page] > 1 for page in pages)
        held = self.count - self._free_count + shared + max(0, total - len(pages))
        if shared and held > ROOMY_SHARE * self.count:
            return False
        start = self._spot(known, total)
        if start is None:
            return False
        pages[:] = [self._acquire(page) for page in range(start, start + total)]
        return True

    def _fits_in_place(self, pages: list[int], total: int) -> bool:
        """Whether a sequence that is in one piece can grow to its right, or is in pieces for good.

        Pieces are not put together again at each new page: that would copy much and often.
        """
        if len(pages) >= total:
            return True
        last = pages[-1]
        wanted = total - len(pages)
        return self._free[last + 1 : last + 1 + wanted] == b"\x01" * wanted

    def _spot(self, known: _Sequence, total: int) -> int | None:
        """The first page of a gap with room for all that a sequence may want, beside what the
        one before may want; else of one in which `total` can double. None if there is neither."""
        most, claims, gaps = max(total, known.most), self._claims(known), list(self._gaps())
        for start, end in gaps:
            first = start + claims.get(start - 1, 0)
            if end - first >= most:
                return first
        start, end = max(gaps, key=lambda gap: gap[1] - gap[0], default=(0, 0))
        if start - 1 in claims:
            start = (start + end) // 2
        return start if end - start >= min(2 * total, most) else None

    def _gaps(self) -> Iterable[tuple[int, int]]:
        return (match.span() for match in _FREE.finditer(self._free))

    def _claims(self, known: _Sequence | None = None) -> dict[int, int]:
        """How many more pages each other sequence may want after its last."""
        others = [one for one in self._all() if one.pages and one is not known]
        wanted = {one.pages[-1]: one.most - len(one.pages) for one in others}
        return {page: pages for page, pages in wanted.items() if pages > 0}

    def _all(self) -> Iterable[_Sequence]:
        return self._sequences.values()


def _copies(before: list[int], after: list[int], position: int) -> list[Copy]:
    """What of the positions before `position` lies on other pages now."""
    return [
        Copy(source, target, min(position - index * PAGE_POSITIONS, PAGE_POSITIONS))
        for index, (source, target) in enumerate(zip(before, after, strict=False))
        if source != target and index * PAGE_POSITIONS < position
    ]


def _no_page_left(count: int) -> ResourceError:
    return ResourceError(
        f"no page is left in a cache of {count * PAGE_POSITIONS} positions",
        hint="serve fewer sessions or layers, or allow more memory for the cache",
    )
