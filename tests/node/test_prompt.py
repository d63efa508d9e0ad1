"""One prompt: what can't be asked is said before any worker is troubled."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import numpy as np
import pytest

from gennode.engine.sample import Sampling
from gennode.engine.seam import ChatMessage, States
from gennode.engine.toy import TOY_MAX_POSITIONS, ToyOwner, ToyShard, toy_manifest
from gennode.errors import UsageError
from gennode.node.alone import Alone, Ready
from gennode.node.prompt import PREFILL_CHUNK, answer
from gennode.wire.ids import Span
from tests.node.toys import LAYERS, MANIFEST, toy_alone, truth


async def _all(stream: AsyncGenerator[int]) -> list[int]:
    return [token async for token in stream]


OWNER = ToyOwner(toy_manifest(6))


async def test_an_answer_never_reaches_past_the_models_last_position() -> None:
    prompt = "x" * (TOY_MAX_POSITIONS - 5)
    tokens = await _all(answer(prompt, OWNER, toy_alone(), Sampling(max_tokens=100)))
    given = len(OWNER.tokenize(prompt))
    assert len(tokens) == TOY_MAX_POSITIONS - given


async def test_a_prompt_that_is_too_long_is_refused_with_a_hint() -> None:
    with pytest.raises(UsageError) as caught:
        await _all(answer("x" * TOY_MAX_POSITIONS, OWNER, toy_alone(), Sampling()))
    assert caught.value.hint


async def test_a_prompt_of_several_chunks_is_as_one() -> None:
    prompt = "y" * (2 * PREFILL_CHUNK + 7)
    tokens = await _all(answer(prompt, OWNER, toy_alone(), Sampling(max_tokens=5)))
    assert tokens == await truth(prompt, Sampling(max_tokens=5))


async def test_a_conversation_comes_as_tokens_and_gets_no_others() -> None:
    tokens = OWNER.chat([ChatMessage("user", "why")])
    assert tokens == OWNER.tokenize("user: why assistant: ")
    limit = Sampling(max_tokens=5)
    assert await _all(answer(tokens, OWNER, toy_alone(), limit)) == await truth(
        "user: why assistant: ", limit
    )


class Noting(Alone):
    """Notes the steps that come, each with its first position and all its states."""

    def __init__(self) -> None:
        engine = ToyShard(MANIFEST)
        engine.load(Span(0, LAYERS))
        super().__init__(engine, [Span(0, LAYERS)], "int8-outlier")
        self.steps: list[tuple[int, States]] = []
        self.replies = 0

    def step(self, position: int, states: States, *, reply_rows: int) -> Ready:
        self.steps.append((position, states))
        self.replies += reply_rows
        return super().step(position, states, reply_rows=reply_rows)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_an_answer_goes_on_from_any_token_with_the_same_steps_and_tokens(
    temperature: float,
) -> None:
    prompt = "z" * (PREFILL_CHUNK + 3)
    sampling = Sampling(temperature=temperature, seed=11, max_tokens=12)
    whole = Noting()
    tokens = await _all(answer(prompt, OWNER, whole, sampling))
    assert len(tokens) == 12
    for count in range(1, len(tokens)):
        again = Noting()
        rest = answer(prompt, OWNER, again, sampling, given=tokens[:count])
        assert await _all(rest) == tokens[count:]
        assert again.replies == len(tokens) - count  # what is known already is not sent back
        assert [place for place, _ in again.steps] == [place for place, _ in whole.steps]
        for (_, first), (_, second) in zip(whole.steps, again.steps, strict=True):
            np.testing.assert_array_equal(first, second)


async def test_an_answer_that_is_whole_needs_nobody_to_go_on() -> None:
    tokens = await truth("short", Sampling(max_tokens=4))
    nobody = Alone(ToyShard(MANIFEST), [])
    assert await _all(answer("short", OWNER, nobody, Sampling(max_tokens=4), given=tokens)) == []
    ended = [next(token for token in range(1000) if OWNER.is_end(token))]
    assert await _all(answer("short", OWNER, nobody, Sampling(), given=ended)) == []
