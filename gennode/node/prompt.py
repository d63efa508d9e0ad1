"""One prompt, from text to tokens: the whole path in one function."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import pairwise
from typing import Protocol

from gennode.engine.sample import Sampling, choose
from gennode.engine.seam import OwnerEngine, States
from gennode.errors import UsageError

PREFILL_CHUNK = 128  # rows: hop 2 works on the first chunk while hop 1 works on the second


class Pipeline(Protocol):
    """A session that is open over a route covering every layer."""

    def step(self, position: int, states: States, *, reply_rows: int) -> Awaitable[States]:
        """Send states down the route now; awaited, gives the last `reply_rows` of the result.

        `states`: float32 [rows, dim], the input of layer 0 at positions from `position` on.
        Several steps may be under way; their results come in the order of sending.
        """


class Swarm(Protocol):
    """Where routes come from."""

    def open(
        self, owner: OwnerEngine, *, max_positions: int
    ) -> AbstractAsyncContextManager[Pipeline]:
        """A session on the best route of the moment; NoRouteError if there is none."""


async def answer(
    prompt: str | Sequence[int],
    owner: OwnerEngine,
    swarm: Swarm,
    sampling: Sampling,
    *,
    given: Sequence[int] = (),
) -> AsyncGenerator[int]:
    """Yield the tokens of the answer, the end token included, as they are made.

    `prompt`: text, or the tokens of a conversation as the owner's `chat` gives them. `given`:
    how the answer begins, if it was interrupted; it goes on with the tokens that come next.
    """
    tokens = owner.tokenize(prompt) if isinstance(prompt, str) else prompt
    limit = _position_limit(tokens, owner, sampling)
    start = len(tokens) + len(given)
    if given and (owner.is_end(given[-1]) or start >= limit):
        return
    async with swarm.open(owner, max_positions=limit) as pipeline:
        state = await _catch_up(tokens, given, owner, pipeline)
        for position in range(start, limit):
            token = choose(owner.logits(state), sampling, position)
            yield token
            if owner.is_end(token) or position + 1 == limit:
                return
            state = await pipeline.step(position, owner.embed([token], position), reply_rows=1)


async def _catch_up(
    tokens: Sequence[int], given: Sequence[int], owner: OwnerEngine, pipeline: Pipeline
) -> States:
    """Push through what is known, all under way at once; the last position's state.

    The prompt goes in chunks and each given token by itself, as they went the first time: codecs
    and engines then see the same frames, and give the same bits.
    """
    known = [*tokens, *given]
    starts = [*range(0, len(tokens), PREFILL_CHUNK), *range(len(tokens), len(known))]
    steps = []
    for start, end in pairwise([*starts, len(known)]):
        states = owner.embed(known[start:end], start)
        steps.append(pipeline.step(start, states, reply_rows=int(end == len(known))))
    return [await step for step in steps][-1]


def _position_limit(tokens: Sequence[int], owner: OwnerEngine, sampling: Sampling) -> int:
    if not tokens:
        raise UsageError("the prompt is empty", hint="give the model at least one word")
    if len(tokens) >= owner.max_positions:
        raise UsageError(
            f"the prompt has {len(tokens)} tokens; the model ends at {owner.max_positions}",
            hint="shorten it",
        )
    return min(len(tokens) + sampling.max_tokens, owner.max_positions)
