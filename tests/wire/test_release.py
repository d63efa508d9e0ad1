"""Releases: what a publisher signs comes back, and nothing else is one."""

from __future__ import annotations

import msgspec
import pytest

from gennode.errors import RemoteError, UsageError
from gennode.wire.ids import ModelId
from gennode.wire.release import (
    DOMAIN,
    MAX_NAME,
    MAX_NUMBER,
    MAX_RELEASE_BYTES,
    Line,
    Release,
    is_line,
    parse_line,
    read_release,
    sign_release,
)
from gennode.wire.signing import Key, Signed, seal

KEY, OTHER = Key(bytes(32)), Key(bytes([1]) * 32)
MODEL, OLDER = ModelId("a" * 64), ModelId("b" * 64)


def test_a_release_comes_back() -> None:
    signed = sign_release(KEY, "demo", 3, MODEL, OLDER, 8)
    assert read_release(signed) == Release(KEY.peer, "demo", 3, MODEL, OLDER, 8)
    assert read_release(signed).line == Line(KEY.peer, "demo")


def test_the_largest_release_is_within_the_bound() -> None:
    largest = sign_release(KEY, "x" * MAX_NAME, MAX_NUMBER, MODEL, OLDER, 1024)
    assert read_release(largest).number == MAX_NUMBER


RIGHT = Release(KEY.peer, "demo", 3, MODEL, "", 8)
WRONG = {
    "signature": msgspec.structs.replace(seal(KEY, DOMAIN, RIGHT), signature=bytes(64)),
    "domain": seal(KEY, "announcement", RIGHT),
    "publisher": seal(OTHER, DOMAIN, RIGHT),
    "name": seal(KEY, DOMAIN, msgspec.structs.replace(RIGHT, name="../x")),
    "number": seal(KEY, DOMAIN, msgspec.structs.replace(RIGHT, number=0)),
    "model": seal(KEY, DOMAIN, msgspec.structs.replace(RIGHT, model=ModelId("A" * 64))),
    "previous": seal(KEY, DOMAIN, msgspec.structs.replace(RIGHT, previous="a")),
    "layers": seal(KEY, DOMAIN, msgspec.structs.replace(RIGHT, layers=1025)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_release_is_its_senders_fault(what: str) -> None:
    with pytest.raises(RemoteError):
        read_release(WRONG[what])


@pytest.mark.parametrize("padding", [[0], [bytes(MAX_RELEASE_BYTES)]])
def test_a_release_has_one_form(padding: list[object]) -> None:
    """Padding would make two bodies of one release, and a fork of nothing."""
    body = msgspec.msgpack.encode([*msgspec.structs.astuple(RIGHT), *padding])
    with pytest.raises(RemoteError):
        read_release(Signed(KEY.peer, body, KEY.sign(DOMAIN, body)))


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "-x", "x" * 65, "a b"])
def test_a_name_that_is_none_is_refused_when_it_is_signed(name: str) -> None:
    with pytest.raises(UsageError):
        sign_release(KEY, name, 1, MODEL, None, 8)


def test_a_line_is_typed_as_it_is_shown() -> None:
    line = Line(KEY.peer, "demo")
    assert parse_line(str(line)) == line
    assert is_line(str(line))
    for wrong in ("demo", f"{KEY.peer}/", f"{KEY.peer}/A", "nobody/demo", ""):
        with pytest.raises(UsageError):
            parse_line(wrong)
    for model in ("gennode-large", "./demo", "/models/demo", "owner/model", "a" * 64):
        assert not is_line(model)
