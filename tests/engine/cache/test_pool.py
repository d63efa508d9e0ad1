"""Whatever the layout of pages, sequences read what they wrote; codes come close to it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch

from gennode.engine.cache.memory import Usual
from gennode.engine.cache.pages import PAGE_POSITIONS
from gennode.engine.cache.pool import KvPool
from gennode.engine.seam import CacheUse
from gennode.errors import LocalError, ResourceError
from gennode.wire.ids import Span

HEADS, WIDTH, SPAN, PAGE = 2, 8, Span(1, 3), PAGE_POSITIONS


def make_pool(pages: int = 12, dtype: torch.dtype = torch.float32, *names: str) -> KvPool:
    made = KvPool(HEADS, WIDTH, pages=pages, dtype=dtype)
    for index in range(4):
        made.add_layer(index)
    for name in names:
        made.open(name, SPAN, pages * PAGE)
    return made


def rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, count, HEADS, WIDTH, generator=chance)
    return keys, values


def write(pool: KvPool, name: str, position: int, count: int, seed: int) -> None:
    """A step in both layers of the span, with other numbers in each."""
    place = pool.place(name, position, count)
    for index in range(SPAN.start, SPAN.end):
        pool.write(index, place, *rows(count, seed + index))


@dataclass
class Record:
    """What a sequence has written, layer by layer: [positions, heads, width]."""

    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    length: int = 0

    def write(self, position: int, count: int, seed: int) -> None:
        for index in range(SPAN.start, SPAN.end):
            keys, values = rows(count, seed + index)
            none = torch.empty(0, HEADS, WIDTH)
            self.keys[index] = torch.cat((self.keys.get(index, none)[:position], keys))
            self.values[index] = torch.cat((self.values.get(index, none)[:position], values))
        self.length = position + count

    def first(self, positions: int) -> Record:
        keys = {index: held[:positions] for index, held in self.keys.items()}
        values = {index: held[:positions] for index, held in self.values.items()}
        return Record(keys, values, positions)

    def check(self, pool: KvPool, name: str) -> None:
        place = pool.place(name, self.length, 0)
        for index in range(SPAN.start, SPAN.end):
            keys, values = pool.read(index, place)
            assert torch.equal(keys.transpose(0, 1), self.keys[index])
            assert torch.equal(values.transpose(0, 1), self.values[index])


@pytest.mark.parametrize("seed", range(4))
def test_sequences_that_share_a_small_memory_read_what_they_wrote(seed: int) -> None:
    chance, pool = random.Random(seed), make_pool(12, torch.float32)
    records: dict[str, Record] = {}
    kept: dict[int, Record] = {}
    refused = shared = split = 0
    for step in range(400):
        name = chance.choice("abc")
        record = records.get(name)
        try:
            if record is None or chance.random() < 0.05:
                records.pop(name, None)
                pool.open(name, SPAN, chance.choice([PAGE, 12 * PAGE]))
                records[name] = Record()
                if kept and chance.random() < 0.7:
                    number = chance.choice(sorted(kept))
                    assert pool.adopt(name, number) == kept[number].length
                    records[name] = kept[number].first(kept[number].length)
                    shared += 1
                continue
            position = max(0, record.length - chance.choice([0, 0, 0, 5, PAGE]))
            count = chance.choice([1, 1, 3, PAGE, 100])
            write(pool, name, position, count, 10 * step)
        except ResourceError:
            refused += 1
            if kept:
                pool.forget(kept.popitem()[0] if chance.random() < 0.5 else 0)
            continue
        record.write(position, count, 10 * step)
        split += len(pool.place(name, record.length, 0).runs) > 1
        if chance.random() < 0.1 and len(kept) < 3:
            kept[pool.keep(name, record.length)] = record.first(record.length)
        for other, held in records.items():
            if held.length:
                held.check(pool, other)
    assert refused
    assert shared
    assert split


def test_bits_do_not_depend_on_the_layout() -> None:
    whole, pieces = make_pool(12, torch.float32, "a"), make_pool(4, torch.float32, "a", "b")
    write(whole, "a", 0, 3 * PAGE, 1)
    write(pieces, "a", 0, PAGE, 0)
    write(pieces, "b", 0, 1, 0)
    write(pieces, "a", 0, 3 * PAGE, 1)
    one, many = whole.place("a", 3 * PAGE, 0), pieces.place("a", 3 * PAGE, 0)
    assert (len(one.runs), one.first) == (1, 0)
    assert (len(many.runs), many.first) == (2, None)
    for index in range(SPAN.start, SPAN.end):
        for seen, gathered in zip(whole.read(index, one), pieces.read(index, many), strict=True):
            assert torch.equal(seen, gathered)


def test_a_page_that_is_replaced_whole_is_found() -> None:
    """Nothing has to be copied then, and the number of pages is as before."""
    pool = make_pool(12, torch.float32, "a")
    write(pool, "a", 0, PAGE + 9, 1)
    pool.keep("a", PAGE + 9)
    record = Record()
    record.write(0, PAGE + 9, 1)
    write(pool, "a", PAGE, 9, 2)
    record.write(PAGE, 9, 2)
    record.check(pool, "a")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_rows_of_several_sequences_are_scattered_as_they_are_written(dtype: torch.dtype) -> None:
    pool = make_pool(12, dtype, "a", "b")
    keys, values = rows(2, 5)
    places = [pool.place("a", 0, 1), pool.place("b", 0, 1)]
    pool.scatter(1, torch.tensor([place.runs[0][0] for place in places]), keys, values)
    scattered = [[part.clone() for part in pool.read(1, place)] for place in places]
    for number, place in enumerate(places):
        pool.write(1, place, keys[number : number + 1], values[number : number + 1])
        for before, after in zip(scattered[number], pool.read(1, place), strict=True):
            assert torch.equal(before, after)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_codes_come_close_in_a_quarter_of_the_memory() -> None:
    pool, plain = make_pool(4, torch.int8, "a"), make_pool(4, torch.float32, "a")
    write(pool, "a", 0, 100, 3)
    write(plain, "a", 0, 100, 3)
    place = pool.place("a", 100, 0)
    for found, wanted in zip(pool.read(1, place), plain.read(1, place), strict=True):
        assert relative_error(found, wanted) < 0.006
    assert pool.page_bytes * 4 == plain.page_bytes * (WIDTH + 2) / WIDTH
    assert pool.use().used_bytes == 2 * 4 * pool.page_bytes


def test_channels_that_are_known_to_be_large_cost_the_others_little() -> None:
    size = torch.ones(HEADS, WIDTH)
    size[:, 3] = 40
    errors = []
    for usual in (None, Usual(size, size)):
        pool = KvPool(HEADS, WIDTH, pages=2, dtype=torch.int8)
        pool.add_layer(0, usual)
        pool.open("a", Span(0, 1), PAGE)
        place = pool.place("a", 0, PAGE)
        keys, values = (part * size for part in rows(PAGE, 3))
        pool.write(0, place, keys, values)
        found = pool.read(0, place)[0].transpose(0, 1)
        errors.append(relative_error(found[..., :3], keys[..., :3]))
    assert errors[0] > 0.05
    assert errors[1] < 0.006


def test_codes_of_a_row_do_not_depend_on_the_rows_beside_it() -> None:
    pool = make_pool(4, torch.int8, "a", "b")
    keys, values = rows(70, 1)
    place = pool.place("a", 0, 70)
    pool.write(1, place, keys, values)
    together = [part.clone() for part in pool.read(1, place)]
    for position in range(70):
        alone = pool.place("b", position, 1)
        row = slice(position, position + 1)
        pool.write(1, alone, keys[row], values[row])
    for one, other in zip(together, pool.read(1, alone), strict=True):
        assert torch.equal(one, other)


def test_numbers_that_no_scale_fits_stay_near() -> None:
    pool = make_pool(2, torch.int8, "a")
    place = pool.place("a", 0, 2)
    keys = torch.zeros(2, HEADS, WIDTH)
    keys[1] = 1e9
    pool.write(1, place, keys, keys)
    found = pool.read(1, place)[0].transpose(0, 1)
    assert torch.equal(found[0], keys[0])
    assert torch.isfinite(found[1]).all()


def test_use_counts_pages_in_all_layers_and_what_is_kept() -> None:
    pool = make_pool(12, torch.float32, "a")
    whole = 12 * 4 * pool.page_bytes
    assert pool.page_bytes == 2 * HEADS * PAGE * WIDTH * 4
    assert pool.use() == CacheUse(0, whole)
    write(pool, "a", 0, PAGE + 1, 1)
    kept = pool.keep("a", PAGE)
    pool.close("a")
    assert pool.use() == CacheUse(4 * pool.page_bytes, whole)
    pool.forget(kept)
    assert pool.use() == CacheUse(0, whole)


def test_a_layer_that_goes_takes_what_is_kept_of_it() -> None:
    pool = make_pool(12, torch.float32, "a")
    write(pool, "a", 0, 1, 1)
    kept = pool.keep("a", 1)
    with pytest.raises(LocalError, match="runs over"):
        pool.drop_layer(2)
    pool.close("a")
    pool.drop_layer(3)
    pool.open("a", SPAN, PAGE)
    pool.adopt("a", kept)
    pool.close("a")
    pool.drop_layer(2)
    pool.drop_layer(2)
    assert pool.use().used_bytes == 0
    with pytest.raises(LocalError, match="no cache"):
        pool.open("a", SPAN, PAGE)
    pool.add_layer(2)
    pool.open("a", SPAN, PAGE)
    with pytest.raises(LocalError, match="same span"):
        pool.adopt("a", kept)


def test_what_does_not_fit_is_refused_in_words() -> None:
    cramped = make_pool(1, torch.float32, "a")
    with pytest.raises(ResourceError, match="no page is left in a cache of 64"):
        cramped.open("b", SPAN, 1)
    with pytest.raises(ResourceError, match="no page is left"):
        cramped.place("a", 0, PAGE + 1)
    with pytest.raises(ResourceError, match="no memory for a cache"):
        KvPool(1 << 20, 1 << 30, pages=1).add_layer(0)


def test_only_the_same_layers_can_adopt() -> None:
    pool = make_pool(2, torch.float32, "a")
    pool.place("a", 0, 1)
    kept = pool.keep("a", 1)
    pool.open("a", Span(0, 1), 1)
    with pytest.raises(LocalError, match="same span"):
        pool.adopt("a", kept)


def test_kernels_see_no_codes() -> None:
    assert make_pool(1, torch.float32).layer(0).keys.shape == (HEADS, PAGE, WIDTH)
    with pytest.raises(LocalError, match="8 bits"):
        make_pool(1, torch.int8).layer(0)
