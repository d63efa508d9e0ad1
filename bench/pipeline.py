"""Three workers on this machine beside the same engine in one process: what the mesh costs.

One session at a time, so that only one worker computes at any moment: every process may use
the same number of threads, and no more than that ever run at once on either side.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to find its neighbours

import msgspec

if TYPE_CHECKING:
    from gennode.engine.seam import Logits, OwnerEngine, States
    from gennode.node.ask import Asker
    from gennode.node.control import NodeStatus
    from gennode.node.prompt import Swarm
    from gennode.node.state import NodeCard

WORKERS = 3
QUICK_LAYERS = 8  # of the 22; one layer takes the same time, and hops weigh a little more
PROMPT = "count from 12 to 40 ="
CACHE = Path(__file__).resolve().parent.parent / ".bench"


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    tokens: int
    rounds: int
    agreement_prompts: int


@dataclass(frozen=True)
class Side:
    """One model's figures. Shares are of the pipeline's wall time."""

    single_s: float
    pipeline_s: float
    ratio: float
    hop_bytes: float
    compute_share: float
    codec_share: float
    owner_share: float


def main() -> None:
    """Measure, print, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="finish within 50 s")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is loaded
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as `gennode join` sets it

    from bench._random_model import LLAMA_1B, random_llama
    from bench._report import report

    plan = Plan(tokens=12, rounds=2, agreement_prompts=20)
    if not options.quick:
        plan = Plan(tokens=48, rounds=5, agreement_prompts=200)
    layers = QUICK_LAYERS if options.quick else LLAMA_1B.layers
    large = CACHE / f"random-llama-1.1b-{layers}-layers"
    if not (large / "model.safetensors").exists():
        say("writing a random model …")
        random_llama(large, msgspec.structs.replace(LLAMA_1B, layers=layers), seed=1)
    say("measuring the bundled model …")
    bundled = asyncio.run(measure("gennode-large", options.threads, plan))
    say(f"measuring {layers} layers of the 1.1 B shape …")
    random = asyncio.run(measure(str(large), options.threads, plan))
    say("counting tokens that are the same …")
    agreement = asyncio.run(measure_agreement(plan.agreement_prompts))
    report(
        "pipeline",
        {
            "ratio_3_workers": round(random.ratio, 3),
            "ratio_3_workers_bundled": round(bundled.ratio, 3),
            "bytes_per_hop_token": round(random.hop_bytes),
            "agreement_default_codec": round(agreement, 5),
        },
        columns=("", "gennode-large, 3.4 M", f"1.1 B shape, {layers} layers"),
        rows=[
            ("one process, ms per token", *(f"{s.single_s * 1e3:.1f}" for s in (bundled, random))),
            ("3 workers, ms per token", *(f"{s.pipeline_s * 1e3:.1f}" for s in (bundled, random))),
            ("ratio of speeds, median", *(f"{side.ratio:.3f}" for side in (bundled, random))),
            ("bytes per hop and token", *(f"{side.hop_bytes:.0f}" for side in (bundled, random))),
            ("share of layers", *(f"{side.compute_share:.0%}" for side in (bundled, random))),
            ("share of codec", *(f"{side.codec_share:.1%}" for side in (bundled, random))),
            ("share of head", *(f"{side.owner_share:.1%}" for side in (bundled, random))),
            ("share of wire and waking", *(f"{_rest(side):.1%}" for side in (bundled, random))),
            ("same token as with raw states", f"{agreement:.3%}", ""),
        ],
    )


def say(text: str) -> None:
    """For whoever waits; the figures go to standard output."""
    print(text, file=sys.stderr, flush=True)


def _rest(side: Side) -> float:
    return 1 - side.compute_share - side.codec_share - side.owner_share


async def measure(model: str, threads: int, plan: Plan) -> Side:
    """Both sides in turns, so that a busy machine disturbs both alike."""
    from gennode.engine.checkpoint.weights import find_model, open_model
    from gennode.engine.llama.shard import LlamaShard
    from gennode.node.alone import Alone
    from gennode.node.ask import asking
    from gennode.node.testnet import Testnet, WorkerOptions
    from gennode.sharding.plan.plan import split
    from gennode.wire.ids import Span

    folder = open_model(find_model(model))
    layers = folder.manifest.shape.layers
    whole = Span(0, layers)
    engine = LlamaShard(folder)
    engine.load(whole)
    local = Alone(engine, [whole])
    with tempfile.TemporaryDirectory(prefix="gennode-bench-") as place:
        testnet = Testnet(Path(place))
        spans = split(layers, [1.0] * WORKERS, [layers] * WORKERS)
        options = WorkerOptions(
            model, memory="4G", threads=threads, leash=True, precision="fp32"
        )  # fmt: skip
        cards = testnet.up(spans, options)
        try:
            bootstrap = tuple(card.addresses[0] for card in cards.values())
            async with asking(model, bootstrap) as asker:
                return await _take_turns(asker, local, list(cards.values()), plan)
        finally:
            testnet.down()


async def _take_turns(asker: Asker, local: Swarm, cards: list[NodeCard], plan: Plan) -> Side:
    owner = TimedOwner(asker.owner)
    await _generate(asker.owner, asker.node, 4)  # everybody's first step is slow
    await _generate(asker.owner, local, 4)
    singles, pipelines, ratios = [], [], []
    before = await _statuses(cards)
    spent_s, tokens = 0.0, 0
    for _ in range(plan.rounds):
        single_s, _ = await _generate(asker.owner, local, plan.tokens)
        start_s = time.perf_counter()
        pipeline_s, given = await _generate(owner, asker.node, plan.tokens)
        spent_s += time.perf_counter() - start_s
        tokens += given
        singles.append(single_s)
        pipelines.append(pipeline_s)
        ratios.append(single_s / pipeline_s)
    after = await _statuses(cards)
    compute_s = sum(b.compute_s - a.compute_s for a, b in zip(before, after, strict=True))
    codec_s = sum(b.codec_s - a.codec_s for a, b in zip(before, after, strict=True))
    # a row for each position: the prompt's, and the answer's but for its last token
    rows = tokens + plan.rounds * (len(asker.owner.tokenize(PROMPT)) - 1)
    middle = after[0].step_bytes - before[0].step_bytes  # the first worker's, to the second
    return Side(
        single_s=statistics.median(singles),
        pipeline_s=statistics.median(pipelines),
        ratio=statistics.median(ratios),
        hop_bytes=middle / rows,
        compute_share=compute_s / spent_s,
        codec_share=codec_s / spent_s,
        owner_share=owner.spent_s / spent_s,
    )


class TimedOwner:
    """The owner's engine with a watch on its head and embedding; satisfies `OwnerEngine`."""

    def __init__(self, owner: OwnerEngine) -> None:
        self.model, self.dim, self.layers = owner.model, owner.dim, owner.layers
        self.max_positions = owner.max_positions
        self.tokenize, self.detokenize = owner.tokenize, owner.detokenize
        self.is_end, self.chat = owner.is_end, owner.chat
        self.spent_s = 0.0
        self._owner = owner

    def embed(self, tokens: Sequence[int], position: int) -> States:
        """As the owner's."""
        start_s = time.perf_counter()
        states = self._owner.embed(tokens, position)
        self.spent_s += time.perf_counter() - start_s
        return states

    def logits(self, state: States) -> Logits:
        """As the owner's."""
        start_s = time.perf_counter()
        logits = self._owner.logits(state)
        self.spent_s += time.perf_counter() - start_s
        return logits


async def _generate(owner: OwnerEngine, swarm: Swarm, tokens: int) -> tuple[float, int]:
    """(mean seconds per token after the first, tokens)."""
    from gennode.engine.sample import Sampling
    from gennode.node.prompt import answer

    count, first_s = 0, 0.0
    async with aclosing(answer(PROMPT, owner, swarm, Sampling(max_tokens=tokens))) as stream:
        async for _ in stream:
            count += 1
            first_s = first_s or time.perf_counter()
    return (time.perf_counter() - first_s) / max(1, count - 1), count


async def _statuses(cards: list[NodeCard]) -> list[NodeStatus]:
    from gennode.node.control import ask_status

    return [await ask_status(card.control) for card in cards]


async def measure_agreement(prompts: int) -> float:
    """Share of answer positions where int8 frames lead to the token that raw states lead to."""
    import numpy as np

    from gennode.engine.checkpoint.weights import find_model, open_model
    from gennode.engine.llama.owner import LlamaOwner
    from gennode.engine.llama.shard import LlamaShard
    from gennode.engine.sample import Sampling
    from gennode.node.alone import Alone
    from gennode.node.prompt import answer
    from gennode.sharding.plan.plan import split
    from gennode.wire.ids import Span
    from tools.demo_tasks import FAMILIES, held_out_examples

    folder = open_model(find_model("gennode-large"))
    layers = folder.manifest.shape.layers
    owner, engine = LlamaOwner(folder), LlamaShard(folder)
    engine.load(Span(0, layers))
    spans = split(layers, [1.0] * WORKERS, [layers] * WORKERS)
    raw, coded = Alone(engine, spans), Alone(engine, spans, "int8-outlier")
    same = seen = 0
    each = -(-prompts // len(FAMILIES))
    for example in (e for family in FAMILIES for e in held_out_examples(family, 7, each)):
        given = owner.tokenize(example.prompt)
        stream = answer(example.prompt, owner, raw, Sampling(max_tokens=48))
        tokens = [token async for token in stream]
        choices = []
        for swarm in (raw, coded):
            context = given + tokens[:-1]
            async with swarm.open(owner, max_positions=len(context)) as pipeline:
                states = await pipeline.step(0, owner.embed(context, 0), reply_rows=len(tokens))
            choices.append(np.array([owner.logits(state).argmax() for state in states]))
        same += int((choices[0] == choices[1]).sum())
        seen += len(tokens)
    return same / seen


if __name__ == "__main__":
    main()
