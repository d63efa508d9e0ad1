"""`gennode demo`: the promise of the README's first page."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Command


@pytest.mark.slow  # it starts three nodes
@pytest.mark.timeout(180)
def test_the_answer_is_the_same_though_a_worker_is_killed(gennode: Command) -> None:
    ended = gennode("demo", "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["same"] is True
    assert told["killed"].startswith("worker-")
    assert len(told["failovers"]) == 1
    assert len(told["tokens"]) > 20
