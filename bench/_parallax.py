"""Parallax's first phase as it is published, in our own words, to be compared with ours.

Source: GradientHQ/parallax, src/scheduling/layer_allocation.py and node.py, and
"Parallax: Efficient LLM Inference Service over Decentralized Environment", arXiv:2509.26182.
What it does:

- A node holds as many layers as fit into 0.65 of its memory (its server's setting). The first
  of a pipeline pays for the embedding out of that, the last for the head.
- Dynamic programming over the nodes: for each number `k` of pipelines the fewest
  stages `s`; the `k` with the largest `k * k / s` is taken. States are (node, layers that open
  pipelines still lack, pipelines finished), so it is exponential; past `MAX_STATES` we go on
  with its own greedy rule, which is what its authors offer for larger pools.
- Layers within a pipeline by water-filling: each node gets its share of arithmetic (TFLOPS),
  bounded by its capacity, in the order of capacity. No network and no bandwidth of memory.
- Nodes that are left over join at the layer with the least cache memory, one after the other.

Where we are generous: all memory that weights leave is for caches, and not 0.25 of the whole;
leftover nodes serve (in its default routing they wait until they form a pipeline of their own);
and `placed` charges nobody for embedding and head, as owners hold both here. Its published
code does, and takes the nodes as they came (`crashes`): then the search lets others pay for the
ends than water-filling, which sorts the nodes, and where that finds too little room it raises
ValueError, and Parallax never starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench._pools import Pool
from gennode.wire.ids import Hop, Span
from gennode.wire.snapshot import Candidate

PARAMETER_SHARE = 0.65
FILLINGS = 40  # halvings in the search for the water's level
MAX_STATES = 60_000
MAX_DYNAMIC = 128  # nodes: recursion goes as deep, and twice as many have too many states

Placement = tuple[list[tuple[Candidate, Span]], list[tuple[Hop, ...]]]


class UnplannableError(Exception):
    """Where the published code raises ValueError."""


@dataclass
class _Node:
    """One machine as Parallax sees it: layers it holds plain, as the first, and as the last."""

    index: int
    plain: int
    first: int
    last: int
    both: int
    flops: float
    memory_bytes: int


@dataclass
class _Found:
    """Spans by the node's index, and chains of indices."""

    spans: dict[int, Span] = field(default_factory=dict)
    chains: list[list[int]] = field(default_factory=list)


def placed(pool: Pool, max_states: int = MAX_STATES) -> Placement:
    """Who holds what, and the pipelines that it has in mind; embedding and head for nothing."""
    nodes = sorted(_nodes(pool, 0), key=lambda node: -node.plain)
    found = _planned(nodes, pool.demand.layers, max_states)
    hosts = [(pool.candidates[index], span) for index, span in sorted(found.spans.items())]
    pipelines = [
        tuple(Hop(pool.candidates[index].peer, found.spans[index]) for index in chain)
        for chain in found.chains
    ]
    return hosts, pipelines


def crashes(pool: Pool, max_states: int = MAX_STATES) -> bool:
    """Whether the published code would raise for this pool: embedding and head are paid for."""
    try:
        _planned(_nodes(pool, pool.model.embedding_bytes), pool.demand.layers, max_states)
    except UnplannableError:
        return True
    return False


def _nodes(pool: Pool, end_bytes: int) -> list[_Node]:
    nodes = []
    for index, machine in enumerate(pool.machines):
        room = math.floor(machine.memory_bytes * PARAMETER_SHARE)
        plain, one, two = (
            (room - ends * end_bytes) // pool.demand.layer_bytes for ends in (0, 1, 2)
        )
        nodes.append(_Node(index, plain, one, one, two, machine.flops_per_s, machine.memory_bytes))
    return nodes


def _planned(nodes: Sequence[_Node], layers: int, max_states: int) -> _Found:
    if sum(node.plain for node in nodes) < layers:
        return _Found()
    many = len(nodes) > MAX_DYNAMIC
    chains = None if many else _Dynamic(nodes, layers, max_states).chains()
    if chains is None:
        return _greedy(nodes, layers)
    found = _Found()
    for chain in chains:
        _fill(chain, layers, found)
    if chains:
        _join_leftovers(nodes, layers, found)
    return found


class _TooManyStatesError(Exception):
    """More states than we wait for."""


class _Dynamic:
    """The dynamic programme: fewest stages for each number of pipelines."""

    def __init__(self, nodes: Sequence[_Node], layers: int, max_states: int) -> None:
        self.nodes = nodes
        self.layers = layers
        self.max_states = max_states
        self.states = 0
        self.room_after = [0] * (len(nodes) + 1)
        for place in reversed(range(len(nodes))):
            self.room_after[place] = self.room_after[place + 1] + nodes[place].plain

    def chains(self) -> list[list[_Node]] | None:
        """The pipelines of the best number; none if there are none, None if it gave up."""
        best_score, best = -math.inf, list[list[_Node]]()
        for count in range(1, min(len(self.nodes), self.room_after[0] // self.layers) + 1):
            self.count = count
            self.memo: dict[tuple[int, tuple[int, ...], int], tuple[float, int]] = {}
            try:
                stages = self._stages(0, (), 0)
            except _TooManyStatesError:
                return None
            if stages < math.inf and count * count / stages > best_score:
                best_score, best = count * count / stages, self._traced()
        return best

    def _stages(self, place: int, lacks: tuple[int, ...], done: int) -> float:
        """Fewest stages from here on. Choices: -2 starts one, -1 skips, others add to `lacks`."""
        if done == self.count and not lacks:
            return 0
        new = self.count - done - len(lacks)
        if (
            place == len(self.nodes)
            or new < 0
            or self.room_after[place] < sum(lacks) + new * self.layers
            or done + len(lacks) + len(self.nodes) - place < self.count
        ):
            return math.inf
        state = (place, lacks, done)
        if state in self.memo:
            return self.memo[state][0]
        self.states += 1
        if self.states > self.max_states:
            raise _TooManyStatesError
        best, choice = self._stages(place + 1, lacks, done), -1
        for option in [*range(len(lacks)), *([-2] if new else [])]:
            left = self._left(place, lacks, option)
            others = lacks if option == -2 else lacks[:option] + lacks[option + 1 :]
            if left <= 0:
                stages = 1 + self._stages(place + 1, others, done + 1)
            else:
                stages = 1 + self._stages(place + 1, tuple(sorted((*others, left))), done)
            if stages < best:
                best, choice = stages, option
        self.memo[state] = best, choice
        return best

    def _left(self, place: int, lacks: tuple[int, ...], option: int) -> int:
        """What a pipeline lacks once the node is added; it closes at 0 or below."""
        node = self.nodes[place]
        if option == -2:
            return self.layers - node.first
        left = lacks[option] - node.plain
        return left if left > 0 else lacks[option] - node.last

    def _traced(self) -> list[list[_Node]]:
        running: list[tuple[int, list[_Node]]] = []
        closed: list[list[_Node]] = []
        for place, node in enumerate(self.nodes):
            lacks = tuple(left for left, _ in running)
            state = (place, lacks, len(closed))
            choice = self.memo[state][1] if state in self.memo else -1
            if choice == -1:
                continue
            left = self._left(place, lacks, choice)
            chain = [] if choice == -2 else running.pop(choice)[1]
            chain.append(node)
            if left <= 0:
                closed.append(chain)
            else:
                running.append((left, chain))
                running.sort(key=lambda one: one[0])
        return closed


def _greedy(nodes: Sequence[_Node], layers: int) -> _Found:
    """Pipelines one by one, largest nodes first; one node that does alone is the smallest such,
    if the rest then suffices for another pipeline."""
    found = _Found()
    waiting = sorted(nodes, key=lambda node: -node.plain)
    while waiting and sum(node.plain for node in waiting) >= layers:
        chain: list[_Node] = []
        lacks, room = layers, sum(node.plain for node in waiting)
        while lacks > 0 and waiting:
            at = 0
            if not chain and room - lacks >= layers + 1:
                fits = [
                    index
                    for index, node in enumerate(waiting)
                    if node.last >= lacks and room - node.last >= layers
                ]
                at = fits[-1] if fits else 0
            node = waiting.pop(at)
            holds = node.plain if chain else node.first
            if lacks - holds <= 0:
                holds = node.last if chain else node.both
            chain.append(node)
            lacks -= holds
            room -= holds
        if lacks > 0:
            break
        _fill(chain, layers, found)
    if found.chains:
        _join_leftovers(nodes, layers, found)
    return found


def _fill(chain: Sequence[_Node], layers: int, found: _Found) -> None:
    """Water-filling: the share of arithmetic, up to the capacity; whole layers by remainder."""
    ordered = sorted(chain, key=lambda node: -node.plain)
    rooms = [node.plain for node in ordered]
    rooms[-1] = ordered[-1].last
    rooms[0] = ordered[0].first
    if min(rooms) <= 0 or sum(rooms) < layers:
        raise UnplannableError
    flops = [node.flops for node in ordered]
    low, high = 0.0, max(room / power for room, power in zip(rooms, flops, strict=True))
    for _ in range(FILLINGS):
        level = (low + high) / 2
        filled = sum(min(room, level * power) for room, power in zip(rooms, flops, strict=True))
        if filled >= layers:
            high = level
        else:
            low = level
    shares = [min(room, high * power) for room, power in zip(rooms, flops, strict=True)]
    counts = [min(room, int(share)) for room, share in zip(rooms, shares, strict=True)]
    by_rest = sorted(range(len(counts)), key=lambda index: (counts[index] - shares[index], index))
    for index in by_rest:
        if sum(counts) < layers and counts[index] < rooms[index]:
            counts[index] += 1
    if sum(counts) != layers:
        raise UnplannableError
    start = 0
    found.chains.append([node.index for node, count in zip(ordered, counts, strict=True) if count])
    for node, count in zip(ordered, counts, strict=True):
        if count:
            found.spans[node.index] = Span(start, start + count)
            start += count


def _join_leftovers(nodes: Sequence[_Node], layers: int, found: _Found) -> None:
    """Each joins at the layer whose hosts have the least memory for caches, as far as it can."""
    cached = [0.0] * layers

    def host(node: _Node, span: Span) -> None:
        found.spans[node.index] = span
        for layer in range(*span):
            cached[layer] += node.memory_bytes / span.layers

    for node in nodes:
        if node.index in found.spans:
            host(node, found.spans[node.index])
    for node in nodes:
        if node.index in found.spans:
            continue
        start = cached.index(min(cached))
        end = min(start + (node.plain if start else node.first), layers)
        if end == layers:
            end = min(start + (node.last if start else node.both), layers)
        if end > start:
            host(node, Span(start, end))
