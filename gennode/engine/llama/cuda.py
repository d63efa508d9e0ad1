"""One token of each of some sequences on a GPU: a graph of kernels that is started as one.

A layer is some thirty kernels of a few microseconds each, and to start each from Python takes
longer than to run it. A CUDA graph starts all layers' kernels at once, but always the same ones
on the same memory. So rows are padded to a few numbers of rows and of positions, with a graph
for each pair of these; what is padded repeats the first row, and stores what that stores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from gennode.engine.cache.pool import KvPlace, KvPool
from gennode.engine.llama.attention import StepRows
from gennode.engine.llama.rotary import rotations
from gennode.engine.seam import States
from gennode.wire.ids import Span

MAX_GRAPH_ROWS = 64  # beyond that kernels run longer than they take to start
MIN_GRAPH_POSITIONS = 256  # twice that is the next, and so on: at most half is padding
MAX_GRAPHS = 48  # each holds a few MB; the one least lately used is dropped
_WARM_UP_RUNS = 2  # before a capture, for what libraries set up at first

RunLayers = Callable[[Span, StepRows, torch.Tensor], None]
"""Adds the layers of a span to states [rows, dim], in place."""


class FixedRows:
    """StepRows with one row per sequence, all in one call, on memory that stays the same.

    `table`: [rows, positions], the slots of each row's sequence in order, 0 beyond its end.
    """

    def __init__(self, rows: int, positions: int, frequencies: torch.Tensor) -> None:
        device = frequencies.device
        self.count = rows
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self.table = torch.zeros((rows, positions), dtype=torch.int64, device=device)
        self._at = torch.arange(positions, device=device)[None, :]
        self._frequencies = frequencies
        self.cosine, self.sine = rotations(self.positions, frequencies)

    def turn(self) -> None:
        """Begin a step with what `positions` and `table` hold now."""
        self.cosine, self.sine = rotations(self.positions, self._frequencies)
        self.slots = self.table.gather(1, self.positions[:, None])[:, 0]

    def store(self, pool: KvPool, index: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put all rows' keys and values, [rows, kv_heads, width], into one layer's cache."""
        pool.scatter(index, self.slots, keys, values)

    def attend(
        self, pool: KvPool, index: int, queries: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """Attention of [rows, heads, width], each to its sequence; fp32 [rows, heads × width]."""
        memory = pool.layer(index)
        rows, heads, width = queries.shape
        kv_heads = memory.keys.shape[0]
        own = self.positions[:, None]
        seen = self._at <= own
        if window is not None:
            seen &= self._at > own - window
        found = functional.scaled_dot_product_attention(
            queries.view(rows, kv_heads, heads // kv_heads, width).to(memory.keys.dtype),
            memory.keys[:, self.table].transpose(0, 1),
            memory.values[:, self.table].transpose(0, 1),
            attn_mask=seen[:, None, None, :],
        )
        return found.reshape(rows, heads * width).float()


@dataclass(frozen=True)
class _Graph:
    """`host`: pinned memory, through which states go in and out without a copy in between."""

    rows: FixedRows
    host: torch.Tensor
    states: torch.Tensor
    graph: torch.cuda.CUDAGraph


class Graphs:
    """Steps of single rows under CUDA graphs, captured as they are needed."""

    def __init__(self, run_layers: RunLayers, dim: int, frequencies: torch.Tensor) -> None:
        self._run_layers, self._dim, self._frequencies = run_layers, dim, frequencies
        self._graphs: dict[tuple[Span, int, int], _Graph] = {}
        self._memory = torch.cuda.graph_pool_handle()

    def fits(self, places: Sequence[KvPlace]) -> bool:
        """Whether this step is one for a graph."""
        is_single = all(place.end - place.position == 1 for place in places)
        return is_single and len(places) <= MAX_GRAPH_ROWS

    def forget(self) -> None:
        """Drop all graphs: the layers that they were captured over are not what they were."""
        self._graphs.clear()

    def run(self, span: Span, places: Sequence[KvPlace], states: States) -> States:
        """States [rows, dim] of single rows through a span's layers."""
        rows = bucket(len(places), 1)
        positions = bucket(max(place.end for place in places), MIN_GRAPH_POSITIONS)
        name = span, rows, positions
        held = self._graphs.pop(name, None)
        if held is None:
            while len(self._graphs) >= MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            held = self._capture(span, rows, positions, places)
        self._graphs[name] = held
        put_places(held.rows, places)
        held.host[: len(places)].copy_(torch.from_numpy(states))
        held.host[len(places) :] = held.host[0]
        held.states.copy_(held.host, non_blocking=True)
        held.graph.replay()
        held.host.copy_(held.states, non_blocking=True)
        torch.cuda.current_stream(held.states.device).synchronize()
        return np.array(held.host[: len(places)].numpy())

    def _capture(self, span: Span, rows: int, positions: int, places: Sequence[KvPlace]) -> _Graph:
        """Run the layers once for the record, on the real places: what it stores there is
        stored again, rightly, when the graph runs."""
        device = self._frequencies.device
        fixed = FixedRows(rows, positions, self._frequencies)
        put_places(fixed, places)
        host = torch.zeros((rows, self._dim), pin_memory=True)
        states = torch.zeros((rows, self._dim), device=device)

        def run() -> None:
            fixed.turn()
            self._run_layers(span, fixed, states)

        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_RUNS):
                run()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            run()
        return _Graph(fixed, host, states, graph)


def bucket(count: int, least: int) -> int:
    """The power of two from `least` on that holds `count`."""
    return max(least, 1 << (count - 1).bit_length())


def put_places(rows: FixedRows, places: Sequence[KvPlace]) -> None:
    """Tell fixed rows where single rows lie; those beyond are as the first."""
    table = np.zeros(tuple(rows.table.shape), np.int64)
    for number, place in enumerate(places):
        before = 0
        for slot, positions in place.runs:
            table[number, before : before + positions] = np.arange(slot, slot + positions)
            before += positions
    table[len(places) :] = table[0]
    own = [place.position for place in places]
    own += own[:1] * (rows.count - len(own))
    rows.table.copy_(torch.from_numpy(table))
    rows.positions.copy_(torch.tensor(own))
