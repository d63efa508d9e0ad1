"""Errors cross from the compute process as they are, and say nothing that harms a terminal."""

from __future__ import annotations

import pytest

from gennode.engine.child.protocol import MAX_WORDS, Failed, as_error, failure
from gennode.errors import (
    DeviceError,
    GennodeError,
    LocalError,
    ModelError,
    RemoteError,
    ResourceError,
)


@pytest.mark.parametrize("kind", [DeviceError, LocalError, ModelError, RemoteError, ResourceError])
def test_kind_words_and_hint_survive(kind: type[GennodeError]) -> None:
    error = as_error(failure(kind("gone wrong", hint="try again")))
    assert (type(error), str(error), error.hint) == (kind, "gone wrong", "try again")


def test_what_a_process_says_is_bounded_and_printable() -> None:
    error = as_error(Failed("SystemExit", "\x1b[2J\n" + "x" * 10 * MAX_WORDS, "\x07"))
    assert type(error) is LocalError
    assert str(error).startswith("?[2J?x")
    assert len(str(error)) == MAX_WORDS
    assert error.hint == "?"
