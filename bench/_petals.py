"""Petals' rule of placement in our own words, to be compared with ours.

Source: bigscience-workshop/petals, src/petals/server/block_selection.py and server.py, and
Borzunov et al., "Distributed Inference and Fine-tuning of Large Language Models Over The
Internet", NeurIPS 2023, arXiv:2312.08361, section 3.2. What it does:

- A server holds as many blocks as its memory takes beside a cache of 16,384 positions for each
  (its default for models whose heads share keys).
- Its throughput is what it computes, shared by the (n + 1) / 2 blocks that a request visits on
  average, or what its line sends, whichever is less.
- Servers join one after the other, each at the window whose blocks have the least throughput:
  the sorted throughputs are compared, lowest first.
- A server moves if the whole swarm, rebalanced from its best move on, would have a weakest block
  that its present one is less than 0.75 of.

Where we are generous: throughput is that of decoding in batches of 32, the work that is judged
(Petals measures a forward pass over many tokens); its servers check now and then, while here
they check until nobody moves; the judge's router may leave a span in the middle, and Petals'
may not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench._pools import Pool
from gennode.sharding.capacity import PLANNED_POSITIONS
from gennode.wire.ids import Span
from gennode.wire.snapshot import Candidate, Demand

CACHE_POSITIONS = 16_384
BALANCE_QUALITY = 0.75
BATCH_TOKENS = 32
SAME = 1e-3  # its epsilon: a server is taken to be that much larger where it is
MAX_ROUNDS = 20
# With more servers than this, a lot decides who checks: if none of so many wants to move, the
# others, who would start the same rebalancing, are taken not to either.
MAX_CHECKS = 12

_Floats = NDArray[np.float64]


def placed(pool: Pool, seed: int) -> list[tuple[Candidate, Span]]:
    """Who holds what, once everybody has joined (in an order by lot) and nobody moves."""
    rng = random.Random(seed)
    layers = pool.demand.layers
    widths = [_blocks(candidate, pool.demand) for candidate in pool.candidates]
    speeds = [
        _throughput(candidate, width, pool.demand)
        for candidate, width in zip(pool.candidates, widths, strict=True)
    ]
    swarm = _Swarm(layers, widths, speeds)
    joining = [index for index, width in enumerate(widths) if width]
    rng.shuffle(joining)
    for index in joining:
        swarm.join(index)
    for _ in range(MAX_ROUNDS):
        rng.shuffle(joining)
        moved = [swarm.check(index, rng) for index in joining[:MAX_CHECKS]]
        if not any(moved):
            break
    return [
        (pool.candidates[index], Span(start, start + widths[index]))
        for index, start in sorted(swarm.starts.items())
    ]


def _blocks(candidate: Candidate, demand: Demand) -> int:
    block_bytes = demand.layer_bytes + demand.session_bytes * CACHE_POSITIONS // PLANNED_POSITIONS
    return min(demand.layers, candidate.memory_bytes // block_bytes)


def _throughput(candidate: Candidate, blocks: int, demand: Demand) -> float:
    computes = BATCH_TOKENS / candidate.cost.pass_s(BATCH_TOKENS) / ((blocks + 1) / 2)
    return min(computes, candidate.upload_bytes_per_s / demand.frame_bytes)


class _Swarm:
    """Where each server's span starts, and the throughput of each block."""

    def __init__(self, layers: int, widths: Sequence[int], speeds: Sequence[float]) -> None:
        self.widths = widths
        self.speeds = speeds
        self.starts: dict[int, int] = {}
        self.blocks: _Floats = np.zeros(layers)

    def join(self, index: int) -> None:
        """A newcomer takes the weakest window."""
        self.starts[index] = _weakest(self.blocks, self.widths[index])
        self._add(self.blocks, index, self.starts[index], 1.0)

    def check(self, index: int, rng: random.Random) -> bool:
        """A server looks whether to move, and does; whether it did."""
        least = float(self.blocks.min())
        blocks = self.blocks.copy()
        self._add(blocks, index, self.starts[index], -1 - SAME)
        if least > SAME and blocks.min() <= 0:
            return False  # nobody else has what it has
        start = _weakest(blocks, self.widths[index])
        if start == self.starts[index]:
            return False
        after = self._balanced(blocks, index, start, rng)
        if after < least or after < SAME or least / after >= BALANCE_QUALITY - SAME:
            return False
        self._add(self.blocks, index, self.starts[index], -1.0)
        self.starts[index] = start
        self._add(self.blocks, index, start, 1.0)
        return True

    def _balanced(self, blocks: _Floats, index: int, start: int, rng: random.Random) -> float:
        """The weakest block's throughput if a server moves, and then all that gain by it."""
        starts = dict(self.starts)
        self._add(blocks, index, starts[index], SAME)
        starts[index] = start
        self._add(blocks, index, start, 1.0)
        for _ in range(MAX_ROUNDS):
            order = list(starts)
            rng.shuffle(order)
            moved = False
            for server in order:
                self._add(blocks, server, starts[server], -1 - SAME)
                best = _weakest(blocks, self.widths[server])
                self._add(blocks, server, starts[server], SAME)
                moved |= best != starts[server]
                starts[server] = best
                self._add(blocks, server, best, 1.0)
            if not moved:
                break
        return float(blocks.min())

    def _add(self, blocks: _Floats, index: int, start: int, times: float) -> None:
        blocks[start : start + self.widths[index]] += times * self.speeds[index]


def _weakest(blocks: _Floats, width: int) -> int:
    """The first of the windows whose sorted throughputs come first."""
    windows = np.lib.stride_tricks.sliding_window_view(blocks, width)
    ordered = np.sort(windows, axis=1)
    left = np.arange(len(ordered))
    for column in ordered.T:
        values = column[left]
        left = left[values == values.min()]
        if len(left) == 1:
            break
    return int(left[0])
