"""Publishing: numbers only grow, and none is given to two models."""

from __future__ import annotations

from pathlib import Path

import pytest

from gennode.errors import UsageError
from gennode.node.publish import Record, next_release
from gennode.wire.ids import ModelId
from gennode.wire.release import Line, Release, read_release, sign_release
from gennode.wire.signing import Key, Signed

KEY = Key(bytes(32))
LINE = Line(KEY.peer, "demo")
A, B, C = (ModelId(letter * 64) for letter in "abc")


def following(model: ModelId, own: Signed | None, heard: Release | None = None) -> Release:
    return read_release(next_release(KEY, "demo", model, 8, own, heard))


def test_the_first_release_has_number_one() -> None:
    assert following(A, None) == Release(KEY.peer, "demo", 1, A, "", 8)


def test_each_release_names_the_one_before() -> None:
    first = sign_release(KEY, "demo", 1, A, None, 8)
    assert following(B, first) == Release(KEY.peer, "demo", 2, B, A, 8)
    assert next_release(KEY, "demo", A, 8, first, None) == first  # the same again: no news


def test_what_peers_know_counts_where_more_was_published_than_is_noted() -> None:
    first = sign_release(KEY, "demo", 1, A, None, 8)
    heard = Release(KEY.peer, "demo", 7, B, A, 8)
    assert following(C, first, heard) == Release(KEY.peer, "demo", 8, C, B, 8)
    assert following(C, None, heard).number == 8
    noted = sign_release(KEY, "demo", 9, B, A, 8)
    assert following(C, noted, heard).number == 10


def test_what_was_signed_is_noted(tmp_path: Path) -> None:
    record = Record(tmp_path)
    assert record.last(LINE) is None
    first, other = (sign_release(KEY, name, 1, A, None, 8) for name in ("demo", "other"))
    record.add(first)
    record.add(other)
    assert Record(tmp_path).last(LINE) == first
    second = sign_release(KEY, "demo", 2, B, A, 8)
    record.add(second)
    assert Record(tmp_path).last(LINE) == second
    (tmp_path / "releases.json").write_text("{")
    with pytest.raises(UsageError):
        record.last(LINE)
