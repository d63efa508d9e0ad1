"""What is rare in life and common in stories: small limits, engines that fail, copies.

All of it goes in through the product's own seams (its limits, its engine, the network), so that
the product's code knows nothing of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gennode.engine.seam import CacheUse, Logits, States, StepInput
from gennode.engine.toy import TOY_DIM, ToyOwner, ToyShard
from gennode.errors import ResourceError
from gennode.node.hops.admission import HopLimits
from gennode.wire.ids import Span
from gennode.wire.manifest import Manifest

RARELY = 0.25  # of the stories have each kind of it
OFTEN = 0.5
WIDE = 0.05
PADDING = 1 << 14  # 64 KiB a row: a prompt of 400 tokens is larger than a window
SMALL_BYTES = (200, 2_000, 8_000)  # a prompt's frames of toys take 300 to 10,000


@dataclass(frozen=True)
class Chances:
    """How often rare things happen in one story, and how small its limits are."""

    limits: HopLimits = HopLimits()
    step_fails: float = 0.0
    """Of an engine's turns: no memory, for example."""
    open_fails: float = 0.0
    garbles: float = 0.0
    """Of its turns, how often a state comes out that no codec takes."""
    strays: float = 0.0
    """Of all messages that may come twice, how many do."""
    cache_bytes: int = 1 << 40
    disk_bytes: int = 1 << 30
    disk_loses: bool = False
    """Whether disks take frames in and never give one back."""
    padding: int = 0
    """Numbers that states have beside the toy's, so that windows fill as with a large model."""


def draw(rng: random.Random) -> Chances:
    """What is rare in one story; nothing at all in some."""
    if rng.random() < WIDE:
        return Chances(padding=PADDING)

    def chance(low: float, high: float) -> float:
        return rng.uniform(low, high) if rng.random() < RARELY else 0.0

    def small(usual: int, share: float = RARELY, least: int = 0) -> int:
        return max(least, rng.choice(SMALL_BYTES)) if rng.random() < share else usual

    usual = HopLimits()
    limits = HopLimits(
        max_sessions=rng.choice([1, 2]) if rng.random() < RARELY else usual.max_sessions,
        retained_bytes=small(usual.retained_bytes, OFTEN),
        queued_bytes=small(usual.queued_bytes, least=20_000),
    )
    return Chances(
        limits=limits,
        step_fails=chance(0.001, 0.005),
        open_fails=chance(0.05, 0.4),
        garbles=chance(0.0005, 0.003),
        strays=chance(0.01, 0.2),
        cache_bytes=small(1 << 40, least=2_000),
        disk_bytes=rng.choice([0, 3_000, 1 << 30]),
        disk_loses=rng.random() < RARELY,
    )


class FlakyShard(ToyShard):
    """A toy whose machine runs out of things now and then, until it is healed."""

    def __init__(
        self,
        manifest: Manifest,
        chances: Chances,
        rng: random.Random,
        is_healed: Callable[[], bool],
    ) -> None:
        super().__init__(manifest)
        self._chances = chances
        self._rng = rng
        self._is_healed = is_healed

    @property
    def dim(self) -> int:
        """Width of the states."""
        return TOY_DIM + self._chances.padding

    def open(self, sequence: object, span: Span, max_positions: int) -> None:
        """Begin a sequence, if there is memory for it."""
        if self._happens(self._chances.open_fails):
            raise ResourceError("no memory for another session")
        super().open(sequence, span, max_positions)

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        """Compute, or fail, or give out numbers that are none."""
        if self._happens(self._chances.step_fails):
            raise ResourceError("out of memory")
        padding = self._chances.padding
        if padding:
            batch = [replace(one, states=_narrow(one.states)) for one in batch]
        outputs = super().step(batch)
        if self._happens(self._chances.garbles):
            outputs[0][-1, 0] = np.nan
        return [_wide(output, padding) for output in outputs]

    def _happens(self, chance: float) -> bool:
        return chance > 0 and self._rng.random() < chance and not self._is_healed()

    def cache_use(self) -> CacheUse:
        """So much as the story gives."""
        return CacheUse(super().cache_use().used_bytes, self._chances.cache_bytes)


class WideOwner(ToyOwner):
    """The owner of a toy whose states have numbers beside its own."""

    def __init__(self, manifest: Manifest, padding: int) -> None:
        super().__init__(manifest)
        self._padding = padding

    @property
    def dim(self) -> int:
        """Width of the hidden states."""
        return TOY_DIM + self._padding

    def embed(self, tokens: Sequence[int], position: int) -> States:
        """Input states of the first layer."""
        return _wide(super().embed(tokens, position), self._padding)

    def logits(self, state: States) -> Logits:
        """Of the toy's own numbers."""
        return super().logits(_narrow(state.reshape(1, -1)))


def _narrow(states: States) -> States:
    return states[:, :TOY_DIM]


def _wide(states: States, padding: int) -> States:
    return np.pad(states, ((0, 0), (0, padding))) if padding else states
