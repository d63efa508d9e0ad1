"""One swarm of processes for all faults that it survives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.faults.stage import Stage


@pytest.fixture(scope="session")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The swarm, as the last test left it."""
    with ExitStack() as exits:
        yield Stage(tmp_path_factory.mktemp("swarm"), exits)


@pytest.fixture
def stage(swarm: Stage) -> Stage:
    """The swarm, whole again."""
    swarm.heal()
    return swarm
