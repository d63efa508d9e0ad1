"""A model that is no Llama, hosted and asked by real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gennode.engine.checkpoint.weights import open_model
from gennode.engine.engines import owner_engine, shard_engine
from gennode.engine.options import EngineOptions
from gennode.engine.sample import Sampling
from gennode.node.alone import Alone
from gennode.node.ask import asking
from gennode.node.testnet import Testnet, WorkerOptions
from gennode.wire.ids import Span
from tests.node.toys import tokens_of
from tools.tiny_models import make_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SPANS = (Span(0, 3), Span(3, 6))
PROMPT = "a gemma"
SAMPLING = Sampling(max_tokens=12)
LIMIT_S = 90.0


async def test_a_gemma_answers_through_two_workers_as_on_one_machine(tmp_path: Path) -> None:
    make_tiny("gemma2", tmp_path / "gemma")
    folder = open_model(tmp_path / "gemma")
    engine = shard_engine(folder, EngineOptions())
    for span in SPANS:
        engine.load(span)
    alone = Alone(engine, SPANS, "int8-outlier")
    truth = tuple(await tokens_of(PROMPT, owner_engine(folder), alone, SAMPLING))
    assert len(truth) > 4

    testnet = Testnet(tmp_path / "net")
    options = WorkerOptions(str(tmp_path / "gemma"), memory="256M", threads=1)
    cards = await asyncio.to_thread(testnet.up, SPANS, options)
    try:
        async with asyncio.timeout(LIMIT_S):
            addresses = [card.addresses[0] for card in cards.values()]
            async with asking(str(tmp_path / "gemma"), addresses) as asker:
                answer = await asker.ask(PROMPT, SAMPLING)
    finally:
        await asyncio.to_thread(testnet.down)
    assert answer.tokens == truth
    assert [hop.span for hop in answer.route] == list(SPANS)
