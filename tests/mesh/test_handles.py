"""File handles are counted, and some are kept from streams."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from gennode.mesh import handles


@pytest.fixture
def few() -> Iterator[int]:
    """A process that may have few handles more than it has."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = handles.used() + handles.SPARE
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, limits[1]))
    yield allowed
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_is_open_is_counted() -> None:
    before = handles.used()
    ends = os.pipe()
    assert handles.used() == before + 2
    for end in ends:
        os.close(end)
    assert handles.used() == before


def test_streams_get_what_is_left(few: int) -> None:
    assert handles.most() == few
    assert handles.for_streams(10_000) == few - handles.SPARE
    assert handles.for_streams(1) == 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (8, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    assert handles.for_streams(10_000) == 0  # and nothing is opened here: it would fail


def test_the_limit_is_raised_as_far_as_it_may_be(few: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    handles.raise_limit()
    assert handles.most() == (handles.OPEN_MAX if hard == resource.RLIM_INFINITY else hard) > few
    handles.raise_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard
