"""What codecs do to the bundled model: prompts and its answers, with states sent on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench._codec_net import HOPS, kl_nats, through
from gennode.engine.checkpoint.weights import find_model, open_model
from gennode.engine.engines import owner_engine, shard_engine
from gennode.engine.options import EngineOptions
from gennode.engine.sample import Sampling
from gennode.engine.seam import OwnerEngine, ShardEngine, StepInput
from gennode.node.alone import Alone
from gennode.node.prompt import answer
from gennode.wire.fields import CodecName
from gennode.wire.ids import Span
from tools.demo_tasks import FAMILIES, held_out_examples

MODEL = "gennode-large"
MAX_TOKENS = 48


@dataclass(frozen=True)
class TrainedLoss:
    """By hops: mean divergence in nats, and share of positions with the same likeliest token."""

    kl_nats: dict[int, float]
    agreement: dict[int, float]


def measure_trained(
    names: Sequence[CodecName], prompts_of_each: int
) -> tuple[dict[CodecName, TrainedLoss], int]:
    """Losses on held-out prompts, and the number of positions looked at."""
    folder = open_model(find_model(MODEL))
    owner = owner_engine(folder)
    engine = shard_engine(folder, EngineOptions(precision="fp32"))
    whole = Span(0, owner.layers)
    engine.load(whole)
    found: dict[tuple[CodecName, int], list[np.ndarray]] = {}
    references = []
    for family in FAMILIES:
        for example in held_out_examples(family, 7, prompts_of_each):
            tokens = asyncio.run(_answer(example.prompt, owner, Alone(engine, [whole])))
            context = owner.tokenize(example.prompt) + tokens[:-1]
            references.append(_logits(owner, engine, context, None, 0))
            for name in names:
                for hops in HOPS:
                    logits = _logits(owner, engine, context, name, hops)
                    found.setdefault((name, hops), []).append(logits)
    true = np.concatenate(references)
    joined = {key: np.concatenate(parts) for key, parts in found.items()}
    losses = {
        name: TrainedLoss(
            {hops: kl_nats(true, joined[name, hops]) for hops in HOPS},
            {hops: float((joined[name, hops].argmax(1) == true.argmax(1)).mean()) for hops in HOPS},
        )
        for name in names
    }
    return losses, len(true)


async def _answer(prompt: str, owner: OwnerEngine, alone: Alone) -> list[int]:
    stream = answer(prompt, owner, alone, Sampling(max_tokens=MAX_TOKENS))
    return [token async for token in stream]


def _logits(
    owner: OwnerEngine,
    engine: ShardEngine,
    context: list[int],
    name: CodecName | None,
    hops: int,
) -> np.ndarray:
    """Logits at all positions, [rows, vocab], with states sent `hops` times on the way."""
    step = owner.layers // (hops + 1)
    states = owner.embed(context, 0)
    for start in range(0, owner.layers, step):
        span = Span(start, start + step)
        engine.open(span, span, len(context))
        [states] = engine.step([StepInput(span, 0, states)])
        engine.close(span)
        if name is not None and span.end < owner.layers:
            states = through(name, states)
    return np.stack([owner.logits(state) for state in states])
