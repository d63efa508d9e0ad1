"""Whole swarms in virtual time: faults in the middle of answers never change a token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gennode.engine.seam import States, StepInput
from gennode.engine.toy import ToyShard
from gennode.node.stories.faults import KINDS
from gennode.node.stories.paths import RARE
from gennode.node.stories.story import tell
from gennode.node.stories.telling import Tally, tell_all

SEEDS = 80
pytestmark = pytest.mark.timeout(480)  # a minute of computing, on a machine that may be busy


@pytest.fixture(scope="module")
def tally() -> Tally:
    """Many stories, each of which holds: the first that does not ends in an error."""
    added = Tally()
    for told in tell_all(range(SEEDS), 1):
        added.add(told)
    return added


def test_no_token_is_lost_doubled_or_changed(tally: Tally) -> None:
    assert tally.right + tally.refused + tally.abandoned == tally.prompts
    assert tally.right >= 0.9 * (
        tally.prompts - tally.abandoned
    )  # an error is no way out of everything


def test_faults_of_all_kinds_strike(tally: Tally) -> None:
    assert set(tally.faults) == set(KINDS)
    assert tally.failovers >= SEEDS / 2


def test_rare_paths_are_taken(tally: Tally) -> None:
    missing = [path for path in RARE if not tally.paths[path]]
    assert not missing


class _Liar(ToyShard):
    """Adds one to a state now and then."""

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        outputs = super().step(batch)
        for item, output in zip(batch, outputs, strict=True):
            if item.position % 7 == 6:
                output[-1, 0] = (output[-1, 0] + 1) % 60
        return outputs


class _Doubler(ToyShard):
    """Appends a repeated step instead of taking it anew: wrong only after a failover."""

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        return super().step(
            [StepInput(item.sequence, self.length(item.sequence), item.states) for item in batch]
        )


@pytest.mark.parametrize("engine", [_Liar, _Doubler])
def test_a_wrong_token_would_be_noticed(engine: type[ToyShard]) -> None:
    stories = (tell(seed, engine) for seed in range(60))
    told = next(story for story in stories if story.wrong)
    assert not told.holds
    assert "is wrong" in told.broken
