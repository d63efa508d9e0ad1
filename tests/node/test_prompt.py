"""One prompt: what can't be asked is said before any worker is troubled."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from gennode.engine.sample import Sampling
from gennode.engine.seam import ChatMessage
from gennode.engine.toy import TOY_MAX_POSITIONS, ToyOwner, toy_manifest
from gennode.errors import UsageError
from gennode.node.prompt import PREFILL_CHUNK, answer
from tests.node.toys import toy_alone, truth


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
