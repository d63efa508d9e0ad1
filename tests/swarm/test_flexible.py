"""Five real workers of different speed find places, and others when one comes or dies.

How near their parts are to their shares of the speed, and whether a new plan pays once somebody
has come, depends on what they measured on a busy machine: `bench/moves.py` tells, and
`tests/sharding/` and `tests/swarm/test_moves.py` hold the decisions to it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench._flexible import SHARES, watch


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_workers_find_their_places_and_find_them_again(tmp_path: Path) -> None:
    told: list[str] = []
    seen = await watch(tmp_path, told.append)
    assert seen.newcomer_layers > 0, told
    assert seen.asked.wrong == 0, told
    assert seen.asked.failures == [], told
    assert seen.asked.right >= len(SHARES), told
