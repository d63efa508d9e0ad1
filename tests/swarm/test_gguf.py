"""A GGUF file, hosted and asked by real processes: llama.cpp computes, the swarm is the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gennode.engine.engines import owner_engine, shard_engine
from gennode.engine.folders import open_folder
from gennode.engine.options import EngineOptions
from gennode.engine.sample import Sampling
from gennode.errors import ModelError, UsageError
from gennode.node.alone import Alone
from gennode.node.ask import asking
from gennode.node.join import JoinOptions, join
from gennode.node.progress import unwatched
from gennode.node.publish import PublishOptions, publish
from gennode.node.survey import survey
from gennode.node.testnet import Testnet, WorkerOptions
from gennode.node.transports import Listening
from gennode.wire.ids import Span
from gennode.wire.release import Line
from gennode.wire.signing import Key
from tests.engine.gguf.conftest import needs_llama
from tests.engine.gguf.making import LAYERS, make, quantise
from tests.node.toys import tokens_of

SPANS = (Span(0, 2), Span(2, LAYERS))
PROMPT = "a file of one piece"
SAMPLING = Sampling(max_tokens=12)
LIMIT_S = 90.0


@needs_llama
@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_gguf_answers_through_two_workers_as_on_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make(tmp_path)
    path = quantise(tmp_path, "q8_0")
    folder = open_folder(path)
    engine = shard_engine(folder, EngineOptions())
    for span in SPANS:
        engine.load(span)
    alone = Alone(engine, SPANS, "int8-outlier")
    truth = tuple(await tokens_of(PROMPT, owner_engine(folder), alone, SAMPLING))
    assert len(truth) > 4

    testnet = Testnet(tmp_path / "net")
    options = WorkerOptions(str(path), memory="256M", threads=1)
    cards = await asyncio.to_thread(testnet.up, SPANS, options)
    try:
        async with asyncio.timeout(LIMIT_S):
            addresses = [card.addresses[0] for card in cards.values()]
            async with asking(str(path), addresses) as asker:
                answer = await asker.ask(PROMPT, SAMPLING)
                model = asker.owner.model
                [kind] = {
                    hosting.compute_class for one in asker.node.live() for hosting in one.hosting
                }
            seen = await survey(
                model, addresses, transport_name="p2pd", peers=None, progress=unwatched
            )
            # Its manifest is known to the swarm, and its weights are not given away in parts.
            with pytest.raises(ModelError, match="GGUF") as refused:
                async with asking(model, addresses):
                    pass
    finally:
        await asyncio.to_thread(testnet.down)
    assert answer.tokens == truth
    assert [hop.span for hop in answer.route] == list(SPANS)
    assert kind == "gguf-q8_0-cpu"
    assert {one.hosts for one in seen.peers} == set(SPANS)
    assert "model.gguf, tokenizer.json" in refused.value.hint


async def test_a_gguf_neither_is_published_nor_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make(tmp_path)
    path, listening = str(tmp_path / "gguf" / "f16"), Listening()
    options = PublishOptions(tmp_path / "state", path, "x", listening)
    with pytest.raises(UsageError, match="can't be published"):
        await publish(options, on_ready=lambda _published: None, progress=unwatched)
    line = Line(Key(bytes(32)).peer, "x")
    joining = JoinOptions(tmp_path / "state", path, "cpu", None, 1 << 28, listening, follow=line)
    with pytest.raises(UsageError, match="can't follow"):
        await join(
            joining,
            on_ready=lambda _joined: None,
            on_leaving=lambda _sessions: None,
            progress=unwatched,
        )
