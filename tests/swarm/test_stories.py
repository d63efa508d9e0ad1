"""Whole swarms in virtual time: faults in the middle of answers never change a token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gennode.engine.seam import States, StepInput
from gennode.engine.toy import ToyShard
from gennode.node.stories.story import tell

SEEDS = 60


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_no_token_is_lost_doubled_or_changed(first: int) -> None:
    stories = [tell(seed) for seed in range(first, first + 10)]
    assert all(story.holds for story in stories), [s.seed for s in stories if not s.holds]
    assert sum(story.right for story in stories) >= 15


def test_faults_do_strike() -> None:
    assert sum(tell(seed).failovers for seed in range(20)) >= 5


def test_a_seed_replays_bit_for_bit() -> None:
    assert tell(13) == tell(13)
    assert tell(13) != tell(14)


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
    assert any(tell(seed, engine).wrong for seed in range(30))
