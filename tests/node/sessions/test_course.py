"""One attempt after the other: wherever a repair falls into another, no token changes."""

from __future__ import annotations

import pytest

from gennode.wire.ids import PeerId
from tests.node.conftest import FIRST, SECOND, SPARE, THIRD
from tests.node.sessions.company import OTHER
from tests.node.sessions.crowd import crowd

EVERYBODY = (SPARE, OTHER, FIRST, SECOND, THIRD)
MOVES = 60  # more than a whole repair needs


@pytest.mark.parametrize("first", [FIRST, SECOND, THIRD])
@pytest.mark.parametrize("second", [FIRST, SECOND, THIRD, SPARE])
@pytest.mark.parametrize("is_dead", [True, False])
def test_a_second_repair_anywhere_in_the_first_changes_no_token(
    first: PeerId, second: PeerId, is_dead: bool
) -> None:
    for moves in range(MOVES):
        company = crowd(moves, *EVERYBODY)
        company.go_on(moves % 7)
        company.miss(first)
        company.go_on(moves)
        company.kill(second) if is_dead else company.miss(second)
        company.ends_well()
